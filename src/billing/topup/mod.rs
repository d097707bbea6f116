//! Packs that are bought by themselves when little is left.
//!
//! Who spent is told by the flusher ([`Spenders`]); what it missed is found by looking at the stored balances. A purchase
//! is written down before Stripe is asked ([`Topup`]), and only while it runs alone: then the balance is read again, so
//! that what another replica bought a moment ago counts. What is paid becomes credits as every pack does, by the payment's
//! own event or at once; the same decision marks the purchase as paid.

mod charge;

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::inbox::now;
use super::lifecycle::facts::Failure;
use super::plans::{Catalog, PackOffer};
use super::process::Processor;
use super::stripe::{Client, StripeError};
use crate::bridge::Pusher;
use crate::bridge::push::PushError;
use crate::bridge::spenders::Spenders;
use crate::ledger::{AccountId, Micros};
use crate::store::billing::BillingAccount;
use crate::store::topups::{AutoTopup, Begun, Topup};
use crate::store::{SharedStore, StoreError, UserStatus};
use crate::telemetry::Metrics;

/// How long spenders are gathered: a busy account is looked at so often at most.
const GATHER: Duration = Duration::from_millis(250);
/// How often it is looked for what nobody told of.
const LOOK: Duration = Duration::from_secs(5);
/// Accounts looked at, and purchases looked after, in one round.
const BATCH: u32 = 100;
/// At once.
const AT_ONCE: usize = 4;
/// A purchase that runs for so long is looked after by whoever is there: longer than a call to Stripe can take.
const LOOK_AFTER_US: u64 = 60 * 1_000_000;

/// Looks at a purchase that goes on begin so far apart, and double up to an hour.
const FIRST_LOOK_US: u64 = 30 * 1_000_000;
const LONGEST_LOOK_US: u64 = 3600 * 1_000_000;

