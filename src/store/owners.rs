//! Who has the store to itself: a process whose ledger is its own memory. Another one that spends from the same store would
//! spend everything twice; the epoch stops the first one then, and this says so before it comes to that.

use async_trait::async_trait;

use super::StoreResult;
use crate::ledger::Micros;

#[async_trait]
pub trait Owners {
    /// Says that `owner` has the store to itself, unless another said so less than `within_us` ago. Answers whether it has it.
    async fn own(&self, owner: u64, within_us: Micros) -> StoreResult<bool>;

    /// Takes that back, where it is still this one's.
    async fn disown(&self, owner: u64) -> StoreResult<()>;
}
