//! Accounts for the ledger, out of the store.

use crate::ledger::{AccountId, AccountSource, AccountState, LedgerError, RecordId, RecordState};
use crate::store::{SharedStore, StoreError};

pub struct StoreSource {
    store: SharedStore,
    /// Kept answers come with their account.
    whole: bool,
}

impl StoreSource {
    /// For a ledger that asks for kept answers as it needs them.
    pub fn new(store: SharedStore) -> StoreSource {
        StoreSource { store, whole: false }
    }

    /// For a ledger that keeps an account's records beside it.
    pub fn whole(store: SharedStore) -> StoreSource {
        StoreSource { store, whole: true }
    }
}

#[async_trait::async_trait]
impl AccountSource for StoreSource {
    async fn load(&self, account: &AccountId) -> Result<Option<AccountState>, LedgerError> {
        let loaded = match self.whole {
            true => self.store.load_account(account).await,
            false => self.store.load_open(account).await,
        };
        loaded.map_err(|error| unavailable(account, &error))
    }

    async fn record(&self, account: &AccountId, record: RecordId) -> Result<Option<RecordState>, LedgerError> {
        self.store.record(account, record).await.map_err(|error| unavailable(account, &error))
    }
}

fn unavailable(account: &AccountId, error: &StoreError) -> LedgerError {
    tracing::warn!(%account, %error, "an account could not be loaded");
    LedgerError::Unavailable
}
