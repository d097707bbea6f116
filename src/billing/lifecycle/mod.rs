//! What follows from how Stripe's objects stand.
//!
//! Nothing here acts on an event: [`decide`] compares what Stripe says now with what was done for it before, and answers
//! the difference. So any order, any repetition and any loss that is later made good ends in the same account. It is a
//! plain function; reading Stripe and writing the answer are its caller's.

mod claims;
mod draft;
pub mod facts;
mod notices;
mod paid;
mod periods;
pub mod route;
#[cfg(test)]
mod tests;

use self::draft::Draft;
use self::facts::{Facts, Failure};
use super::plans::{Catalog, FREE};
use super::stripe::objects::{CheckoutSession, Subscription, micros};
use crate::ledger::Micros;
use crate::store::UserStatus;
use crate::store::billing::{BillingAccount, CheckoutState, Effect, SubscriptionRow};

/// What a decision stands on besides the account and the facts.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    pub catalog: &'a Catalog,
    pub now: Micros,
    /// Why it is decided now, for the notes on what it leads to.
    pub cause: &'a str,
    /// The type of the event that led here, if one did.
    pub told: Option<&'a str>,
}

/// The difference between what Stripe says and what was done, in the order in which it is to be written.
///
/// # Errors
/// [`Failure::Wrong`] where Stripe says what must not be, such as another amount than a price has.
pub fn decide(context: Context<'_>, account: &BillingAccount, facts: &Facts) -> Result<Vec<Effect>, Failure> {
    let mut draft = Draft::new(context, account.clone());
    draft.customer(facts)?;
    for checkout in &facts.checkouts {
        draft.checkout(checkout, facts);
    }
    for subscription in &facts.subscriptions {
        draft.subscription(subscription)?;
    }
    let mut invoices: Vec<_> = facts.invoices.iter().collect();
    invoices.sort_by_key(|invoice| (invoice.created, invoice.id.clone()));
    for invoice in invoices {
        draft.invoice(invoice)?;
    }
    for payment in &facts.payments {
        draft.payment(payment)?;
    }
    if let Some(charge) = &facts.warning {
        draft.flag(charge);
    }
    if account.user.status == UserStatus::Closed {
        // Nothing is given to whoever left, and nothing can be taken from them.
        return Ok(draft.without_changes());
    }
    draft.settle();
    draft.plan();
    draft.tell(context.told, facts, account);
    Ok(draft.finish())
}

/// Whether a subscription in this state gives its plan.
pub fn is_live(status: &str) -> bool {
    matches!(status, "active" | "trialing" | "past_due" | "paused")
}

/// The subscription that counts: a live one before an ended one, then the newest.
pub fn current(subscriptions: &[SubscriptionRow]) -> Option<&SubscriptionRow> {
    subscriptions.iter().max_by_key(|row| (is_live(&row.status), row.created_at, &row.id))
}

impl Draft<'_> {
    /// One customer a user, ever.
    fn customer(&mut self, facts: &Facts) -> Result<(), Failure> {
        let Some(customer) = facts.customer() else { return Ok(()) };
        match &self.account.customer {
            Some(known) if known == customer => Ok(()),
            Some(known) => Err(Failure::Wrong(format!("{customer} is not this user's customer, which is {known}"))),
            None => {
                self.account.customer = Some(customer.to_owned());
                self.push(Effect::Customer(customer.to_owned()));
                Ok(())
            }
        }
    }

    fn checkout(&mut self, session: &CheckoutSession, facts: &Facts) {
        let paying = |id: &String| facts.payments.iter().find(|payment| payment.intent.id == *id);
        let intent = session.payment_intent.as_ref().and_then(paying).map(|payment| payment.intent.status.as_str());
        let state = match (session.status.as_deref(), session.payment_status.as_str(), intent) {
            (Some("expired"), ..) => CheckoutState::Expired,
            (Some("complete"), "paid" | "no_payment_required", _) => CheckoutState::Paid,
            (Some("complete"), _, Some("requires_payment_method" | "canceled")) => CheckoutState::Failed,
            (Some("complete"), ..) => CheckoutState::Pending,
            _ => CheckoutState::Open,
        };
        self.push(Effect::Checkout { session: session.id.clone(), state });
    }

    fn subscription(&mut self, subscription: &Subscription) -> Result<(), Failure> {
        let known = self.account.subscriptions.iter().find(|row| row.id == subscription.id).cloned();
        let [item] = subscription.items.data.as_slice() else {
            return Err(Failure::Wrong(format!("{} has not one item", subscription.id)));
        };
        let ended = subscription.ended_at.is_some();
        let plan = match (self.catalog.plan_of_price(&item.price.id), &known) {
            (Some(offer), _) => offer.name.to_owned(),
            // An end needs no price.
            (None, Some(known)) if ended => known.plan.clone(),
            (None, None) if ended => return Ok(()),
            (None, _) => return Err(Failure::Wrong(format!("{} is a price of no plan", item.price.id))),
        };
        let period_start = micros(item.current_period_start);
        // What a renewal owes it owes since the period began.
        let due = matches!(subscription.status.as_str(), "past_due" | "unpaid");
        let row = SubscriptionRow {
            id: subscription.id.clone(),
            plan,
            price: item.price.id.clone(),
            item: item.id.clone(),
            status: subscription.status.clone(),
            currency: subscription.currency.clone(),
            period_start: Some(period_start),
            period_end: Some(micros(item.current_period_end)),
            trial_end: subscription.trial_end.map(micros),
            cancel_at_period_end: subscription.cancel_at_period_end,
            cancel_at: subscription.cancel_at.map(micros),
            ended_at: subscription.ended_at.map(micros),
            past_due_since: due.then_some(period_start),
            paused: subscription.pause_collection || subscription.status == "paused",
            schedule: subscription.schedule.clone(),
            created_at: micros(subscription.created),
        };
        if known.as_ref() != Some(&row) {
            self.put_subscription(row);
        }
        if let (Some(start), Some(end)) = (subscription.trial_start, subscription.trial_end) {
            self.trial(subscription, micros(start), micros(end));
        }
        Ok(())
    }

    fn flag(&mut self, charge: &str) {
        if !self.account.flagged {
            self.account.flagged = true;
            self.push(Effect::Flagged(true));
            self.note("billing.flag", format!("an early fraud warning about {charge}"));
        }
    }

    /// The user's plan: that of the subscription that counts; without one, the free one. A plan that an operator gave,
    /// and that no subscription was for, stays.
    fn plan(&mut self) {
        let Some(current) = current(&self.account.subscriptions) else { return };
        let user = &self.account.user;
        let wanted = if is_live(&current.status) {
            current.plan.clone()
        } else if self.account.subscriptions.iter().any(|row| row.plan == user.plan) {
            FREE.to_owned()
        } else {
            return;
        };
        if user.plan != wanted {
            self.push(Effect::Plan(wanted));
        }
    }
}
