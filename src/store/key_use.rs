//! What keys are used for: when last, and how much of their budgets.
//!
//! A budget is kept exactly: a request holds its share in the store before it rides, and the share becomes what it cost, or
//! goes back, when it ends. A replica that dies leaves its shares behind; they are settled by the usage rows of their
//! requests, which the ledger's log brings whatever happens.

use async_trait::async_trait;
use uuid::Uuid;

use super::StoreResult;
use crate::credits::Credits;
use crate::ledger::{AccountId, Micros};

/// A share whose replica has said nothing for so long is settled by its request's usage row, where there is one.
pub const HOLD_QUIET_US: Micros = 60 * 1_000_000;
/// Without a usage row after so long the request came to nothing.
pub const HOLD_LOST_US: Micros = 15 * 60 * 1_000_000;

/// A share of a key's budget that is asked for.
#[derive(Debug, Clone)]
pub struct Share {
    /// The request's id. Asked for again under the same id it grows.
    pub id: Uuid,
    pub key: String,
    pub amount: Credits,
    /// Be content with less, down to this; nothing at all where it is zero.
    pub floor: Credits,
    /// The replica.
    pub owner: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    Held(Credits),
    /// What is not used, and how much of that requests in flight hold.
    Exhausted {
        left: Credits,
        held: Credits,
    },
    /// There is no such key, or it has no budget any more.
    Unknown,
}

/// How a share ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spent {
    pub id: Uuid,
    pub key: String,
    /// What the request cost; zero gives the share back.
    pub amount: Credits,
}

/// A key whose budget is used up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpentKey {
    pub id: String,
    pub user: AccountId,
    pub name: String,
    pub limit: Credits,
}

#[async_trait]
pub trait KeyUse: Send + Sync {
    /// Notes when keys were last used.
    async fn touch_keys(&self, keys: &[String], at: Micros) -> StoreResult<()>;
    async fn share_budget(&self, share: Share) -> StoreResult<Shared>;
    /// Settles shares. One that is not there any more was settled by others. Answers the keys that have nothing left.
    async fn settle_shares(&self, spent: &[Spent]) -> StoreResult<Vec<SpentKey>>;
    /// Says that the requests of this replica go on.
    async fn renew_shares(&self, owner: u64) -> StoreResult<()>;
    /// Settles shares of replicas that say nothing any more, at most `limit`. Answers how many.
    async fn sweep_shares(&self, limit: u32) -> StoreResult<u64>;
}

/// How much of what is left a share gets.
pub(super) fn portion(left: i64, share: &Share) -> Option<i64> {
    let amount = share.amount.micro().min(left).max(0);
    (amount >= share.floor.micro()).then_some(amount)
}
