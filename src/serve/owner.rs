//! The embedded ledger over a store that other machines reach too: commands there must not take the store from a gateway
//! that runs.

use std::path::Path;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::error::{Exit, Failure};
use crate::store::SharedStore;

/// Names the data directory, and so whoever has its lock.
const OWNER_FILE: &str = "owner";
/// How often the owner says so again.
const SAID_EVERY: Duration = Duration::from_secs(2);
/// Who has not said so for so long is gone.
const GONE_AFTER_US: u64 = 10_000_000;

/// A name of its own for the data directory. Whoever has its lock knows that no other process of that name runs.
pub(super) fn name(data_dir: &Path) -> Result<u64, Failure> {
    let failed = |error: std::io::Error| Failure::new(Exit::Internal, format!("the data directory's name: {error}"));
    let path = data_dir.join(OWNER_FILE);
    match std::fs::read_to_string(&path) {
        // A crash may have left it empty: then it has named nobody yet.
        Ok(text) if text.trim().is_empty() => {}
        Ok(text) => return text.trim().parse().map_err(|_| failed(std::io::ErrorKind::InvalidData.into())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let name = getrandom::u64().map_err(Failure::while_doing(Exit::Internal, "no random numbers"))?;
    // Whole or not at all.
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, name.to_string()).and_then(|()| std::fs::rename(&fresh, &path)).map_err(failed)?;
    Ok(name)
}

/// A gateway has the store from here on, whoever had it. A command has it only where nobody else does.
pub(super) async fn own(store: &SharedStore, owner: u64, is_command: bool) -> Result<(), Failure> {
    let owned = store.own(owner, if is_command { GONE_AFTER_US } else { 0 }).await;
    if owned.map_err(Failure::while_doing(Exit::Unavailable, "the store"))? {
        return Ok(());
    }
    Err(Failure::new(
        Exit::InUse,
        "a gateway elsewhere has this store to itself: with the embedded ledger, commands are run beside it, with its data \
         directory. One that died is forgotten ten seconds later",
    ))
}

/// Says so again and again until `stop`, then takes it back.
pub(super) async fn keep(store: SharedStore, owner: u64, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(SAID_EVERY) => {}
            () = stop.cancelled() => break,
        }
        match store.own(owner, GONE_AFTER_US).await {
            Ok(true) => {}
            // The epoch ends this process, and the flusher says so.
            Ok(false) => tracing::error!("another process has the store to itself now"),
            Err(error) => tracing::warn!(%error, "the store could not be told whose it is"),
        }
    }
    if let Err(error) = store.disown(owner).await {
        tracing::warn!(%error, "the store still says that this process has it; it forgets in ten seconds");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_and_an_empty_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let name_now = || name(dir.path()).unwrap();
        let first = name_now();
        assert_eq!(name_now(), first);
        std::fs::write(dir.path().join(OWNER_FILE), "").unwrap();
        let second = name_now();
        assert_eq!(name_now(), second);
        std::fs::write(dir.path().join(OWNER_FILE), "garbled").unwrap();
        assert!(name(dir.path()).is_err());
    }
}
