//! Opens a shard anew that lost what it had acknowledged: Redis was emptied, or came back from an old file, or a replica
//! that lacks the last writes was promoted.
//!
//! Whoever notices begins, and any number may at once, in any number of processes: each step is one that the others' steps
//! cannot spoil (tests/it/protocol explores them). 1. The shard is closed: what is in its logs is all there will be. 2. The
//! store's epoch is raised: no flush of the old one succeeds any more. 3. Surviving entries numbered above their session's
//! stored number are written. 4. The store says that all is written. 5. The shard opens in the new epoch. Accounts load
//! again on use, and workers charge what they remember ([`super::ring`]).

use async_trait::async_trait;
use redis::{Cmd, Value};

use super::connection::{CallError, Link};
use super::log;
use super::meta::{self, Meta};
use super::wire::Keyspace;
use super::wire::decode::{self, Entry};
use super::{Core, Position};
use crate::ledger::{LedgerError, SessionId};

/// Rounds before whoever asked tries again later.
const ROUNDS: usize = 8;
/// Entries written at once.
const PAGE: usize = 500;
/// Epochs looked through for entries: a session of a much earlier one would have slept through as many losses.
const EPOCHS_BACK: u64 = 15;

/// Where the store's cursor of a shard stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    pub at: Position,
    /// How the entry there begins; empty where there is none, or it is not known.
    pub mark: Vec<u8>,
    /// The epoch before is closed, and what survived of it is still being written.
    pub reopening: bool,
}

/// The store's part. The bridge implements it.
#[async_trait]
pub trait Epochs: Send + Sync + 'static {
    async fn standing(&self, shard: u32) -> Result<Standing, LedgerError>;

    /// Raises the epoch above `epoch`, unless somebody has; from then on no flush of it succeeds. Answers where the cursor
    /// stands now.
    async fn begin(&self, shard: u32, epoch: u64) -> Result<Standing, LedgerError>;

    /// Writes entries of earlier epochs that are numbered above their session's stored number: what does not fit becomes
    /// debt. Answers how many they were; `None` where the reopening into `epoch` is over.
    async fn write(&self, shard: u32, epoch: u64, entries: Vec<Entry>) -> Result<Option<u64>, LedgerError>;

    /// All is written. Nothing happens where that was said before.
    async fn end(&self, shard: u32, epoch: u64) -> Result<(), LedgerError>;

    /// The last batch of each session that is in the store, in the order asked; 0 for none.
    async fn numbers(&self, shard: u32, sessions: &[SessionId]) -> Result<Vec<u64>, LedgerError>;

    /// Ends sessions for good: nothing more of theirs is ever written, whatever history comes back. Done again, it changes
    /// nothing. Answers whether it is done; not where the store has another last batch of one than `known` says.
    async fn close(&self, shard: u32, known: &[(SessionId, u64)]) -> Result<bool, LedgerError>;
}

/// Sees to it that the shard is open: in an epoch after `lost`, where one was found lost. Answers where it then stands.
pub(crate) async fn reopen(
    core: &Core,
    link: &mut Link,
    shard: u32,
    lost: Option<u64>,
) -> Result<Position, LedgerError> {
    let alone = core.state(shard).reopening.lock().await;
    let mut round = Round { core, link, shard };
    let mut opened = Err(LedgerError::Unavailable);
    for _ in 0..ROUNDS {
        if let Some(position) = round.go(lost).await? {
            opened = Ok(position);
            break;
        }
    }
    drop(alone);
    opened
}

struct Round<'a> {
    core: &'a Core,
    link: &'a mut Link,
    shard: u32,
}

