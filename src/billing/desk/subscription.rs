//! A subscription's changes: dearer at once, with the difference paid; cheaper at the period's end; ended, or kept.

use serde::Deserialize;
use serde_json::Value;

use super::{Desk, DeskError};
use crate::billing::lifecycle::route::Target;
use crate::billing::plans::PlanOffer;
use crate::billing::stripe::fetch::{Fetch, path};
use crate::billing::stripe::form::Form;
use crate::billing::stripe::objects::{Invoice, Subscription};
use crate::billing::terms::Seen;
use crate::config::Interval;
use crate::ledger::AccountId;
use crate::store::billing::SubscriptionRow;

/// Another plan, or another interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub plan: String,
    /// As it is, when not given.
    pub interval: Option<Interval>,
}

/// When a change takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Now,
    PeriodEnd,
}

/// What a change would cost now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    pub when: When,
    /// In the currency's smallest unit.
    pub amount_due: i64,
    pub currency: String,
}

#[derive(Deserialize)]
struct Schedule {
    id: String,
    phases: Vec<Phase>,
}

#[derive(Deserialize)]
struct Phase {
    start_date: i64,
    end_date: i64,
}

impl Desk {
    /// Changes the plan: a dearer one at once, a cheaper one at the period's end.
    pub async fn change(&self, user: &AccountId, change: &Change) -> Result<When, DeskError> {
        let (_, row) = self.live(user).await?;
        let seen = self.terms.of(user, &change.plan).await?;
        let offer = self.wanted(seen.as_ref(), &row, change)?;
        self.release(&row).await?;
        let when = self.when(&row, &offer);
        match when {
            _ if offer.price.id == row.price => {}
            When::Now => self.upgrade(&row, &offer.price.id).await?,
            When::PeriodEnd => self.downgrade(&row, &offer.price.id).await?,
        }
        self.look(&row.id).await?;
        Ok(when)
    }

    /// What the change would cost, by Stripe's own reckoning.
    pub async fn preview(&self, user: &AccountId, change: &Change) -> Result<Preview, DeskError> {
        let (account, row) = self.live(user).await?;
        let seen = self.terms.of(user, &change.plan).await?;
        let offer = self.wanted(seen.as_ref(), &row, change)?;
        let when = self.when(&row, &offer);
        let currency = offer.price.currency.clone();
        if when == When::PeriodEnd || offer.price.id == row.price {
            return Ok(Preview { when, amount_due: 0, currency });
        }
        let form = Form::new()
            .with_some("customer", account.customer)
            .with("subscription", &row.id)
            .with("subscription_details[items][0][id]", &row.item)
            .with("subscription_details[items][0][price]", &offer.price.id)
            .with("subscription_details[proration_behavior]", "always_invoice");
        let invoice: Invoice = self.client.preview("/v1/invoices/create_preview", &form).await?;
        Ok(Preview { when, amount_due: invoice.amount_due, currency: invoice.currency })
    }

    /// Ends the subscription.
    pub async fn cancel(&self, user: &AccountId, when: When) -> Result<(), DeskError> {
        let (_, row) = self.live(user).await?;
        self.release(&row).await?;
        let url = path("subscriptions", &row.id);
        match when {
            When::Now => {
                let _: Subscription = self.client.delete(&url, &Form::new()).await?;
            }
            When::PeriodEnd => {
                let form = Form::new().with("cancel_at_period_end", true);
                let _: Subscription = self.send_once(&format!("cancel:{}", row.id), &url, &form).await?;
            }
        }
        self.look(&row.id).await
    }

    /// Keeps a subscription that was to end or to change, or wakes one that is paused.
    pub async fn resume(&self, user: &AccountId) -> Result<(), DeskError> {
        let (_, row) = self.live(user).await?;
        self.release(&row).await?;
        let url = path("subscriptions", &row.id);
        if row.status == "paused" {
            let form = Form::new().with("billing_cycle_anchor", "now");
            let _: Subscription =
                self.send_once(&format!("resume:{}", row.id), &format!("{url}/resume"), &form).await?;
        } else if row.cancel_at_period_end || row.cancel_at.is_some() {
            let form = Form::new().with("cancel_at_period_end", false);
            let _: Subscription = self.send_once(&format!("keep:{}", row.id), &url, &form).await?;
        }
        self.look(&row.id).await
    }

