//! How a session goes on after a loss or a fence: with what the store does not have of it.

use tokio::time::sleep;

use super::Session;
use crate::credits::Credits;
use crate::ledger::redis::queue::{Item, Pending, To};
use crate::ledger::redis::{reopen, ring, sweeper};
use crate::ledger::{Act, Answer, LedgerError, SessionId};

/// Where a session stood.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) epoch: u64,
    pub(super) session: SessionId,
    /// The last batch that was answered.
    pub(super) number: u64,
}

impl Session {
    /// The batch was not applied: its operations go first in the new session.
    pub(super) fn resend_batch(&mut self) {
        let again = self.batch.drain(..).filter(|pending| !matches!(pending.op.act, Act::Recall { .. }));
        for pending in again.collect::<Vec<_>>().into_iter().rev() {
            self.ready.push_front(Item::Op(pending));
        }
    }

    pub(super) async fn reopen(&mut self, lost: u64) {
        if reopen::reopen(&self.core, &mut self.link, self.shard, Some(lost)).await.is_err() {
            sleep(self.backoff.pause()).await;
        }
    }

    /// Begins again in the shard's next epoch, with what the store does not have of this session and those before it.
    pub(super) async fn recover(&mut self) {
        self.claiming = true;
        let before = self.place();
        while self.keys.epoch <= before.epoch {
            self.reopen(before.epoch).await;
            self.open().await;
        }
        self.claim(before).await;
    }

    pub(super) fn place(&self) -> Place {
        Place { epoch: self.keys.epoch, session: self.id, number: self.number }
    }

    /// What each of these sessions has in the store. From here on they stand still: no flush of an earlier epoch succeeds any
    /// more, and no reopening writes what may yet come back of them.
    pub(super) async fn end_sessions(&mut self, sessions: &[SessionId]) -> Vec<(SessionId, u64)> {
        let mut known: Option<Vec<(SessionId, u64)>> = None;
        loop {
            let numbers = match known.take() {
                Some(known) => Ok(known),
                None => {
                    let numbers = self.core.epochs.numbers(self.shard, sessions).await;
                    numbers.map(|numbers| sessions.iter().copied().zip(numbers).collect())
                }
            };
            if let Ok(numbers) = numbers {
                match self.core.epochs.close(self.shard, &numbers).await {
                    Ok(true) => return numbers,
                    // A reopening wrote more of them.
                    Ok(false) => {}
                    // Whether it was done is not known: the same again, since asked anew the store would only say that it is.
                    Err(_) => known = Some(numbers),
                }
            }
            sleep(self.backoff.pause()).await;
        }
    }

    /// Takes up in the new epoch what the store does not have of the session that ended there, and of those before it.
    pub(super) async fn claim(&mut self, before: Place) {
        (self.claiming, self.follows) = (true, None);
        let Place { session, number, .. } = before;
        let mut sessions = self.ring.sessions();
        if !sessions.contains(&session) {
            sessions.push(session);
        }
        let numbers = self.end_sessions(&sessions).await;
        let stored = |id| numbers.iter().find(|(session, _)| *session == id).map_or(0, |(_, number)| *number);
        let (charges, batches) = self.ring.recover(stored);
        self.claiming = false;
        let micro = charges.iter().fold(Credits::ZERO, |sum, op| sum.saturating_add(ring::charged(op)));
        let metrics = &self.core.metrics;
        metrics.reopened_entries.with_label_values(&["claimed"]).inc_by(batches);
        metrics.reopened_credits.inc_by(micro.micro().unsigned_abs());
        if !charges.is_empty() {
            tracing::warn!(
                shard = self.shard,
                session = session.0,
                charges = charges.len(),
                credits = %micro,
                "charged again: Redis had acknowledged these and lost them before they were in the store"
            );
        }
        if stored(session) > number {
            // Its reply was lost, and it took effect.
            let batch: Vec<Pending> = self.batch.drain(..).collect();
            self.batch = batch.into_iter().filter_map(|pending| self.took_effect(pending)).collect();
        }
        self.resend_batch();
        for op in charges.into_iter().rev() {
            self.ready.push_front(Item::Op(Pending { reloaded: true, ..Pending::new(op, To::Nobody) }));
        }
    }

    /// An operation whose batch is in the store. Answers it where it is still to be done: what a batch holds ended with
    /// its epoch, and what only asks may ask again.
    pub(super) fn took_effect(&self, pending: Pending) -> Option<Pending> {
        let answer = match &pending.op.act {
            Act::Settle { actual, .. } | Act::Charge { actual, must: true, .. } => {
                Ok(Answer::Settled { charged: *actual, available: Credits::ZERO })
            }
            // Done or refused: the store does not tell. Nobody may take it for either. With a key, asking again tells.
            Act::Charge { record: None, .. } | Act::SettleHold { .. } | Act::ReleaseHold { .. } => {
                Err(LedgerError::Unavailable)
            }
            _ => return Some(pending),
        };
        if let Ok(answer) = &answer {
            self.core.counters.count(&pending.op.act, answer);
        }
        pending.answer(answer)
    }

    /// Whether the batch under way is in the store. The ledger says of a fenced session's that it was not applied: it may have
    /// been, in a history that was lost since.
    pub(super) async fn is_stored(&mut self) -> bool {
        loop {
            match self.core.epochs.numbers(self.shard, &[self.id]).await {
                Ok(numbers) => return numbers.first().is_some_and(|number| *number > self.number),
                Err(_) => sleep(self.backoff.pause()).await,
            }
        }
    }

    /// Whether the history in which this session has begun has the fenced one before it as far as it was acknowledged. A
    /// fail-over in between brings a history that lacks its last batches: nobody else misses them, and entries of others that
    /// have taken their numbers would let them be forgotten here, as if they were in the store.
    pub(super) async fn is_there(&mut self, fenced: Place) -> bool {
        loop {
            match sweeper::mark(&mut self.link, &self.keys, fenced.session, fenced.number).await {
                Ok(there) => return there,
                Err(_) => sleep(self.backoff.pause()).await,
            }
        }
    }
}
