//! What becomes of a finalized invoice: paid, failed and tried again, voided, given up.

use serde_json::Value;

use super::error::Failure;
use super::kind::Kind;
use super::payments::{self, Outcome};
use super::world::{Timer, World, int, reference, text};

const DAY_S: i64 = 86_400;
/// Days from a failed attempt to the next one; after the last it is given up.
const RETRY_DAYS: [i64; 3] = [3, 5, 7];

/// Tries to pay an open invoice with this method, or with the customer's default.
pub(super) fn collect(world: &mut World, id: &str, method: Option<&str>, off_session: bool) -> Outcome {
    let invoice = world.copy(Kind::Invoice, id);
    if invoice["status"] != "open" && invoice["status"] != "uncollectible" {
        return Outcome::Paid;
    }
    let customer = reference(&invoice, "customer");
    let subscription = world.copy(Kind::Subscription, super::subscriptions::of_invoice(&invoice));
    let default = super::payment_methods::default_of(world, customer, &subscription);
    world.edit(Kind::Invoice, id, |invoice| {
        invoice["attempted"] = true.into();
        invoice["attempt_count"] = (int(invoice, "attempt_count") + 1).into();
    });
    let intent = text(&invoice, "_intent").to_owned();
    let Some(method) = method.map(str::to_owned).or(default) else {
        failed(world, id, false);
        let message = "There is no default_payment_method set on this Customer or Invoice. Please set one.";
        return Outcome::Declined(Failure::state("resource_missing", message));
    };
    let outcome = payments::attempt(world, &intent, &method, off_session);
    match &outcome {
        Outcome::Paid => paid(world, id),
        Outcome::Declined(failure) => failed(world, id, failure.code == Some("authentication_required")),
        Outcome::NeedsAction => failed(world, id, true),
        Outcome::Processing => {}
    }
    outcome
}

/// The money is there, or none was due.
pub(super) fn paid(world: &mut World, id: &str) {
    let invoice = world.copy(Kind::Invoice, id);
    if invoice["status"] != "open" && invoice["status"] != "uncollectible" {
        return;
    }
    let (now, due) = (world.now, int(&invoice, "amount_due"));
    world.edit(Kind::InvoicePayment, text(&invoice, "_payment"), |payment| {
        payment["status"] = "paid".into();
        payment["amount_paid"] = due.into();
        payment["status_transitions"]["paid_at"] = now.into();
    });
    world.edit(Kind::Invoice, id, |invoice| {
        invoice["status"] = "paid".into();
        invoice["amount_paid"] = due.into();
        invoice["amount_remaining"] = 0.into();
        invoice["attempted"] = true.into();
        invoice["next_payment_attempt"] = Value::Null;
        invoice["status_transitions"]["paid_at"] = now.into();
    });
    if due > 0 {
        world.tell(Kind::InvoicePayment, text(&invoice, "_payment"), "invoice_payment.paid");
    }
    world.tell(Kind::Invoice, id, "invoice.paid");
    world.tell(Kind::Invoice, id, "invoice.payment_succeeded");
    super::lifecycle::invoice_paid(world, &invoice);
}

/// An attempt failed: tells it, and when the next one is.
pub(super) fn failed(world: &mut World, id: &str, needs_action: bool) {
    let invoice = world.copy(Kind::Invoice, id);
    let attempts = usize::try_from(int(&invoice, "attempt_count").max(1)).unwrap_or(1);
    let retries = invoice["auto_advance"] == true && invoice["billing_reason"] == "subscription_cycle";
    let next = RETRY_DAYS.get(attempts - 1).filter(|_| retries).map(|days| world.now + days * DAY_S);
    world.edit(Kind::Invoice, id, |invoice| invoice["next_payment_attempt"] = next.into());
    if let Some(next) = next {
        world.at(next, Timer::Collect(id.to_owned()));
    }
    world.tell(Kind::Invoice, id, "invoice.payment_failed");
    if needs_action {
        world.tell(Kind::Invoice, id, "invoice.payment_action_required");
    }
    let is_last = retries && next.is_none();
    super::lifecycle::invoice_failed(world, &invoice, is_last);
}

pub(super) fn void(world: &mut World, id: &str) {
    let now = world.now;
    end_unpaid(world, id, "void", "voided_at", now);
    world.tell(Kind::Invoice, id, "invoice.voided");
}

pub(super) fn mark_uncollectible(world: &mut World, id: &str) {
    let now = world.now;
    end_unpaid(world, id, "uncollectible", "marked_uncollectible_at", now);
    world.tell(Kind::Invoice, id, "invoice.marked_uncollectible");
}

fn end_unpaid(world: &mut World, id: &str, status: &str, transition: &str, now: i64) {
    let invoice = world.copy(Kind::Invoice, id);
    if status == "void" {
        payments::cancel(world, text(&invoice, "_intent"), "void_invoice");
        world.edit(Kind::InvoicePayment, text(&invoice, "_payment"), |payment| {
            payment["status"] = "canceled".into();
            payment["status_transitions"]["canceled_at"] = now.into();
        });
    }
    world.edit(Kind::Invoice, id, |invoice| {
        invoice["status"] = status.into();
        invoice["next_payment_attempt"] = Value::Null;
        invoice["auto_advance"] = false.into();
        invoice["status_transitions"][transition] = now.into();
    });
}

/// The timer of a next attempt; ignored when the invoice has moved on.
pub(super) fn retry(world: &mut World, id: &str) {
    let invoice = world.copy(Kind::Invoice, id);
    if invoice["status"] == "open" && invoice["next_payment_attempt"] == world.now {
        collect(world, id, None, true);
    }
}
