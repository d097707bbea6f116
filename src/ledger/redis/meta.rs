//! The meta key of a shard: the epoch that it stands in, how far its log goes, whether it is closed.

use super::connection::{CallError, Link};
use super::wire::{Keyspace, decode, encode};
use super::{Core, Position, reopen, script};
use crate::ledger::LedgerError;

/// How a shard stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meta {
    /// `flushed`: the last entry that is in the store, as the store's flusher told it; never beyond the store's cursor.
    Open {
        at: Position,
        flushed: u64,
    },
    /// It is being reopened: nothing applies.
    Closed(Position),
    Missing,
    /// There is none, and its epoch has events already.
    Used,
}

impl Meta {
    /// The epoch that it stands in, where there is one.
    pub(super) fn epoch(self) -> Option<u64> {
        match self {
            Meta::Open { at, .. } | Meta::Closed(at) => Some(at.epoch),
            Meta::Missing | Meta::Used => None,
        }
    }
}

/// Where the shard stands. One that lost its data is opened anew first.
pub(crate) async fn find_or_make(core: &Core, link: &mut Link, shard: u32) -> Result<Position, LedgerError> {
    match look(link, shard).await? {
        Meta::Open { at, .. } => Ok(at),
        Meta::Closed(_) | Meta::Missing | Meta::Used => reopen::reopen(core, link, shard, None).await,
    }
}

pub(crate) async fn look(link: &mut Link, shard: u32) -> Result<Meta, LedgerError> {
    ask(link, shard, 0, false).await
}

/// Makes a shard that is missing, at the beginning of an epoch that nobody wrote to.
pub(super) async fn make(link: &mut Link, shard: u32, epoch: u64) -> Result<Meta, LedgerError> {
    ask(link, shard, epoch, true).await
}

async fn ask(link: &mut Link, shard: u32, epoch: u64, make: bool) -> Result<Meta, LedgerError> {
    let keys = Keyspace::new(shard, epoch);
    let (meta, events) = (keys.meta(), keys.events());
    let argument = encode::numbers(&[epoch, u64::from(make)]);
    let command = script::OPEN.command([meta.as_str(), events.as_str()].into_iter(), &argument);
    let [epoch, counter, flushed, closed] = numbers(link, shard, &script::OPEN, &command).await?;
    Ok(match position(epoch, counter) {
        Some(at) if closed == 1 => Meta::Closed(at),
        Some(at) => Meta::Open { at, flushed: u64::try_from(flushed).unwrap_or(0) },
        None if epoch == -1 => Meta::Missing,
        None => Meta::Used,
    })
}

/// Closes the shard in `epoch`, if it stands in the epoch `found`: who looked before others had opened it must not close it
/// again. Answers how it stood before; `None`: there was none.
pub(super) async fn close(
    link: &mut Link,
    shard: u32,
    epoch: u64,
    found: Option<u64>,
) -> Result<Option<Position>, LedgerError> {
    let request = [epoch, 1, found.map_or(0, |found| found + 1)];
    change(link, shard, epoch, &request).await.map(|(before, _)| before)
}

/// Opens a shard in `epoch` that is closed in the one before. Answers where it stands if it is open now.
pub(super) async fn open(link: &mut Link, shard: u32, epoch: u64) -> Result<Option<Position>, LedgerError> {
    change(link, shard, epoch, &[epoch, 0, 0]).await.map(|(now, closed)| now.filter(|_| !closed))
}

async fn change(
    link: &mut Link,
    shard: u32,
    epoch: u64,
    request: &[u64],
) -> Result<(Option<Position>, bool), LedgerError> {
    let meta = Keyspace::new(shard, epoch).meta();
    let argument = encode::numbers(request);
    let command = script::REOPEN.command([meta.as_str()].into_iter(), &argument);
    let [epoch, counter, closed] = numbers(link, shard, &script::REOPEN, &command).await?;
    Ok((position(epoch, counter), closed == 1))
}

/// Asked again where the connection broke: each of these scripts may run twice.
async fn numbers<const N: usize>(
    link: &mut Link,
    shard: u32,
    script: &script::Script,
    command: &redis::Cmd,
) -> Result<[i64; N], LedgerError> {
    let answer = match link.call_bytes(script, command).await {
        Err(CallError::Broken(_)) => link.call_bytes(script, command).await,
        answer => answer,
    };
    let bytes = answer.map_err(|error| {
        tracing::warn!(shard, %error, "the ledger's meta cannot be read");
        LedgerError::Unavailable
    })?;
    decode::numbers::<N>(&bytes).map_err(|_| LedgerError::Unavailable)
}

fn position(epoch: i64, counter: i64) -> Option<Position> {
    Some(Position { epoch: u64::try_from(epoch).ok()?, counter: u64::try_from(counter).ok()? })
}
