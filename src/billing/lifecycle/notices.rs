//! What the user is told of a decision, in the transaction that makes it so.

use serde_json::json;

use super::draft::Draft;
use super::facts::Facts;
use crate::store::billing::{BillingAccount, Effect, SubscriptionRow};
use crate::store::notifications::NoticeKind;

impl Draft<'_> {
    /// `told`: the type of the event that led here, as only that knows of a failed attempt or of a trial's last days.
    /// `before`: the account as it was.
    pub(super) fn tell(&mut self, told: Option<&str>, facts: &Facts, before: &BillingAccount) {
        match told.map(|name| name.strip_prefix("v1.").unwrap_or(name)) {
            Some("invoice.payment_failed") => self.tell_of_payment(NoticeKind::PaymentFailed, facts),
            Some("invoice.payment_action_required") => self.tell_of_payment(NoticeKind::PaymentActionRequired, facts),
            Some("customer.subscription.trial_will_end") => self.tell_of_trial(),
            _ => {}
        }
        self.tell_of_changes(before);
        self.tell_of_freezes(before);
    }

    fn notify(&mut self, kind: NoticeKind, data: serde_json::Value, dedupe_key: String) {
        self.push(Effect::Notify { kind, data, dedupe_key });
    }

    /// An event that comes after the payment says nothing any more.
    fn tell_of_payment(&mut self, kind: NoticeKind, facts: &Facts) {
        for invoice in facts.invoices.iter().filter(|invoice| invoice.status.as_deref() == Some("open")) {
            let data = json!({
                "source": "invoice",
                "invoice": invoice.id,
                "number": invoice.number,
                "amount": invoice.amount_due,
                "currency": invoice.currency,
            });
            self.notify(kind, data, format!("{}:{}:{}", kind.name(), invoice.id, invoice.attempt_count));
        }
    }

    fn tell_of_trial(&mut self) {
        let ending = |row: &&SubscriptionRow| row.status == "trialing" && row.trial_end.is_some();
        for row in self.account.subscriptions.iter().filter(ending).cloned().collect::<Vec<_>>() {
            let ends = row.trial_end.unwrap_or_default();
            let data = json!({ "plan": row.plan, "trial_end": time(ends) });
            self.notify(NoticeKind::TrialEnding, data, format!("trial_ending:{}:{ends}", row.id));
        }
    }

    fn tell_of_changes(&mut self, before: &BillingAccount) {
        let shown = |row: &SubscriptionRow| {
            (row.price.clone(), row.status.clone(), row.cancel_at_period_end, row.paused, row.schedule.clone())
        };
        for row in self.account.subscriptions.clone() {
            let known = before.subscriptions.iter().find(|known| known.id == row.id);
            if row.status.starts_with("incomplete") || known.is_some_and(|known| shown(known) == shown(&row)) {
                continue;
            }
            let data = json!({
                "plan": row.plan,
                "status": row.status,
                "cancel_at_period_end": row.cancel_at_period_end,
                "current_period_end": row.period_end.and_then(time),
            });
            // Each decision is made on a version of its own.
            let key = format!("subscription_changed:{}:{}", row.id, before.version);
            self.notify(NoticeKind::SubscriptionChanged, data, key);
        }
    }

    /// What was paid for is frozen while it is disputed, or a fraud warning stands.
    fn tell_of_freezes(&mut self, before: &BillingAccount) {
        let disputed = |account: &BillingAccount| account.purchases.iter().any(|purchase| purchase.frozen);
        let is_frozen = |account: &BillingAccount| account.flagged || disputed(account);
        let (kind, reason) = match (is_frozen(before), is_frozen(&self.account)) {
            (false, true) if self.account.flagged => (NoticeKind::AccountFrozen, "fraud_warning"),
            (false, true) => (NoticeKind::AccountFrozen, "dispute"),
            (true, false) => (NoticeKind::AccountUnfrozen, "resolved"),
            _ => return,
        };
        self.notify(kind, json!({ "reason": reason }), format!("{}:billing:{}", kind.name(), before.version));
    }
}

fn time(micros: u64) -> Option<String> {
    let at = jiff::Timestamp::from_microsecond(i64::try_from(micros).ok()?).ok()?;
    Some(at.to_string())
}
