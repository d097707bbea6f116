//! A copy of the file while others write to it, and a copy put back.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::super::{StoreError, StoreResult};
use super::failed;

/// How long another's write may keep the copy from starting.
const BUSY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

/// Copies the store in `from` to the new file `to`, as of one moment, while a gateway goes on writing. Blocks. The copy
/// is checked and on the disk when this answers, or not there at all.
///
/// # Errors
/// `Conflict` where `to` is there already; `NotFound` without a store in `from`.
pub fn back_up(from: &Path, to: &Path) -> StoreResult<()> {
    if !from.exists() {
        return Err(StoreError::NotFound("the store"));
    }
    let into = |partial: &Path| {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let source = Connection::open_with_flags(from, flags).map_err(failed)?;
        source.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
        let partial = partial.to_str().ok_or(StoreError::Invalid("the name of the file"))?;
        // One read transaction: a snapshot, journal and all.
        source.execute("VACUUM INTO ?1", [partial]).map_err(failed)?;
        Ok(())
    };
    whole(to, into)
}

/// Puts a copy where a store was, which must not be there any more. Blocks.
///
/// # Errors
/// `Conflict` where `to` or one of its logs is still there; `NotFound` without a copy in `from`.
pub fn restore(from: &Path, to: &Path) -> StoreResult<()> {
    if !from.is_file() {
        return Err(StoreError::NotFound("the copy"));
    }
    // Left behind, the old store's log would be read into the restored one.
    for rest in ["-wal", "-shm", "-journal"] {
        let mut name = to.as_os_str().to_owned();
        name.push(rest);
        if Path::new(&name).exists() {
            return Err(taken(Path::new(&name)));
        }
    }
    whole(to, |partial| {
        // Not `fs::copy`, which would bring the copy's mode along.
        let copied = File::open(from)
            .and_then(|mut source| std::io::copy(&mut source, &mut OpenOptions::new().write(true).open(partial)?));
        copied.map(drop).map_err(|error| unavailable(from, &error))
    })
}

/// Makes the file under another name, checks it, and gives it its own once it is on the disk.
fn whole(to: &Path, make: impl FnOnce(&Path) -> StoreResult<()>) -> StoreResult<()> {
    if to.exists() {
        return Err(taken(to));
    }
    let folder = match to.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let partial = partial(to)?;
    // Made by us, for its owner alone; SQLite takes an empty file for a new one.
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial);
    made.map_err(|error| unavailable(&partial, &error))?;
    let done = make(&partial).and_then(|()| check(&partial)).and_then(|()| {
        let sync = || File::open(&partial)?.sync_all();
        sync().map_err(|error| unavailable(&partial, &error))?;
        // Unlike a rename, a link never replaces what is there.
        std::fs::hard_link(&partial, to).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => taken(to),
            _ => unavailable(to, &error),
        })?;
        let sync = || File::open(folder)?.sync_all();
        sync().map_err(|error| unavailable(folder, &error))
    });
    let removed = std::fs::remove_file(&partial);
    done.and(removed.map_err(|error| unavailable(&partial, &error)))
}

fn partial(to: &Path) -> StoreResult<PathBuf> {
    let name = to.file_name().ok_or(StoreError::Invalid("the name of the file"))?;
    let mut partial = name.to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    Ok(to.with_file_name(partial))
}

/// Reads the file through.
fn check(file: &Path) -> StoreResult<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags).map_err(failed)?;
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(failed)?;
    let tables = "SELECT count(*) FROM sqlite_master WHERE name IN ('users', 'credits', 'ledger_cursors')";
    let tables: i64 = connection.query_row(tables, [], |row| row.get(0)).map_err(failed)?;
    if verdict != "ok" || tables != 3 {
        return Err(StoreError::Schema(format!("{} is not a whole store", file.display())));
    }
    Ok(())
}

fn taken(path: &Path) -> StoreError {
    StoreError::Conflict(format!("{} is there already", path.display()))
}

fn unavailable(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Unavailable(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_whole_private_and_never_replaces() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (store, copy) = (dir.path().join("faregate.db"), dir.path().join("copy.db"));
        assert!(matches!(back_up(&store, &copy), Err(StoreError::NotFound(_))));
        let connection = Connection::open(&store).unwrap();
        let tables = "PRAGMA journal_mode = WAL; CREATE TABLE users (id); CREATE TABLE credits (id);
            CREATE TABLE ledger_cursors (id); INSERT INTO users VALUES (7)";
        connection.execute_batch(tables).unwrap();
        back_up(&store, &copy).unwrap();
        assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
        let id = |file: &Path| {
            let connection = Connection::open(file).unwrap();
            connection.query_row("SELECT id FROM users", [], |row| row.get::<_, i64>(0)).unwrap()
        };
        assert_eq!(id(&copy), 7);
        assert!(matches!(back_up(&store, &copy), Err(StoreError::Conflict(_))));
        assert!(matches!(restore(&copy, &store), Err(StoreError::Conflict(_))));
        let other = dir.path().join("other.db");
        std::fs::write(dir.path().join("other.db-wal"), "old").unwrap();
        assert!(matches!(restore(&copy, &other), Err(StoreError::Conflict(_))));
        std::fs::remove_file(dir.path().join("other.db-wal")).unwrap();
        // Whoever moved the copy may have opened it to others; the store is its owner's.
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o644)).unwrap();
        restore(&copy, &other).unwrap();
        assert_eq!(std::fs::metadata(&other).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(id(&other), 7);
        std::fs::write(dir.path().join("torn"), &std::fs::read(&copy).unwrap()[..5_000]).unwrap();
        assert!(restore(&dir.path().join("torn"), &dir.path().join("new.db")).is_err());
        let left = std::fs::read_dir(dir.path()).unwrap().flatten();
        assert!(!left.into_iter().any(|file| file.file_name().to_string_lossy().contains("partial")));
    }
}
