//! The ledger in the process: the account model behind locks.
//!
//! Accounts are spread over a few dozen locks. An operation is carried out where it is submitted, and what it emits goes
//! to the [`Outbox`] while the account is locked, so that an account's events stand there in their order. Settles,
//! charges and what else must not be forgotten answer once the flusher has brought them into the store (group commit);
//! reserves answer at once. There is one session: holds live and die with the process.
//!
//! Bounds: events in memory by `ledger.max_backlog`, past which reserves are refused and only what is in flight still
//! settles; operations that wait for a load by `ledger.max_queue`; records by a constant; accounts by parking.

mod clock;
mod core;
mod loads;
mod mailbox;
mod outbox;

use std::sync::Arc;
use std::time::Duration;

pub use clock::{Clock, SystemClock};
pub use outbox::Outbox;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::core::Core;
use self::loads::Queued;
use self::mailbox::Mailbox;
use super::{AccountSource, Act, Answer, Connect, Ledger, LedgerError, Op, Reply, SessionId, SharedLedger, Status};
use crate::config;
use crate::telemetry::Metrics;

/// The one session of the process.
const SESSION: SessionId = SessionId(1);
/// How often what is due is looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// All accounts of the process. Workers reach them through [`Connect`].
pub struct EmbeddedLedger {
    core: Arc<Core>,
    source: Arc<dyn AccountSource>,
}

impl EmbeddedLedger {
    pub fn new(settings: &config::Ledger, source: Arc<dyn AccountSource>, metrics: Metrics) -> Arc<EmbeddedLedger> {
        EmbeddedLedger::with_clock(settings, source, metrics, Arc::new(SystemClock::new()))
    }

    /// With a clock of the caller's: for tests that move time.
    pub fn with_clock(
        settings: &config::Ledger,
        source: Arc<dyn AccountSource>,
        metrics: Metrics,
        clock: Arc<dyn Clock>,
    ) -> Arc<EmbeddedLedger> {
        Arc::new(EmbeddedLedger { core: Arc::new(Core::new(settings, clock, metrics)), source })
    }

    /// Where the flusher finds the events.
    pub fn outbox(&self) -> Arc<Outbox> {
        self.core.outbox.clone()
    }

    /// Writes off what expired, ends API holds past their time and parks idle accounts, until `stop`.
    pub async fn run_sweeper(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(SWEEP_INTERVAL) => self.core.sweep(),
                () = stop.cancelled() => return,
            }
        }
    }

    /// What the sweeper does once.
    pub fn sweep(&self) {
        self.core.sweep();
    }

    /// Accounts in memory.
    pub fn loaded_accounts(&self) -> usize {
        self.core.loaded_accounts()
    }

    /// Carries out one operation as a session, without loading and without waiting for the store: what a batch does in
    /// Redis. `None` when the session is fenced.
    pub fn apply_as(&self, session: SessionId, op: &Op) -> Option<Answer> {
        if self.core.is_fenced(session) {
            return None;
        }
        let mut shard = self.core.shard(&op.account);
        let outcome = self.core.apply_loaded(&mut shard, session, op);
        Some(match outcome {
            Some(outcome) => outcome.answer,
            None => self.core.apply_unloaded(&mut shard, session, op),
        })
    }

    /// Marks a session as dead. Its holds go back when somebody needs them, or by [`EmbeddedLedger::abandon`].
    pub fn fence(&self, session: SessionId) {
        self.core.fence(session);
    }

    /// Gives back everything that a dead session holds.
    pub fn abandon(&self, session: SessionId) {
        self.core.abandon(session);
    }
}

impl Connect for EmbeddedLedger {
    fn connect(&self, tasks: &TaskTracker, stop: CancellationToken) -> SharedLedger {
        let (mailbox, fetching) = Mailbox::open(stop.clone());
        tasks.spawn(fetching);
        Arc::new(Connection {
            core: self.core.clone(),
            source: self.source.clone(),
            mailbox,
            tasks: tasks.clone(),
            runtime: Handle::current(),
            stop,
        })
    }
}

/// A worker's way to the accounts, and its runtime for loads.
struct Connection {
    core: Arc<Core>,
    source: Arc<dyn AccountSource>,
    mailbox: Arc<Mailbox>,
    tasks: TaskTracker,
    runtime: Handle,
    stop: CancellationToken,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("the embedded ledger")
    }
}

impl Ledger for Connection {
    fn submit(&self, op: Op) -> Reply {
        if starts_something(&op.act) && self.core.stalled(self.core.clock.now()) {
            return Reply::now(Err(LedgerError::Unavailable));
        }
        let mut shard = self.core.shard(&op.account);
        if let Some(outcome) = self.core.apply_loaded(&mut shard, SESSION, &op) {
            return self.core.reply(outcome, &self.mailbox);
        }
        if matches!(op.act, Act::Ticket { .. } | Act::Load { .. } | Act::Park { .. } | Act::Apply { .. }) {
            return Reply::now(Ok(self.core.apply_unloaded(&mut shard, SESSION, &op)));
        }
        let account = op.account.clone();
        let queued = self.core.queue(&mut shard, SESSION, op, self.mailbox.clone());
        drop(shard);
        match queued {
            Queued::Wait(reply) => reply,
            Queued::Busy => Reply::now(Err(LedgerError::Busy)),
            Queued::Load(reply) => {
                let load = self.core.clone().load_for_waiting(self.source.clone(), account, self.stop.clone());
                self.tasks.spawn_on(load, &self.runtime);
                reply
            }
        }
    }

    fn status(&self) -> Status {
        if self.core.stalled(self.core.clock.now()) {
            Status::Unavailable
        } else if self.core.backlogged() {
            Status::Backlogged
        } else {
            Status::Ready
        }
    }
}

/// New work, which is not begun while the store takes nothing: it could not be kept.
fn starts_something(act: &Act) -> bool {
    matches!(act, Act::Reserve { .. } | Act::Hold { .. } | Act::Charge { must: false, .. })
}
