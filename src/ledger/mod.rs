//! The ledger: hot balances, and the only authority on whether a request may ride.
//!
//! Operations are data ([`Op`]), and so are their answers ([`Answer`]): the same operation goes to the model
//! ([`account`]), to the embedded ledger and to Redis, and gets the same answer. A caller submits an operation and
//! awaits a [`Reply`]; an implementation resolves lost replies by itself, so a reply is an answer or the word that
//! the ledger is out of reach, never "maybe".

pub mod account;
pub mod counters;
pub mod embedded;
mod event;
pub mod hold;
pub mod log;
mod ops;
pub mod redis;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use event::{Delta, Deltas, Event, EventKind};
pub use ops::{
    API_HOLDS_MAX, AccountId, AccountState, Act, Answer, Balance, Change, GrantId, GrantKind, GrantState,
    InvalidAccountId, Kept, LIMIT_WINDOW_US, LIVE_GRANTS_MAX, Limit, Limits, Op, Parts, RECORD_KEPT_US, RecordId,
    RecordKey, RecordState, Reserved, Scope, SessionId, TICKET_LIFE_US, TOKENS_MAX, WRITE_OFF_AFTER_US,
};

/// Microseconds since the Unix epoch by the ledger's own clock, which never runs backwards.
pub type Micros = u64;

/// The ledger cannot answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// Out of reach, or it lost its data. What was submitted is still carried out if it is reached again.
    #[error("the ledger is out of reach")]
    Unavailable,
    /// Too many operations wait already.
    #[error("the ledger is busy")]
    Busy,
}

/// An answer that is there, or on its way.
#[derive(Debug)]
pub enum Reply {
    Now(Option<Result<Answer, LedgerError>>),
    Later(oneshot::Receiver<Result<Answer, LedgerError>>),
}

impl Reply {
    pub fn now(result: Result<Answer, LedgerError>) -> Reply {
        Reply::Now(Some(result))
    }

    /// Waits no longer. An answer that has come already, unread, is handed over; for a later one, sending will fail.
    pub fn cancel(mut self) -> Option<Result<Answer, LedgerError>> {
        match &mut self {
            Reply::Now(result) => result.take(),
            Reply::Later(receiver) => {
                receiver.close();
                receiver.try_recv().ok()
            }
        }
    }
}

impl Future for Reply {
    type Output = Result<Answer, LedgerError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Reply::Now(result) => Poll::Ready(result.take().unwrap_or(Err(LedgerError::Unavailable))),
            Reply::Later(receiver) => {
                Pin::new(receiver).poll(context).map(|result| result.unwrap_or(Err(LedgerError::Unavailable)))
            }
        }
    }
}

/// One caller's way to the ledger. Each data-plane worker has its own; the control plane has one.
///
/// * A `Reserve` or `Extend` whose answer finds nobody waiting is undone by the implementation (sending to
///   [`Reply::Later`] fails); one whose answer was delivered and not read is undone by [`hold`].
/// * `Settle`, `Release` and `must` charges are always accepted, and carried out once the ledger is in reach.
/// * An account that is not loaded is loaded by the implementation; `NotLoaded` comes back only from the raw operations
///   `Apply`, `Ticket`, `Load` and `Park`, and for accounts that do not exist.
pub trait Ledger: Send + Sync + std::fmt::Debug + 'static {
    fn submit(&self, op: Op) -> Reply;

    /// Whether new work may be admitted, anybody's.
    fn status(&self) -> Status;

    /// Whether new work of this account may be admitted: what is wrong may be wrong with some accounts only.
    fn status_of(&self, _account: &AccountId) -> Status {
        self.status()
    }
}

/// Where the ledger finds an account that it does not have. The bridge implements it over the store.
#[async_trait::async_trait]
pub trait AccountSource: Send + Sync + 'static {
    /// The account as of its last flushed event; `None` when there is no such user.
    async fn load(&self, account: &AccountId) -> Result<Option<AccountState>, LedgerError>;

    /// A record of the account as of then.
    async fn record(&self, account: &AccountId, record: RecordId) -> Result<Option<RecordState>, LedgerError>;
}

/// Makes each worker its own way to the ledger.
pub trait Connect: Send + Sync + 'static {
    /// Call on the runtime that shall carry the operations: tasks are spawned there, owned by `tasks`. Once `stop` is
    /// cancelled they carry out what was submitted, give back what nobody settled, and end.
    fn connect(&self, tasks: &TaskTracker, stop: CancellationToken) -> SharedLedger;
}

pub type SharedLedger = Arc<dyn Ledger>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Ready,
    /// No acknowledgement for longer than the limit.
    Unavailable,
    /// The event backlog or the memory is full.
    Backlogged,
}

/// How far a limit's state moves for `count` requests or tokens at `per_minute`: whole microseconds, rounded down so
/// that exactly `per_minute` fit into an idle window.
pub fn limit_increment(count: u64, per_minute: u64) -> Micros {
    count.min(TOKENS_MAX).saturating_mul(LIMIT_WINDOW_US).checked_div(per_minute).unwrap_or(0)
}