    fn wanted<'a>(
        &'a self,
        seen: Option<&Seen>,
        row: &SubscriptionRow,
        change: &Change,
    ) -> Result<PlanOffer<'a>, DeskError> {
        let now = self.catalog.plan_of_price(&row.price).map(|offer| offer.price.interval);
        let interval = change.interval.or(now).unwrap_or(Interval::Month);
        let offer = self.catalog.plan_offer(seen, &change.plan, Some(&row.currency), interval);
        offer.ok_or(DeskError::Unknown("no such plan is sold in the subscription's currency and this interval"))
    }

    /// A trial changes at once: nothing was paid.
    fn when(&self, row: &SubscriptionRow, wanted: &PlanOffer<'_>) -> When {
        let Some(now) = self.catalog.plan_of_price(&row.price) else { return When::PeriodEnd };
        let monthly = |offer: &PlanOffer<'_>| i128::from(offer.price.amount) * 12 / i128::from(offer.months());
        let longer = wanted.months() > now.months();
        let dearer = monthly(wanted) > monthly(&now) || (longer && wanted.name == now.name);
        if dearer || row.status == "trialing" { When::Now } else { When::PeriodEnd }
    }

    async fn upgrade(&self, row: &SubscriptionRow, price: &str) -> Result<(), DeskError> {
        let form = Form::new()
            .with("items[0][id]", &row.item)
            .with("items[0][price]", price)
            .with("proration_behavior", "always_invoice")
            // Where the payment fails the plan stays as it was.
            .with("payment_behavior", "pending_if_incomplete");
        let url = path("subscriptions", &row.id);
        let changed: Subscription = self.send_once(&format!("upgrade:{}", row.id), &url, &form).await?;
        if let Some(invoice) = changed.latest_invoice {
            self.processor.object(&Target::Invoice(invoice), "upgrade").await?;
        }
        Ok(())
    }

    async fn downgrade(&self, row: &SubscriptionRow, price: &str) -> Result<(), DeskError> {
        if row.cancel_at_period_end {
            return Err(DeskError::Conflict("the subscription ends with its period: keep it first"));
        }
        let form = Form::new().with("from_subscription", &row.id);
        let schedule: Schedule =
            self.send_once(&format!("schedule:{}", row.id), "/v1/subscription_schedules", &form).await?;
        let Some(phase) = schedule.phases.first() else {
            return Err(DeskError::Conflict("the subscription cannot be scheduled"));
        };
        let form = Form::new()
            .with("end_behavior", "release")
            .with("proration_behavior", "none")
            .with("phases[0][items][0][price]", &row.price)
            .with("phases[0][items][0][quantity]", 1)
            .with("phases[0][start_date]", phase.start_date)
            .with("phases[0][end_date]", phase.end_date)
            .with("phases[1][items][0][price]", price)
            .with("phases[1][items][0][quantity]", 1)
            .with("phases[1][proration_behavior]", "none");
        let url = path("subscription_schedules", &schedule.id);
        let _: Value = self.send_once(&format!("phases:{}", schedule.id), &url, &form).await?;
        Ok(())
    }

    /// Lets go of a downgrade that waits.
    async fn release(&self, row: &SubscriptionRow) -> Result<(), DeskError> {
        let Some(schedule) = &row.schedule else { return Ok(()) };
        let url = format!("{}/release", path("subscription_schedules", schedule));
        let _: Value = self.send_once(&format!("release:{schedule}"), &url, &Form::new()).await?;
        Ok(())
    }

    /// Does at once what the change leads to; its events will find it done.
    async fn look(&self, subscription: &str) -> Result<(), DeskError> {
        self.processor.object(&Target::Subscription(subscription.to_owned()), "subscription").await?;
        Ok(())
    }

    /// The plan that a scheduled downgrade leads to.
    pub async fn scheduled(&self, row: &SubscriptionRow) -> Result<Option<String>, DeskError> {
        let Some(schedule) = &row.schedule else { return Ok(None) };
        let found: Value = self.client.get(&path("subscription_schedules", schedule), &Form::new()).await?;
        let last = found.get("phases").and_then(Value::as_array).and_then(|phases| phases.last());
        let price = last.and_then(|phase| phase.pointer("/items/0/price")).and_then(Value::as_str);
        let next = price.filter(|price| *price != row.price).and_then(|price| self.catalog.plan_of_price(price));
        Ok(next.map(|offer| offer.name.to_owned()))
    }

    /// An invoice of the subscription that waits to be paid, with the page to pay it.
    pub async fn open_invoice(&self, row: &SubscriptionRow) -> Result<Option<Invoice>, DeskError> {
        if row.past_due_since.is_none() {
            return Ok(None);
        }
        let subscription = self.client.subscription(&row.id).await?;
        let Some(invoice) = subscription.latest_invoice else { return Ok(None) };
        let invoice = self.client.invoice(&invoice).await?;
        Ok(Some(invoice).filter(|invoice| invoice.status.as_deref() == Some("open")))
    }
}
