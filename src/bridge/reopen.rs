//! The store's part in opening a shard anew.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;

use crate::ledger::redis::wire::decode::Entry;
use crate::ledger::redis::{Epochs, Position, Standing};
use crate::ledger::{AccountId, Event, LedgerError, RecordState, SessionId};
use crate::store::{Cursor, FlushBatch, SharedStore, StoreError, StoreResult};

/// How often another process may write a piece while this one prepares the same.
const ATTEMPTS: usize = 16;

/// Epochs as the store's cursors tell them.
pub struct StoreEpochs {
    store: SharedStore,
}

impl StoreEpochs {
    pub fn new(store: SharedStore) -> Arc<StoreEpochs> {
        Arc::new(StoreEpochs { store })
    }

    /// The cursor counts the pieces: of two that write at once, one finds it moved, and looks again at what is written.
    async fn write_once(&self, shard: u32, epoch: u64, entries: &[Entry]) -> StoreResult<Option<u64>> {
        let standing = self.store.standing(shard).await?;
        if standing.cursor.epoch != epoch || !standing.reopening {
            return Ok(None);
        }
        let from = standing.cursor;
        let stored: HashMap<u64, u64> =
            self.store.session_numbers(shard, sessions(entries)).await?.into_iter().collect();
        let new = |entry: &&Entry| entry.number > stored.get(&entry.session.0).copied().unwrap_or(0);
        let new: Vec<&Entry> = entries.iter().filter(new).collect();
        // Whose head cannot be read has no number to go by: the store knows each that it has.
        let unreadable: Vec<_> = entries.iter().filter_map(|entry| entry.unreadable.clone()).collect();
        if new.is_empty() && unreadable.is_empty() {
            return Ok(Some(0));
        }
        let count = new.len() as u64;
        let sessions = new.iter().map(|entry| (entry.session.0, entry.number)).collect();
        let records: Vec<_> = new.iter().flat_map(|entry| entry.records.iter().cloned()).collect();
        let events = new.into_iter().flat_map(|entry| entry.events.iter().cloned());
        let events = self.charged_once(events, &records).await?;
        let events = self.renumbered(events.into_iter()).await?;
        let to = from.counter + 1;
        let batch = FlushBatch { shard, from, to, events, sessions, records, unreadable, ..FlushBatch::default() };
        self.store.flush(batch).await?;
        Ok(Some(count))
    }

    /// Without what was charged under a record that the store has as charged: between a loss and its discovery another
    /// worker may have taken a repeated request for a new one. `records` are those of the events.
    async fn charged_once(
        &self,
        events: impl Iterator<Item = Event>,
        records: &[(AccountId, RecordState)],
    ) -> StoreResult<Vec<Event>> {
        let (mut once, mut here) = (Vec::new(), HashSet::new());
        for event in events {
            if let Some(id) = event.record {
                let print = records.iter().find(|(_, record)| record.id == id).map(|(_, record)| record.fingerprint);
                let stored = self.store.record(&event.account, id).await?.filter(|record| record.held.is_none());
                // Another request under the same key is another charge.
                let again = stored.is_some_and(|stored| print.is_none_or(|print| print == stored.fingerprint));
                if again || !here.insert((id, print)) {
                    tracing::warn!(account = %event.account, "charged under its key before: not again");
                    continue;
                }
            }
            once.push(event);
        }
        Ok(once)
    }

    /// Events as they go on from where the store has their accounts. Their own numbers may be of a history that the store
    /// did not take part in. What they carry out of a billing change that the store has is left out, and so is one whose
    /// predecessors did not survive: they are pushed again, in their order.
    async fn renumbered(&self, events: impl Iterator<Item = Event>) -> StoreResult<Vec<Event>> {
        let mut accounts: HashMap<AccountId, (u64, u64)> = HashMap::new();
        let mut renumbered = Vec::new();
        for mut event in events {
            if !accounts.contains_key(&event.account) {
                let state = self.store.load_open(&event.account).await?.unwrap_or_default();
                accounts.insert(event.account.clone(), (state.seq, state.change));
            }
            let Some((seq, change)) = accounts.get_mut(&event.account) else { continue };
            if event.change > 0 {
                if event.change != *change + 1 {
                    continue;
                }
                *change = event.change;
            }
            *seq += 1;
            event.seq = *seq;
            renumbered.push(event);
        }
        Ok(renumbered)
    }
}

fn sessions(entries: &[Entry]) -> Vec<u64> {
    let mut sessions: Vec<u64> = entries.iter().map(|entry| entry.session.0).collect();
    sessions.sort_unstable();
    sessions.dedup();
    sessions
}

#[async_trait]
impl Epochs for StoreEpochs {
    async fn standing(&self, shard: u32) -> Result<Standing, LedgerError> {
        self.store.standing(shard).await.map(standing).map_err(unavailable)
    }

    async fn begin(&self, shard: u32, epoch: u64) -> Result<Standing, LedgerError> {
        self.store.begin_reopening(shard, epoch).await.map(standing).map_err(unavailable)
    }

    async fn write(&self, shard: u32, epoch: u64, entries: Vec<Entry>) -> Result<Option<u64>, LedgerError> {
        for _ in 0..ATTEMPTS {
            match self.write_once(shard, epoch, &entries).await {
                Err(StoreError::CursorMoved) => {}
                written => return written.map_err(unavailable),
            }
        }
        Err(LedgerError::Unavailable)
    }

    async fn end(&self, shard: u32, epoch: u64) -> Result<(), LedgerError> {
        for _ in 0..ATTEMPTS {
            let standing = self.store.standing(shard).await.map_err(unavailable)?;
            if standing.cursor.epoch != epoch || !standing.reopening {
                return Ok(());
            }
            match self.store.end_reopening(shard, standing.cursor).await {
                Err(StoreError::CursorMoved) => {}
                ended => return ended.map_err(unavailable),
            }
        }
        Err(LedgerError::Unavailable)
    }

    async fn numbers(&self, shard: u32, sessions: &[SessionId]) -> Result<Vec<u64>, LedgerError> {
        let ids = sessions.iter().map(|session| session.0).collect();
        let known = self.store.session_numbers(shard, ids).await.map_err(unavailable)?;
        let known: HashMap<u64, u64> = known.into_iter().collect();
        Ok(sessions.iter().map(|session| known.get(&session.0).copied().unwrap_or(0)).collect())
    }

    async fn close(&self, shard: u32, known: &[(SessionId, u64)]) -> Result<bool, LedgerError> {
        let known = known.iter().map(|(session, number)| (session.0, *number)).collect();
        match self.store.close_sessions(shard, known).await {
            Err(StoreError::CursorMoved) => Ok(false),
            closed => closed.map(|()| true).map_err(unavailable),
        }
    }
}

fn standing(standing: crate::store::reopenings::Standing) -> Standing {
    let Cursor { epoch, counter } = standing.cursor;
    Standing { at: Position { epoch, counter }, mark: standing.mark, reopening: standing.reopening }
}

#[expect(clippy::needless_pass_by_value, reason = "it is passed to map_err")]
fn unavailable(error: StoreError) -> LedgerError {
    tracing::warn!(%error, "the ledger's cursor could not be read or moved");
    LedgerError::Unavailable
}
