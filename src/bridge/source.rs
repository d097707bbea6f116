//! Accounts for the ledger, out of the store.

use crate::ledger::{AccountId, AccountSource, AccountState, LedgerError};
use crate::store::SharedStore;

pub struct StoreSource {
    store: SharedStore,
}

impl StoreSource {
    pub fn new(store: SharedStore) -> StoreSource {
        StoreSource { store }
    }
}

#[async_trait::async_trait]
impl AccountSource for StoreSource {
    async fn load(&self, account: &AccountId) -> Result<Option<AccountState>, LedgerError> {
        self.store.load_account(account).await.map_err(|error| {
            tracing::warn!(%account, %error, "an account could not be loaded");
            LedgerError::Unavailable
        })
    }
}