/// Why a purchase did not come about now.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ledger(#[from] PushError),
    #[error(transparent)]
    Stripe(#[from] StripeError),
    #[error(transparent)]
    Lifecycle(#[from] Failure),
}

/// Buys for users who asked for it.
pub struct Buyer {
    pub store: SharedStore,
    pub pusher: Arc<Pusher>,
    pub client: Arc<Client>,
    pub processor: Arc<Processor>,
    pub catalog: Catalog,
    pub spenders: Arc<Spenders>,
    pub metrics: Metrics,
}

impl Buyer {
    /// Until `stop`. Every replica does.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let work = async { tokio::join!(self.follow(), self.look()) };
        // A purchase that is under way at the stop is looked after by whoever runs next.
        tokio::select! {
            _ = work => {}
            () = stop.cancelled() => {}
        }
    }

    /// Goes after those who are told to have spent.
    async fn follow(&self) {
        loop {
            self.spenders.told().await;
            let users = self.spenders.take();
            match self.store.topup_wanted(&users).await {
                Ok(users) => self.consider_all(users).await,
                Err(error) => tracing::warn!(%error, "automatic top-ups could not be read"),
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    /// Finds what nobody told of, and purchases that somebody left.
    async fn look(&self) {
        // In turn: those for whom nothing can be bought now do not stand in the way of the others.
        let mut after = None;
        loop {
            match self.store.any_auto_topup().await {
                Ok(any) => self.spenders.open(any),
                Err(error) => tracing::warn!(%error, "automatic top-ups could not be read"),
            }
            match self.store.topup_short(after.as_ref(), BATCH).await {
                Ok(users) => {
                    after = users.last().filter(|_| users.len() >= BATCH as usize).cloned();
                    self.consider_all(users).await;
                }
                Err(error) => tracing::warn!(%error, "automatic top-ups could not be read"),
            }
            match self.store.claim_topups(BATCH, LOOK_AFTER_US).await {
                Ok(left) => stream::iter(left).for_each_concurrent(AT_ONCE, |topup| self.look_after(topup)).await,
                Err(error) => tracing::warn!(%error, "automatic top-ups could not be read"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn consider_all(&self, users: Vec<AccountId>) {
        stream::iter(users).for_each_concurrent(AT_ONCE, |user| self.consider(user)).await;
    }

    async fn consider(&self, user: AccountId) {
        if let Err(error) = self.buy_if_short(&user).await {
            tracing::warn!(%user, %error, "an automatic top-up waits");
        }
    }

    async fn look_after(&self, topup: Topup) {
        let Err(error) = self.recover(&topup).await else { return };
        tracing::warn!(user = %topup.user, topup = %topup.id, %error, "an automatic top-up's outcome is not known yet");
        // Less and less often: what does not mend itself is not asked for every minute.
        if let Err(error) = self.store.look_at_topup(topup.id, next_look(topup.looks)).await {
            tracing::warn!(topup = %topup.id, %error, "when an automatic top-up is looked at next could not be written");
        }
    }

    async fn buy_if_short(&self, user: &AccountId) -> Result<(), Trouble> {
        let Some(auto) = self.store.auto_topup(user).await?.filter(|auto| auto.enabled && !auto.stopped) else {
            return Ok(());
        };
        if !self.is_short(user, auto.terms.threshold).await? {
            return Ok(());
        }
        let account = self.store.billing_account(user).await?;
        let offer = self.catalog.pack_offer(&auto.terms.pack, Some(&auto.terms.currency));
        let (true, Some(customer), Some(offer)) = (may_pay(&account), account.customer, offer) else {
            return Ok(());
        };
        let topup = topup(&auto, customer, offer);
        match self.store.begin_topup(topup.clone(), month(topup.created_at), LOOK_AFTER_US).await? {
            Begun::NotNow => Ok(()),
            Begun::Capped => {
                self.count("capped");
                tracing::info!(%user, "an automatic top-up would go beyond the month's cap");
                Ok(())
            }
            Begun::Begun => self.pay(&topup).await,
        }
    }

    /// Whether the user still asks for it, may be charged, and needs it: asked last thing before Stripe is. What another
    /// replica bought until now is in the ledger, and read there.
    async fn is_wanted(&self, user: &AccountId) -> Result<bool, Trouble> {
        let Some(auto) = self.store.auto_topup(user).await?.filter(|auto| auto.enabled && !auto.stopped) else {
            return Ok(false);
        };
        Ok(may_pay(&self.store.billing_account(user).await?) && self.is_short(user, auto.terms.threshold).await?)
    }

    /// Whether less is left than the threshold, with all that was bought so far. What is held is not spent yet.
    async fn is_short(&self, user: &AccountId, threshold: i64) -> Result<bool, Trouble> {
        self.pusher.push(user).await?;
        let balance = self.pusher.balance(user).await?;
        let left = i128::from(balance.available.micro()) + i128::from(balance.held.micro());
        Ok(!balance.frozen && left - i128::from(balance.debt.micro()) < i128::from(threshold))
    }

    fn count(&self, result: &str) {
        self.metrics.auto_topups.with_label_values(&[result]).inc();
    }
}

/// Nothing is charged while something is wrong with the account or with what it paid before.
fn may_pay(account: &BillingAccount) -> bool {
    let disputed = account.purchases.iter().any(|purchase| purchase.frozen);
    account.user.status == UserStatus::Active && !account.flagged && !disputed
}

fn topup(auto: &AutoTopup, customer: String, offer: PackOffer<'_>) -> Topup {
    Topup {
        id: Uuid::now_v7(),
        user: auto.terms.user.clone(),
        customer,
        pack: offer.name.to_owned(),
        price: offer.price.id.clone(),
        currency: offer.price.currency.clone(),
        amount: offer.price.amount,
        payment_method: None,
        looks: 0,
        created_at: now(),
    }
}

/// When one that was looked at so often is looked at again.
fn next_look(looks: u32) -> Micros {
    now().saturating_add(FIRST_LOOK_US.checked_shl(looks.min(16)).unwrap_or(LONGEST_LOOK_US).min(LONGEST_LOOK_US))
}

/// The calendar month (UTC) of a time: when it began, and when the next one does.
pub fn month(at: Micros) -> (Micros, Micros) {
    use jiff::ToSpan;
    use jiff::tz::TimeZone;
    let bounds = || {
        let at = jiff::Timestamp::from_microsecond(i64::try_from(at).ok()?).ok()?.to_zoned(TimeZone::UTC);
        let first = at.first_of_month().ok()?.start_of_day().ok()?;
        let next = first.checked_add(1.month()).ok()?;
        let micros = |time: &jiff::Zoned| u64::try_from(time.timestamp().as_microsecond()).ok();
        Some((micros(&first)?, micros(&next)?))
    };
    bounds().unwrap_or((0, Micros::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_is_the_calendars() {
        let at = |text: &str| u64::try_from(text.parse::<jiff::Timestamp>().unwrap().as_microsecond()).unwrap();
        let (december, january) = (at("2026-12-01T00:00:00Z"), at("2027-01-01T00:00:00Z"));
        assert_eq!(month(december), (december, january));
        assert_eq!(month(january - 1), (december, january));
        assert_eq!(month(january).0, january);
    }
}
