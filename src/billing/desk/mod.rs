//! What a user asks for: pay, look, change, cancel. Each is a few calls to Stripe; what follows from them comes the same
//! way as everything else, by reading the object again.

mod checkout;
mod history;
mod leaving;
mod subscription;
mod topup;

use std::sync::Arc;

use sha2::{Digest, Sha256};

pub use self::checkout::{Order, Page, Portal, What};
pub use self::history::{HistoryPage, Paid};
pub use self::subscription::{Change, Preview, When};
pub use self::topup::{AutoStanding, Wanted};
use super::lifecycle::facts::Failure;
use super::lifecycle::{current, is_live};
use super::plans::Catalog;
use super::process::Processor;
use super::stripe::form::Form;
use super::stripe::objects::Customer;
use super::stripe::{Client, StripeError};
use super::terms::Terms;
use crate::bridge::spenders::Spenders;
use crate::config::Config;
use crate::ledger::AccountId;
use crate::rollout::Current;
use crate::store::billing::{BillingAccount, Decision, Effect, SubscriptionRow};
use crate::store::{SharedStore, StoreError};

/// Keys are used again for so long: Stripe may forget them after a day.
const KEY_LIFE_US: u64 = 23 * 3600 * 1_000_000;
/// Attempts to write what others change at the same time.
const MAX_ROUNDS: usize = 8;

/// Why it cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    #[error("{0}")]
    Unknown(&'static str),
    /// It is already so, or not now.
    #[error("{0}")]
    Conflict(&'static str),
    #[error("another checkout was begun at the same time; ask again")]
    Busy,
    #[error(transparent)]
    Stripe(#[from] StripeError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Lifecycle(Failure),
}

impl From<Failure> for DeskError {
    fn from(failure: Failure) -> DeskError {
        match failure {
            Failure::Stripe(error) => error.into(),
            Failure::Store(error) => error.into(),
            other => DeskError::Lifecycle(other),
        }
    }
}

/// Does what users ask for.
pub struct Desk {
    pub(super) store: SharedStore,
    pub(super) client: Arc<Client>,
    pub(super) catalog: Catalog,
    pub terms: Terms,
    pub(super) processor: Arc<Processor>,
    pub(super) return_url: String,
    /// Told to listen when somebody asks for automatic top-ups.
    pub(super) spenders: Arc<Spenders>,
}

impl Desk {
    pub fn new(
        config: &Arc<Config>,
        current: Current,
        store: SharedStore,
        client: Arc<Client>,
        processor: Arc<Processor>,
        spenders: Arc<Spenders>,
    ) -> Desk {
        let catalog = Catalog::new(config.clone());
        let terms = Terms::new(store.clone(), current);
        Desk { store, client, catalog, terms, processor, return_url: config.stripe.return_url.clone(), spenders }
    }

    /// Sends a change under the key that is stored for it. `scope` names what is changed, and is the same whenever the
    /// same thing is tried again.
    async fn send<T: serde::de::DeserializeOwned>(&self, scope: &str, path: &str, form: &Form) -> Result<T, DeskError> {
        let key = self.store.call_key(scope, digest(path, form), KEY_LIFE_US).await?;
        let sent = self.client.post(path, form, &key).await;
        if matches!(sent, Err(StripeError::Failed(_) | StripeError::Refused { .. })) {
            // Under this key Stripe would only say the same again.
            self.store.forget_call(scope).await?;
        }
        Ok(sent?)
    }

    /// As [`Desk::send`], for what may be done again later in the same words: the key is let go once it is done.
    async fn send_once<T: serde::de::DeserializeOwned>(
        &self,
        scope: &str,
        path: &str,
        form: &Form,
    ) -> Result<T, DeskError> {
        let sent = self.send(scope, path, form).await?;
        self.store.forget_call(scope).await?;
        Ok(sent)
    }

    /// The user's customer at Stripe, made at the first asking.
    async fn customer(&self, account: &BillingAccount) -> Result<String, DeskError> {
        if let Some(customer) = &account.customer {
            return Ok(customer.clone());
        }
        let id = &account.user.id;
        let form = Form::new()
            .with("metadata[faregate_user]", id)
            .with_some("email", account.user.email.as_ref())
            .with_some("name", account.user.name.as_ref());
        // The same key on every replica: of two at once both get the same customer.
        let made: Customer = self.send(&format!("customer:{id}"), "/v1/customers", &form).await?;
        let mut account = account.clone();
        for _ in 0..MAX_ROUNDS {
            let decision = Decision {
                user: id.clone(),
                version: account.version,
                actor: "checkout".to_owned(),
                effects: vec![Effect::Customer(made.id.clone())],
                event: None,
            };
            if self.store.apply_decision(decision).await?.is_some() {
                return Ok(made.id);
            }
            account = self.store.billing_account(id).await?;
            if let Some(customer) = account.customer {
                return Ok(customer);
            }
        }
        Err(DeskError::Busy)
    }

    /// The subscription that counts, if it is live.
    async fn live(&self, user: &AccountId) -> Result<(BillingAccount, SubscriptionRow), DeskError> {
        let account = self.store.billing_account(user).await?;
        let row = current(&account.subscriptions).filter(|row| is_live(&row.status)).cloned();
        Ok((account, row.ok_or(DeskError::Conflict("there is no subscription"))?))
    }
}

fn digest(path: &str, form: &Form) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update(path.as_bytes());
    hasher.update([0]);
    hasher.update(form.encode().as_bytes());
    let digest: [u8; 32] = hasher.finalize().into();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}
