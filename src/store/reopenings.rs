//! What the store knows of a shard that loses its data: where its log was last read, and what every session had written.

use async_trait::async_trait;

use super::{Cursor, StoreResult};

/// Where a shard's cursor stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    pub cursor: Cursor,
    /// The head of the entry at the cursor; empty at the beginning of an epoch. A log that has another entry there is
    /// of another history.
    pub mark: Vec<u8>,
    /// The epoch before is being closed: what survived of it is still being written, and the counter counts the pieces.
    pub reopening: bool,
}

/// A session of a ledger, and the number of its last batch that is in the store.
pub type SessionNumber = (u64, u64);

/// Stands as the last batch of a session whose worker charges anew what it lost: what comes back of it later would be charged
/// twice.
pub const SESSION_CLOSED: u64 = i64::MAX as u64;

/// The store's part in opening a shard anew.
#[async_trait]
pub trait Reopenings {
    async fn standing(&self, shard: u32) -> StoreResult<Standing>;

    /// Raises the epoch above `epoch` and marks it as being reopened, unless somebody has. From then on no flush of the
    /// old epoch succeeds. Answers where the cursor stands now.
    async fn begin_reopening(&self, shard: u32, epoch: u64) -> StoreResult<Standing>;

    /// All that survived is written: the cursor goes to the beginning of `epoch`. `CursorMoved` where the reopening is
    /// another one, or not at the piece `counter`.
    async fn end_reopening(&self, shard: u32, at: Cursor) -> StoreResult<()>;

    /// The last batch of each of these sessions that is in the store. Sessions that are not known are left out.
    async fn session_numbers(&self, shard: u32, sessions: Vec<u64>) -> StoreResult<Vec<SessionNumber>>;

    /// Raises these sessions' numbers to [`SESSION_CLOSED`], beyond any batch, so that no reopening writes more of them.
    /// Where they are that already, nothing happens. `CursorMoved` where one has another last batch than is given; 0
    /// stands for none.
    async fn close_sessions(&self, shard: u32, known: Vec<SessionNumber>) -> StoreResult<()>;
}
