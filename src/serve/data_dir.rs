//! The data directory: one process at a time, and what it keeps there.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::config::Secret;
use crate::error::{Exit, Failure};

const LOCK: &str = "lock";
const ADMIN_TOKEN: &str = "admin-token";
const ADMIN_ADDRESS: &str = "admin.json";
const DEMO_KEY: &str = "demo-key";
/// No file of ours that is read whole is larger.
const MAX_FILE_BYTES: u64 = 16 * 1024;

/// The directory, locked for as long as this lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

/// Where the running gateway's admin listener is, for commands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AdminAddress {
    pub address: SocketAddr,
    #[serde(serialize_with = "reveal")]
    pub token: Secret,
    pub pid: u32,
}

fn reveal<S: serde::Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.reveal())
}

impl DataDir {
    /// Makes the directory (mode 0700) if need be, and takes its lock.
    ///
    /// # Errors
    /// [`Exit::InUse`] while another process has it, [`Exit::DataDir`] when it cannot be made or written.
    pub fn open(path: &Path) -> Result<DataDir, Failure> {
        let failed = |what: &str| Failure::while_doing(Exit::DataDir, format!("{what} {}", path.display()));
        if !path.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("cannot make"))?;
        }
        let file = path.join(LOCK);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&file)
            .map_err(failed("cannot write in"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(path, &mut lock)),
            Err(TryLockError::Error(error)) => return Err(failed("cannot lock")(error)),
        }
        lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id())).map_err(failed("cannot write in"))?;
        Ok(DataDir { path: path.to_owned(), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The admin token: the settings' own, else the one kept here, else a new one.
    pub fn admin_token(&self, settings: Option<&Secret>) -> Result<Secret, Failure> {
        if let Some(token) = settings {
            return Ok(token.clone());
        }
        if let Some(token) = self.read(ADMIN_TOKEN)? {
            return Ok(Secret::new(token));
        }
        let mut bytes = [0_u8; 32];
        getrandom::fill(&mut bytes).map_err(Failure::while_doing(Exit::Internal, "no random numbers"))?;
        let token = URL_SAFE_NO_PAD.encode(bytes);
        self.write(ADMIN_TOKEN, &token)?;
        Ok(Secret::new(token))
    }

    /// Where the made token lies.
    pub fn admin_token_path(&self) -> PathBuf {
        self.path.join(ADMIN_TOKEN)
    }

    /// Tells commands where the admin listener is.
    pub fn announce(&self, listener: SocketAddr, token: &Secret) -> Result<(), Failure> {
        let ip = match listener.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let address = SocketAddr::new(ip, listener.port());
        let admin = AdminAddress { address, token: token.clone(), pid: std::process::id() };
        let text = serde_json::to_string(&admin).map_err(Failure::while_doing(Exit::Internal, ADMIN_ADDRESS))?;
        self.write(ADMIN_ADDRESS, &text)
    }

    /// Takes the announcement back; a crash leaves it, which harms nobody: the lock says whether one runs.
    pub fn retract(&self) {
        if let Err(error) = std::fs::remove_file(self.path.join(ADMIN_ADDRESS)) {
            tracing::warn!(%error, "the admin address stays in the data directory");
        }
    }

    pub fn demo_key(&self) -> Result<Option<Secret>, Failure> {
        Ok(self.read(DEMO_KEY)?.map(Secret::new))
    }

    pub fn keep_demo_key(&self, key: &Secret) -> Result<(), Failure> {
        self.write(DEMO_KEY, key.reveal())
    }

    fn read(&self, name: &str) -> Result<Option<String>, Failure> {
        read_file(&self.path.join(name))
    }

    /// Readable by the owner alone, and whole or not there at all.
    fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        let (path, new) = (self.path.join(name), self.path.join(format!("{name}.new")));
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, &path)
        };
        write().map_err(Failure::while_doing(Exit::DataDir, format!("cannot write {}", path.display())))
    }
}

/// Where the gateway that holds `directory`'s lock can be asked; `None` while it has not said so.
pub fn admin_address(directory: &Path) -> Result<Option<AdminAddress>, Failure> {
    let path = directory.join(ADMIN_ADDRESS);
    let Some(text) = read_file(&path)? else { return Ok(None) };
    let what = format!("{} is not readable as an address", path.display());
    serde_json::from_str(&text).map(Some).map_err(Failure::while_doing(Exit::DataDir, what))
}

fn read_file(path: &Path) -> Result<Option<String>, Failure> {
    let read = || {
        let mut text = String::new();
        File::open(path)?.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
        Ok(text.trim().to_owned())
    };
    match read() {
        Ok(text) => Ok(Some(text).filter(|text| !text.is_empty())),
        Err(error) if io::Error::kind(&error) == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::new(Exit::DataDir, format!("cannot read {}: {error}", path.display()))),
    }
}

fn in_use(path: &Path, lock: &mut File) -> Failure {
    let mut holder = String::new();
    // The number is a courtesy: without it the message is less helpful, not wrong.
    let _ = lock.take(20).read_to_string(&mut holder);
    let holder = if holder.is_empty() { "another process".to_owned() } else { format!("process {holder}") };
    let path = path.display();
    Failure::new(
        Exit::InUse,
        format!("the data directory {path} is in use by {holder}; give this one another with FAREGATE_DATA_DIR"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("a/b");
        let first = DataDir::open(&path).unwrap();
        let refused = DataDir::open(&path).unwrap_err();
        assert_eq!(refused.exit, Exit::InUse);
        assert!(refused.message.contains(&format!("process {}", std::process::id())), "{refused}");
        drop(first);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn secrets_are_the_owners_alone() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("data");
        let directory = DataDir::open(&path).unwrap();
        let mode = |file: &Path| std::fs::metadata(file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        let token = directory.admin_token(None).unwrap();
        assert_eq!(directory.admin_token(None).unwrap(), token, "kept");
        assert!(token.reveal().len() > 40);
        assert_eq!(mode(&directory.admin_token_path()), 0o600);
        let own = Secret::new("own");
        assert_eq!(directory.admin_token(Some(&own)).unwrap(), own);
        directory.announce("0.0.0.0:9090".parse().unwrap(), &token).unwrap();
        assert_eq!(mode(&path.join(ADMIN_ADDRESS)), 0o600);
        let admin = admin_address(&path).unwrap().unwrap();
        assert_eq!(admin.address.to_string(), "127.0.0.1:9090");
        assert_eq!(admin.token, token);
        directory.retract();
        assert!(admin_address(&path).unwrap().is_none());
    }
}
