//! Which object an event is about. The object is read again and everything follows from how it stands now, so it does not
//! matter which of its events came, how often, or in which order.

use crate::store::billing::EventRow;

/// What to read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Checkout(String),
    Subscription(String),
    Invoice(String),
    Payment(String),
    Charge(String),
    Refund(String),
    Dispute(String),
    Warning(String),
}

/// Event types that change something here, with the kind of their object.
pub const HANDLED: [(&str, &str); 32] = [
    ("checkout.session.completed", "checkout.session"),
    ("checkout.session.async_payment_succeeded", "checkout.session"),
    ("checkout.session.async_payment_failed", "checkout.session"),
    ("checkout.session.expired", "checkout.session"),
    ("customer.subscription.created", "subscription"),
    ("customer.subscription.updated", "subscription"),
    ("customer.subscription.pending_update_applied", "subscription"),
    ("customer.subscription.pending_update_expired", "subscription"),
    ("customer.subscription.paused", "subscription"),
    ("customer.subscription.resumed", "subscription"),
    ("customer.subscription.trial_will_end", "subscription"),
    ("customer.subscription.deleted", "subscription"),
    ("invoice.paid", "invoice"),
    ("invoice.payment_succeeded", "invoice"),
    ("invoice.payment_failed", "invoice"),
    ("invoice.payment_action_required", "invoice"),
    ("invoice.voided", "invoice"),
    ("invoice.marked_uncollectible", "invoice"),
    ("payment_intent.succeeded", "payment_intent"),
    ("charge.refunded", "charge"),
    ("charge.refund.updated", "refund"),
    ("refund.created", "refund"),
    ("refund.updated", "refund"),
    ("refund.failed", "refund"),
    ("charge.dispute.created", "dispute"),
    ("charge.dispute.updated", "dispute"),
    ("charge.dispute.funds_withdrawn", "dispute"),
    ("charge.dispute.funds_reinstated", "dispute"),
    ("charge.dispute.closed", "dispute"),
    ("radar.early_fraud_warning.created", "radar.early_fraud_warning"),
    ("invoice_payment.paid", "invoice_payment"),
    ("invoice.overpaid", "invoice"),
];

/// `None` for events that change nothing here, and for those whose object has no id.
pub fn target(event: &EventRow) -> Option<Target> {
    // Version 2 repeats the older events under their names with a prefix.
    let name = event.event_type.strip_prefix("v1.").unwrap_or(&event.event_type);
    let (_, kind) = HANDLED.iter().find(|(handled, _)| *handled == name)?;
    let id = event.object_id.clone()?;
    Some(match *kind {
        "checkout.session" => Target::Checkout(id),
        "subscription" => Target::Subscription(id),
        "invoice" => Target::Invoice(id),
        "payment_intent" => Target::Payment(id),
        "charge" => Target::Charge(id),
        "refund" => Target::Refund(id),
        "dispute" => Target::Dispute(id),
        "radar.early_fraud_warning" => Target::Warning(id),
        // Its invoice has an event of its own.
        _ => return None,
    })
}
