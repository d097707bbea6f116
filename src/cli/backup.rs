//! `faregate backup` and `faregate restore`: the store of the embedded mode as one file. Nobody is asked: SQLite lets a
//! copy be made beside a running gateway.

use std::path::{Path, PathBuf};

use super::show;
use crate::config::Config;
use crate::error::{Exit, Failure};
use crate::serve::data_dir::DataDir;
use crate::store::{SQLITE_FILE, StoreError, sqlite};

pub(super) async fn back_up(config: &Config, file: PathBuf) -> Result<(), Failure> {
    only_sqlite(config, "pg_dump or your provider's backups copy it")?;
    let from = config.data_dir.join(SQLITE_FILE);
    let to = file.clone();
    blocking(move || sqlite::back_up(&from, &to)).await?;
    show::text(&format!("{} holds the store as it was a moment ago", file.display()))
}

pub(super) async fn restore(config: &Config, file: PathBuf) -> Result<(), Failure> {
    only_sqlite(config, "restore it by its own tools")?;
    // Not under a running gateway.
    let directory = DataDir::open(&config.data_dir)?;
    let to = directory.path().join(SQLITE_FILE);
    blocking(move || sqlite::restore(&file, &to)).await?;
    show::text(&format!("{} is restored; start the gateway, then run `faregate audit`", shown(directory.path())))
}

fn shown(directory: &Path) -> String {
    directory.join(SQLITE_FILE).display().to_string()
}

fn only_sqlite(config: &Config, how: &str) -> Result<(), Failure> {
    if config.store.url.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Exit::Refused, format!("the store is in Postgres: {how} (docs/backup.md)")))
}

async fn blocking(work: impl FnOnce() -> Result<(), StoreError> + Send + 'static) -> Result<(), Failure> {
    let done = tokio::task::spawn_blocking(work).await.map_err(Failure::while_doing(Exit::Internal, "the copy"))?;
    done.map_err(|error| {
        let exit = match error {
            StoreError::Conflict(_) | StoreError::NotFound(_) | StoreError::Invalid(_) => Exit::Refused,
            StoreError::Schema(_) => Exit::Settings,
            StoreError::CursorMoved | StoreError::Unavailable(_) => Exit::Unavailable,
        };
        Failure::new(exit, error.to_string())
    })
}
