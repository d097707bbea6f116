//! Accounts that are not there: one load at a time for each, whatever waits for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::core::{Core, Outcome, Shard};
use super::mailbox::Mailbox;
use super::outbox::Waiter;
use crate::ledger::{
    AccountId, AccountSource, AccountState, Act, Answer, LedgerError, Op, Reply, SessionId, TICKET_LIFE_US,
};

/// How long one load may take: a ticket's life.
const LOAD_TIMEOUT: Duration = Duration::from_micros(TICKET_LIFE_US);
/// Between attempts for what must be carried out.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// An operation that waits for its account.
pub(super) struct Waiting {
    session: SessionId,
    op: Op,
    sender: oneshot::Sender<Result<Answer, LedgerError>>,
    mailbox: Arc<Mailbox>,
}

/// What a submitter has to do.
pub(super) enum Queued {
    /// A load is under way.
    Wait(Reply),
    /// It has to be started.
    Load(Reply),
    Busy,
}

impl Core {
    /// Puts an operation behind the load of its account.
    ///
    /// The queue is bounded by `max_queue`, except for what must be carried out: that is bounded by the requests in
    /// flight, which were admitted before.
    pub(super) fn queue(&self, shard: &mut Shard, session: SessionId, op: Op, mailbox: Arc<Mailbox>) -> Queued {
        if self.waiting.load(Ordering::Relaxed) >= self.max_waiting && !must(&op.act) {
            return Queued::Busy;
        }
        let (sender, receiver) = oneshot::channel();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = shard.waiting.entry(op.account.clone()).or_default();
        waiting.push(Waiting { session, op, sender, mailbox });
        let reply = Reply::Later(receiver);
        if waiting.len() == 1 { Queued::Load(reply) } else { Queued::Wait(reply) }
    }

    /// Loads an account and lets everything go on that waits for it.
    pub(super) async fn load_for_waiting(
        self: Arc<Self>,
        source: Arc<dyn AccountSource>,
        account: AccountId,
        stop: CancellationToken,
    ) {
        // Were the source to panic, nobody may wait forever.
        let mut queue = OwnedQueue { core: &self, account: &account, done: false };
        let mut retry = RETRY_MIN;
        loop {
            let load = tokio::time::timeout(LOAD_TIMEOUT, source.load(&account));
            match load.await.unwrap_or(Err(LedgerError::Unavailable)) {
                Ok(state) => return queue.finish(state),
                Err(error) => {
                    if !queue.refuse(error) {
                        return;
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(retry) => retry = (retry * 2).min(RETRY_MAX),
                () = stop.cancelled() => return,
            }
        }
    }

    fn arrive(&self, account: &AccountId, state: Option<AccountState>) {
        let mut shard = self.shard(account);
        if let Some(state) = state.as_ref().filter(|_| !shard.accounts.contains_key(account)) {
            self.load(&mut shard, SessionId::API, account, state);
        }
        for Waiting { session, op, sender, mailbox } in self.take_waiting(&mut shard, account) {
            // Whoever asked to reserve and left must find nothing reserved.
            if sender.is_closed() && takes(&op.act) {
                continue;
            }
            let outcome = self.apply_loaded(&mut shard, session, &op);
            let outcome = outcome.unwrap_or(Outcome { answer: Answer::NotLoaded, after: None });
            match outcome.after {
                Some(position) => {
                    self.outbox.wait_for(position, Waiter { sender, answer: outcome.answer, mailbox });
                }
                None => {
                    if let Err(Ok(answer)) = sender.send(Ok(outcome.answer)) {
                        self.undo(&mut shard, session, &op, answer);
                    }
                }
            }
        }
    }

    /// Gives back what a reserve took that nobody waits for any more.
    fn undo(&self, shard: &mut Shard, session: SessionId, op: &Op, answer: Answer) {
        let act = match (&op.act, answer) {
            (Act::Reserve { tokens, limits, .. }, Answer::Reserved(reserved)) => {
                let tokens_back_us = crate::ledger::limit_increment(*tokens, limits.tokens_per_minute);
                Act::Release { session: reserved.session, parts: reserved.parts, tokens_back_us }
            }
            (Act::Hold { record, .. }, Answer::Held { .. }) if !record.id.can_be_named_again() => {
                Act::ReleaseHold { record: record.id, expired_only: false }
            }
            _ => return,
        };
        self.apply_loaded(shard, session, &Op { account: op.account.clone(), act });
    }

    fn take_waiting(&self, shard: &mut Shard, account: &AccountId) -> Vec<Waiting> {
        let waiting = shard.waiting.remove(account).unwrap_or_default();
        self.waiting.fetch_sub(waiting.len(), Ordering::Relaxed);
        waiting
    }
}

/// The queue of an account that is being loaded. Dropped, it refuses what still waits there.
struct OwnedQueue<'a> {
    core: &'a Core,
    account: &'a AccountId,
    /// Empty as its owner left it: what is there now belongs to the next load.
    done: bool,
}

impl OwnedQueue<'_> {
    fn finish(mut self, state: Option<AccountState>) {
        self.done = true;
        self.core.arrive(self.account, state);
    }

    /// Answers everything that may be refused. Whether something is left that must be carried out.
    fn refuse(&mut self, error: LedgerError) -> bool {
        let mut shard = self.core.shard(self.account);
        let (kept, refused): (Vec<_>, Vec<_>) =
            self.core.take_waiting(&mut shard, self.account).into_iter().partition(|waiting| must(&waiting.op.act));
        for waiting in refused {
            drop(waiting.sender.send(Err(error)));
        }
        let left = !kept.is_empty();
        self.done = !left;
        if left {
            self.core.waiting.fetch_add(kept.len(), Ordering::Relaxed);
            shard.waiting.insert(self.account.clone(), kept);
        }
        left
    }
}

impl Drop for OwnedQueue<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut shard = self.core.shard(self.account);
        for waiting in self.core.take_waiting(&mut shard, self.account) {
            if must(&waiting.op.act) {
                tracing::error!(account = %self.account, "a charge was given up: its account could not be loaded");
            }
            drop(waiting.sender.send(Err(LedgerError::Unavailable)));
        }
    }
}

/// Operations that are always accepted, and carried out once the account can be loaded.
fn must(act: &Act) -> bool {
    matches!(act, Act::Settle { .. } | Act::Charge { must: true, .. })
}

fn takes(act: &Act) -> bool {
    matches!(act, Act::Reserve { .. } | Act::Extend { .. } | Act::Hold { .. })
}
