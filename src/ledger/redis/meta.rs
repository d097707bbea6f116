//! The beginning of a shard: its meta key, and the epoch that it stands in.

use super::connection::{CallError, Link};
use super::wire::{Keyspace, decode, encode};
use super::{Core, Position, script};
use crate::ledger::LedgerError;

/// Epochs tried where one was used before.
const ATTEMPTS: u32 = 4;

/// How far the shard's events are in the store, as the store's flusher told it: never beyond the store's own cursor.
pub(crate) async fn flushed(link: &mut Link, shard: u32) -> Result<u64, LedgerError> {
    match ask(link, shard, 0, false).await? {
        Answer::Stands(_, flushed) => Ok(flushed),
        Answer::Missing | Answer::Used => Ok(0),
    }
}

/// Where the shard stands. One without meta begins anew, in the epoch of the store's cursor, or in the next one where
/// that was used.
pub(crate) async fn find_or_make(core: &Core, link: &mut Link, shard: u32) -> Result<Position, LedgerError> {
    if let Answer::Stands(position, _) = ask(link, shard, 0, false).await? {
        return Ok(position);
    }
    let mut store = core.epochs.position(shard).await?;
    for _ in 0..ATTEMPTS {
        // A cursor at 0 stands at the beginning of an epoch that nobody wrote to: whoever comes first may use it.
        if store.counter > 0 {
            store = core.epochs.raise(shard, store).await?;
        }
        match ask(link, shard, store.epoch, true).await? {
            Answer::Stands(position, _) => {
                tracing::warn!(shard, epoch = position.epoch, "the ledger in Redis begins anew");
                return Ok(position);
            }
            Answer::Used | Answer::Missing => store = core.epochs.raise(shard, store).await?,
        }
    }
    Err(LedgerError::Unavailable)
}

enum Answer {
    /// With the last entry that was flushed.
    Stands(Position, u64),
    Missing,
    /// The epoch has events already.
    Used,
}

async fn ask(link: &mut Link, shard: u32, epoch: u64, make: bool) -> Result<Answer, LedgerError> {
    let keys = Keyspace::new(shard, epoch);
    let (meta, events) = (keys.meta(), keys.events());
    let argument = encode::numbers(&[epoch, u64::from(make)]);
    let command = script::OPEN.command([meta.as_str(), events.as_str()].into_iter(), &argument);
    let answer = match link.call_bytes(&script::OPEN, &command).await {
        Err(CallError::Broken(_)) => link.call_bytes(&script::OPEN, &command).await,
        answer => answer,
    };
    let bytes = answer.map_err(|error| {
        tracing::warn!(shard, %error, "the ledger's meta cannot be read");
        LedgerError::Unavailable
    })?;
    let [epoch, counter, flushed, _made] = decode::numbers::<4>(&bytes).map_err(|_| LedgerError::Unavailable)?;
    Ok(match (u64::try_from(epoch), u64::try_from(counter)) {
        (Ok(epoch), Ok(counter)) => Answer::Stands(Position { epoch, counter }, u64::try_from(flushed).unwrap_or(0)),
        _ if epoch == -1 => Answer::Missing,
        _ => Answer::Used,
    })
}
