//! API holds and kept answers, as the ledger's events left them: a ledger that lost its data finds them here.

use async_trait::async_trait;

use super::StoreResult;
use crate::ledger::{AccountId, AccountState, RecordId, RecordState};

#[async_trait]
pub trait Records {
    /// As [`Store::load_account`](super::Store::load_account), with open holds and without kept answers: those of a day may be
    /// many.
    async fn load_open(&self, account: &AccountId) -> StoreResult<Option<AccountState>>;

    /// A record of the account.
    async fn record(&self, account: &AccountId, id: RecordId) -> StoreResult<Option<RecordState>>;
}
