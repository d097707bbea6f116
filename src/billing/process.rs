//! From an event to what follows from it: read the account, read Stripe, decide, write, and begin again where the
//! account changed in between.

use std::sync::Arc;

use serde_json::Value;

use super::lifecycle::facts::{Facts, Failure, gather, gather_all};
use super::lifecycle::route::{Target, target};
use super::lifecycle::{Context, decide};
use super::plans::Catalog;
use super::stripe::fetch::Fetch;
use crate::bridge::Pusher;
use crate::ledger::{AccountId, Micros};
use crate::store::billing::{BillingAccount, Decision, EventRow};
use crate::store::{ChangeRow, SharedStore, StoreError};

/// Rounds until an account that others keep changing is left for later.
const MAX_ROUNDS: usize = 8;

/// What came of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// Written, and the event marked, in one transaction.
    Processed(AccountId),
    /// It changes nothing here.
    Ignored,
}

/// Works events off. Any number of them, on any number of replicas, may work at once.
pub struct Processor {
    store: SharedStore,
    fetch: Arc<dyn Fetch>,
    catalog: Catalog,
    /// Makes what was written live. `None`: somebody else does.
    pusher: Option<Arc<Pusher>>,
    clock: fn() -> Micros,
}

/// What is read of Stripe for a decision.
enum Reading<'a> {
    Target(&'a Target),
    /// Everything of the customer from this time (Unix seconds) on.
    All {
        customer: &'a str,
        since: i64,
    },
    /// What was read before is enough: the time alone has come.
    Nothing,
}

impl Processor {
    pub fn new(
        store: SharedStore,
        fetch: Arc<dyn Fetch>,
        catalog: Catalog,
        pusher: Option<Arc<Pusher>>,
        clock: fn() -> Micros,
    ) -> Processor {
        Processor { store, fetch, catalog, pusher, clock }
    }

    /// Does what an event leads to, and marks it.
    pub async fn event(&self, event: &EventRow) -> Result<Done, Failure> {
        let Some(target) = target(event) else { return Ok(Done::Ignored) };
        let hint = self.hinted(event).await?;
        let cause = format!("stripe:{}", event.id);
        let user = self.settle(hint, Reading::Target(&target), &cause, Some(event)).await?;
        Ok(Done::Processed(user))
    }

    /// Does what follows from one object of Stripe's.
    pub async fn object(&self, target: &Target, cause: &str) -> Result<AccountId, Failure> {
        self.settle(None, Reading::Target(target), cause, None).await
    }

    /// Compares a user with everything of theirs at Stripe since then (Unix seconds).
    pub async fn compare(&self, user: &AccountId, since: i64, cause: &str) -> Result<(), Failure> {
        let account = self.store.billing_account(user).await?;
        let Some(customer) = account.customer else { return Ok(()) };
        let reading = Reading::All { customer: &customer, since };
        self.settle(Some(user.clone()), reading, cause, None).await.map(drop)
    }

    /// Does what only waited for its time.
    pub async fn time(&self, user: &AccountId) -> Result<(), Failure> {
        if let Some(pusher) = &self.pusher {
            // What lapsed is written off by the ledger first, so that claims can count it.
            if pusher.push(user).await.is_ok() {
                pusher.sweep(user).await;
            }
        }
        self.settle(Some(user.clone()), Reading::Nothing, "clock", None).await.map(drop)
    }

    /// Whose event it looks like, by what is not believed: only to read that account before Stripe is asked.
    async fn hinted(&self, event: &EventRow) -> Result<Option<AccountId>, Failure> {
        let payload: Value = serde_json::from_str(&event.payload).unwrap_or_default();
        match payload.pointer("/data/object/customer").and_then(Value::as_str) {
            Some(customer) => Ok(self.store.user_of_customer(customer).await?),
            None => Ok(None),
        }
    }

    async fn settle(
        &self,
        mut user: Option<AccountId>,
        reading: Reading<'_>,
        cause: &str,
        event: Option<&EventRow>,
    ) -> Result<AccountId, Failure> {
        for _ in 0..MAX_ROUNDS {
            // Read before Stripe is asked: whatever is written in between makes the decision void, so an older snapshot
            // never follows a newer one.
            let account = match &user {
                Some(user) => Some(self.store.billing_account(user).await?),
                None => None,
            };
            let facts = self.read(&reading).await?;
            let account = match (self.user_of(&facts).await?, account) {
                (Some(found), Some(account)) if found == account.user.id => account,
                (None, Some(account)) => account,
                (Some(found), _) => {
                    user = Some(found);
                    continue;
                }
                (None, None) => return Err(Failure::NoUser(about(&reading, &facts))),
            };
            let id = account.user.id.clone();
            if let Some(changes) = self.write(account, &facts, cause, event).await? {
                self.push(&id, &changes).await;
                return Ok(id);
            }
            user = Some(id);
        }
        Err(Failure::Restless)
    }

    async fn read(&self, reading: &Reading<'_>) -> Result<Facts, Failure> {
        match reading {
            Reading::Target(target) => gather(&*self.fetch, &*self.store, target).await,
            Reading::All { customer, since } => gather_all(&*self.fetch, &*self.store, customer, *since).await,
            Reading::Nothing => Ok(Facts::default()),
        }
    }

    /// By Stripe's customer, whom we made; else by what we wrote into the metadata; else by what was bought before.
    async fn user_of(&self, facts: &Facts) -> Result<Option<AccountId>, Failure> {
        if let Some(customer) = facts.customer()
            && let Some(user) = self.store.user_of_customer(customer).await?
        {
            return Ok(Some(user));
        }
        if let Some(user) = facts.named_user()
            && self.store.user(&user).await?.is_some()
        {
            return Ok(Some(user));
        }
        for subscription in &facts.subscriptions {
            if let Some(user) = self.store.user_of_subscription(&subscription.id).await? {
                return Ok(Some(user));
            }
        }
        for payment in &facts.payments {
            if let Some(user) = self.store.user_of_payment(&payment.intent.id).await? {
                return Ok(Some(user));
            }
        }
        Ok(None)
    }

    async fn write(
        &self,
        account: BillingAccount,
        facts: &Facts,
        cause: &str,
        event: Option<&EventRow>,
    ) -> Result<Option<Vec<ChangeRow>>, Failure> {
        let told = event.map(|event| event.event_type.as_str());
        let context = Context { catalog: &self.catalog, now: (self.clock)(), cause, told };
        let effects = decide(context, &account, facts)?;
        if effects.is_empty() && event.is_none() {
            return Ok(Some(Vec::new()));
        }
        let decision = Decision {
            user: account.user.id,
            version: account.version,
            actor: cause.to_owned(),
            effects,
            event: event.map(|event| event.id.clone()),
        };
        match self.store.apply_decision(decision).await {
            Ok(written) => Ok(written),
            // Such as more credits than an account can hold: trying again changes nothing.
            Err(StoreError::Conflict(why)) => Err(Failure::Wrong(why)),
            Err(error) => Err(error.into()),
        }
    }

    async fn push(&self, user: &AccountId, changes: &[ChangeRow]) {
        let Some(pusher) = self.pusher.as_ref().filter(|_| !changes.is_empty()) else { return };
        if let Err(error) = pusher.push(user).await {
            tracing::warn!(%user, %error, "billing changes wait for the ledger");
        }
    }
}

fn about(reading: &Reading<'_>, facts: &Facts) -> String {
    match (reading, facts.customer()) {
        (_, Some(customer)) => customer.to_owned(),
        (Reading::Target(target), None) => format!("{target:?}"),
        _ => "it".to_owned(),
    }
}
