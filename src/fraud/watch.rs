//! What is looked for in the background: spending out of all proportion, cards that many accounts pay with, what Stripe
//! warns of; and what is left to do about signals.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{DAY_US, Fraud, now};
use crate::ledger::{AccountId, Micros};
use crate::store::StoreResult;
use crate::store::fraud::{self, NewSignal, Spending, Told};

/// Events of Stripe's that one round looks through.
const EVENTS_MAX: usize = 200;
/// An event this fresh may have one before it that is still on its way into the store.
const SETTLED_US: Micros = 10 * 1_000_000;
/// Days before today that tell what is usual for an account, and how many of them must have seen it spend.
const PAST_DAYS: i32 = 14;
const PAST_DAYS_MIN: i64 = 3;

impl Fraud {
    /// Looks every so often, until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let interval = Duration::from_millis(self.current.get().fraud.interval_ms);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(interval) => {}
            }
            // What a round leaves undone the next one does.
            tokio::select! {
                () = stop.cancelled() => return,
                looked = self.look(now()) => if let Err(error) = looked {
                    tracing::warn!(%error, "fraud could not be looked for");
                },
            }
        }
    }

    /// One round, at this time.
    pub async fn look(&self, now: Micros) -> StoreResult<()> {
        let config = self.current.get();
        if !config.fraud.enabled {
            return Ok(());
        }
        self.look_at_spending(now).await?;
        while self.look_at_stripe(now).await? == EVENTS_MAX {}
        self.act(None).await?;
        fraud::forget(&self.store, now.saturating_sub(u64::from(config.fraud.farmed_days) * DAY_US)).await
    }

    async fn look_at_spending(&self, now: Micros) -> StoreResult<()> {
        let config = self.current.get();
        let settings = &config.fraud;
        let today = i32::try_from(now / DAY_US).unwrap_or(0);
        let least = settings.spending_minimum.micro();
        let found = fraud::spending(&self.store, today, today - PAST_DAYS, least).await?;
        let strange = found.into_iter().filter(|spent| is_strange(spent, settings.spending_factor));
        let signals = strange.map(|spent| NewSignal {
            reason: format!(
                "{} credits today, {} on {} days before",
                spent.today / crate::credits::MICRO,
                spent.past / crate::credits::MICRO,
                spent.days
            ),
            user: spent.user,
            signal: "spending",
            source: format!("day {today}"),
            score: i64::from(settings.spending_score),
            at: now,
        });
        self.raise(signals.collect()).await
    }

    /// Answers how many events it looked at.
    async fn look_at_stripe(&self, now: Micros) -> StoreResult<usize> {
        let told = fraud::told(&self.store, now.saturating_sub(SETTLED_US), EVENTS_MAX).await?;
        for event in &told {
            self.look_at(event, now).await?;
        }
        if let Some(last) = told.last() {
            fraud::looked_through(&self.store, last).await?;
        }
        Ok(told.len())
    }

    async fn look_at(&self, event: &Told, now: Micros) -> StoreResult<()> {
        let config = self.current.get();
        let settings = &config.fraud;
        let Some(object) = object(&event.payload) else { return Ok(()) };
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).filter(|text| plain(text));
        if event.kind == "radar.early_fraud_warning.created" {
            let Some(payment) = text("/payment_intent") else { return Ok(()) };
            let Some(user) = self.store.user_of_payment(payment).await? else { return Ok(()) };
            let signal = NewSignal {
                user: user.to_string(),
                signal: "early_fraud_warning",
                source: event.id.clone(),
                score: i64::from(settings.warning_score),
                reason: format!("Stripe warns of fraud in payment {payment}"),
                at: now,
            };
            return self.raise(vec![signal]).await;
        }
        let card = text("/payment_method_details/card/fingerprint").or_else(|| text("/card/fingerprint"));
        let (Some(card), Some(customer)) = (card, text("/customer")) else { return Ok(()) };
        let Some(user) = self.store.user_of_customer(customer).await? else { return Ok(()) };
        self.look_at_card(card, &user, now).await
    }

    async fn look_at_card(&self, card: &str, user: &AccountId, now: Micros) -> StoreResult<()> {
        let config = self.current.get();
        let settings = &config.fraud;
        let users = fraud::paid_with(&self.store, card, user, now).await?;
        if users.len() <= settings.card_accounts as usize {
            return Ok(());
        }
        let reason = format!("{} accounts pay with one card", users.len());
        let signals = users.into_iter().map(|user| NewSignal {
            user,
            signal: "shared_card",
            source: card.to_owned(),
            score: i64::from(settings.card_score),
            reason: reason.clone(),
            at: now,
        });
        self.raise(signals.collect()).await
    }
}

/// Far above the account's own past. Who has none is new, not strange.
fn is_strange(spent: &Spending, factor: u32) -> bool {
    let usual = i128::from(spent.past) * i128::from(factor);
    spent.days >= PAST_DAYS_MIN && i128::from(spent.today) * i128::from(spent.days) > usual
}

fn object(payload: &str) -> Option<Value> {
    let mut event: Value = serde_json::from_str(payload).ok()?;
    event.pointer_mut("/data/object").map(Value::take)
}

fn plain(text: &str) -> bool {
    (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_strange_is_so_by_the_accounts_own_past() {
        let spent = |today, past, days| Spending { user: "u".into(), today, past, days };
        assert!(is_strange(&spent(1_001, 300, 3), 10));
        assert!(!is_strange(&spent(1_000, 300, 3), 10), "ten times as much is not more");
        assert!(!is_strange(&spent(1_000_000, 0, 0), 10), "who is new has no past");
        assert!(!is_strange(&spent(1_000_000, 2, 2), 10));
    }
}