impl Round<'_> {
    /// `None`: somebody else was faster, look again.
    async fn go(&mut self, lost: Option<u64>) -> Result<Option<Position>, LedgerError> {
        let shard = self.shard;
        let found = meta::look(self.link, shard).await?;
        if let Meta::Open { at, .. } = found
            && lost.is_none_or(|lost| at.epoch > lost)
        {
            return Ok(Some(at));
        }
        let store = self.core.epochs.standing(shard).await?;
        match found {
            Meta::Open { at, .. } | Meta::Closed(at) if at.epoch > store.at.epoch => {
                tracing::error!(
                    shard,
                    ledger = at.epoch,
                    store = store.at.epoch,
                    "the store is behind the ledger: it was restored from an old backup, or is another ledger's. The shard stays closed"
                );
                return Err(LedgerError::Unavailable);
            }
            // Nobody wrote to this epoch: whoever comes first may use it.
            Meta::Missing if lost.is_none() && store.at.counter == 0 && !store.reopening => {
                if let Meta::Open { at, .. } = meta::make(self.link, shard, store.at.epoch).await? {
                    tracing::info!(shard, epoch = at.epoch, "the ledger in Redis begins");
                    return Ok(Some(at));
                }
            }
            // All is written; whoever did it died before the shard was open.
            Meta::Closed(at) if !store.reopening && store.at.counter == 0 && at.epoch + 1 == store.at.epoch => {
                return meta::open(self.link, shard, store.at.epoch).await;
            }
            _ => {}
        }
        let epoch = if store.reopening { store.at.epoch.saturating_sub(1) } else { store.at.epoch };
        self.carry_over(found, epoch, store.at).await
    }

    /// From `epoch` into the next, if the shard still stands in the epoch that it was found in.
    async fn carry_over(&mut self, found: Meta, epoch: u64, cursor: Position) -> Result<Option<Position>, LedgerError> {
        let (shard, next) = (self.shard, epoch + 1);
        let found = found.epoch();
        let before = meta::close(self.link, shard, epoch, found).await?;
        if before.map(|before| before.epoch) != found {
            return Ok(None);
        }
        let seen = self.core.state(shard).seen(epoch).max(if cursor.epoch == epoch { cursor.counter } else { 0 });
        let there = before.filter(|before| before.epoch == epoch).map_or(0, |before| before.counter);
        tracing::error!(
            shard,
            epoch,
            acknowledged = seen,
            survived = there,
            "Redis lost what it had acknowledged, or was rolled back: the shard is closed, and opened anew from the store"
        );
        let begun = self.core.epochs.begin(shard, epoch).await?;
        if begun.at.epoch != next || !begun.reopening {
            return Ok(None);
        }
        let mut written = 0;
        for old in epoch.saturating_sub(EPOCHS_BACK)..=epoch {
            match self.survivors(old, next).await? {
                Some(count) => written += count,
                None => return Ok(None),
            }
        }
        self.core.epochs.end(shard, next).await?;
        let opened = meta::open(self.link, shard, next).await?;
        if opened.is_some() {
            let metrics = &self.core.metrics;
            metrics.reopenings.inc();
            metrics.reopened_entries.with_label_values(&["recovered"]).inc_by(written);
            metrics.reopened_entries.with_label_values(&["missing"]).inc_by(seen.saturating_sub(there));
            tracing::warn!(
                shard,
                epoch = next,
                recovered = written,
                "the shard is open again; what living gateways remember beyond it is charged now"
            );
        }
        Ok(opened)
    }

    /// Writes what survived of an epoch. Nothing is added to its log any more.
    async fn survivors(&mut self, epoch: u64, next: u64) -> Result<Option<u64>, LedgerError> {
        let events = Keyspace::new(self.shard, epoch).events();
        let (mut after, mut written) = (0, 0);
        loop {
            let mut command = Cmd::new();
            command.arg("XRANGE").arg(&events).arg(format!("({after}-0")).arg("+").arg("COUNT").arg(PAGE);
            let value = match self.link.send(&command).await {
                Err(CallError::Broken(_)) => self.link.send(&command).await,
                value => value,
            };
            let Ok(Value::Array(rows)) = value else { return Err(LedgerError::Unavailable) };
            let mut entries = Vec::with_capacity(rows.len());
            for row in &rows {
                let Some((counter, fields)) = log::parts(row) else { continue };
                after = after.max(counter);
                let entry = decode::entry(counter, fields);
                entries.push(entry.unwrap_or_else(|error| Entry::unreadable(epoch, counter, fields, error)));
            }
            if entries.is_empty() {
                return Ok(Some(written));
            }
            let full = rows.len() >= PAGE;
            match self.core.epochs.write(self.shard, next, entries).await? {
                Some(count) => written += count,
                None => return Ok(None),
            }
            if !full {
                return Ok(Some(written));
            }
        }
    }
}
