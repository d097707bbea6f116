//! What happens to a subscription by itself: renewals, trial ends, payments that come or fail, its end.

use serde_json::{Value, json};

use super::collection;
use super::invoices;
use super::kind::Kind;
use super::pending;
use super::schedules;
use super::subscriptions::{self, of_invoice, period_of};
use super::world::{AfterRetries, Timer, World, int, live, reference, text};

/// How long an automatic invoice stays a draft.
const DRAFT_S: i64 = 3_600;

const ENDED: [&str; 2] = ["canceled", "incomplete_expired"];

pub(super) fn has_ended(subscription: &Value) -> bool {
    ENDED.contains(&text(subscription, "status"))
}

/// The end of a period: the end of the subscription, or the next one.
pub(super) fn period_over(world: &mut World, id: &str) {
    let subscription = world.copy(Kind::Subscription, id);
    let (_, end) = period_of(&subscription);
    if has_ended(&subscription) || end != world.now || matches!(text(&subscription, "status"), "incomplete" | "paused")
    {
        return;
    }
    if subscription["cancel_at_period_end"] == true || subscription["cancel_at"] == world.now {
        return self::end(world, id, "cancellation_requested");
    }
    let ends_trial = subscription["status"] == "trialing";
    if ends_trial && no_method(world, &subscription) {
        match text(&subscription["trial_settings"]["end_behavior"], "missing_payment_method") {
            "cancel" => return self::end(world, id, "payment_failed"),
            "pause" => return pause(world, id),
            _ => {}
        }
    }
    renew(world, id, ends_trial);
}

fn no_method(world: &World, subscription: &Value) -> bool {
    super::payment_methods::default_of(world, reference(subscription, "customer"), subscription).is_none()
}

fn pause(world: &mut World, id: &str) {
    world.touch(Kind::Subscription, id, "customer.subscription.updated", |sub| sub["status"] = "paused".into());
    world.tell(Kind::Subscription, id, "customer.subscription.paused");
}

/// Moves the items to their next period and makes its invoice.
pub(super) fn renew(world: &mut World, id: &str, ends_trial: bool) {
    let before = world.copy(Kind::Subscription, id);
    let old_period = period_of(&before);
    let prices = schedules::next_prices(world, id);
    let start = world.now;
    world.touch(Kind::Subscription, id, "customer.subscription.updated", |sub| {
        if let Some(prices) = &prices {
            pending::put_prices(sub, prices);
        }
        let anchor = if ends_trial { start } else { int(sub, "billing_cycle_anchor") };
        sub["billing_cycle_anchor"] = anchor.into();
        set_period(sub, anchor, start);
        if ends_trial {
            sub["status"] = "active".into();
        }
    });
    let mut lines = pending::take_invoice_items(world, id);
    lines.extend(subscriptions::lines_of(&world.copy(Kind::Subscription, id), false));
    let draft = subscriptions::draft(world, id, "subscription_cycle", lines, (old_period.0, start));
    let invoice = invoices::new(world, &draft);
    subscriptions::schedule_timers(world, id);
    schedules::phase_passed(world, id);
    hold_or_finalize(world, &before, &invoice);
}

/// Gives every item the period that begins at `start`.
pub(super) fn set_period(subscription: &mut Value, anchor: i64, start: i64) {
    for item in subscription["items"]["data"].as_array_mut().into_iter().flatten() {
        item["current_period_start"] = start.into();
        item["current_period_end"] = subscriptions::end_of_period(&item["price"], anchor, start).into();
    }
}

fn hold_or_finalize(world: &mut World, subscription: &Value, invoice: &str) {
    let behavior = text(&subscription["pause_collection"], "behavior");
    let keeps_draft = behavior == "keep_as_draft" || subscription["status"] == "unpaid";
    if keeps_draft {
        return world.edit(Kind::Invoice, invoice, |invoice| invoice["auto_advance"] = false.into());
    }
    let at = world.now + DRAFT_S;
    world.edit(Kind::Invoice, invoice, |invoice| {
        invoice["automatically_finalizes_at"] = at.into();
        invoice["_pause"] = behavior.into();
    });
    world.at(at, Timer::Finalize(invoice.to_owned()));
}

/// The hour as a draft is over.
pub(super) fn finalize_draft(world: &mut World, id: &str) {
    let invoice = world.copy(Kind::Invoice, id);
    if invoice["status"] != "draft" || invoice["auto_advance"] != true {
        return;
    }
    invoices::finalize(world, id);
    match text(&invoice, "_pause") {
        "void" => collection::void(world, id),
        "mark_uncollectible" => collection::mark_uncollectible(world, id),
        _ => {
            collection::collect(world, id, None, true);
        }
    }
}

/// `invoice.upcoming`, whose invoice has no id.
pub(super) fn upcoming(world: &mut World, id: &str) {
    let subscription = world.copy(Kind::Subscription, id);
    let (start, end) = period_of(&subscription);
    // Every change of a subscription sets its timers anew, and one notice is enough.
    let told = subscription["_upcoming"] == end;
    let renews = !told && !has_ended(&subscription) && subscription["cancel_at_period_end"] != true && end > world.now;
    if !renews || subscription["status"] == "paused" {
        return;
    }
    world.edit(Kind::Subscription, id, |sub| sub["_upcoming"] = end.into());
    let mut next = subscription.clone();
    set_period(&mut next, int(&subscription, "billing_cycle_anchor"), end);
    let lines = subscriptions::lines_of(&next, false);
    let draft = subscriptions::draft(world, id, "subscription_cycle", lines, (start, end));
    let mut invoice = invoices::object(world, "upcoming", &draft);
    invoice["billing_reason"] = "upcoming".into();
    invoice["lines"]["url"] = "/v1/invoices/upcoming/lines".into();
    if let Some(fields) = invoice.as_object_mut() {
        fields.remove("id");
    }
    world.emit("invoice.upcoming", &invoice, None);
}

pub(super) fn trial_will_end(world: &mut World, id: &str) {
    let subscription = world.copy(Kind::Subscription, id);
    if subscription["status"] == "trialing" && subscription["_trial_told"] != subscription["trial_end"] {
        world.edit(Kind::Subscription, id, |sub| sub["_trial_told"] = sub["trial_end"].clone());
        world.tell(Kind::Subscription, id, "customer.subscription.trial_will_end");
    }
}

/// At `cancel_at`.
pub(super) fn cancel_at(world: &mut World, id: &str) {
    let subscription = world.copy(Kind::Subscription, id);
    if !has_ended(&subscription) && subscription["cancel_at"] == world.now {
        end(world, id, "cancellation_requested");
    }
}

/// Ends a subscription now; its open first invoices are voided.
pub(super) fn end(world: &mut World, id: &str, reason: &str) {
    let subscription = world.copy(Kind::Subscription, id);
    if has_ended(&subscription) {
        return;
    }
    let now = world.now;
    let status = if subscription["status"] == "incomplete" { "incomplete_expired" } else { "canceled" };
    let change = |sub: &mut Value| {
        sub["status"] = status.into();
        sub["ended_at"] = now.into();
        if sub["canceled_at"].is_null() {
            sub["canceled_at"] = now.into();
        }
        if sub["cancellation_details"]["reason"].is_null() {
            sub["cancellation_details"]["reason"] = reason.into();
        }
        sub["pending_update"] = Value::Null;
    };
    if status == "canceled" {
        world.edit(Kind::Subscription, id, change);
        world.tell(Kind::Subscription, id, "customer.subscription.deleted");
    } else {
        world.touch(Kind::Subscription, id, "customer.subscription.updated", change);
        for invoice in world.ids(Kind::Invoice, |invoice| of_invoice(invoice) == id && invoice["status"] == "open") {
            collection::void(world, &invoice);
        }
    }
    // What would still be collected by itself is not: the customer is gone.
    for invoice in world.ids(Kind::Invoice, |invoice| of_invoice(invoice) == id) {
        world.edit(Kind::Invoice, &invoice, |invoice| invoice["auto_advance"] = false.into());
    }
    schedules::subscription_ended(world, id);
}

/// A first payment that never came.
pub(super) fn incomplete_expired(world: &mut World, id: &str) {
    if world.copy(Kind::Subscription, id)["status"] == "incomplete" {
        end(world, id, "payment_failed");
    }
}

/// An invoice of a subscription was paid.
pub(super) fn invoice_paid(world: &mut World, invoice: &Value) {
    let id = of_invoice(invoice);
    let subscription = world.copy(Kind::Subscription, id);
    if subscription.is_null() {
        return;
    }
    if subscription["pending_update"]["_invoice"] == invoice["id"] {
        pending::applied(world, id);
    }
    let is_latest = reference(&subscription, "latest_invoice") == text(invoice, "id");
    if is_latest && matches!(text(&subscription, "status"), "incomplete" | "past_due" | "unpaid") {
        world.touch(Kind::Subscription, id, "customer.subscription.updated", |sub| sub["status"] = "active".into());
    }
}

/// An attempt to pay an invoice of a subscription failed.
pub(super) fn invoice_failed(world: &mut World, invoice: &Value, is_last: bool) {
    let id = of_invoice(invoice);
    let subscription = world.copy(Kind::Subscription, id);
    if subscription.is_null() || has_ended(&subscription) || invoice["_waits"] == true {
        return;
    }
    if subscription["status"] == "active" && invoice["billing_reason"] != "subscription_create" {
        world.touch(Kind::Subscription, id, "customer.subscription.updated", |sub| sub["status"] = "past_due".into());
    }
    if !is_last {
        return;
    }
    match world.after_retries {
        AfterRetries::Cancel => end(world, id, "payment_failed"),
        AfterRetries::Unpaid => {
            world.touch(Kind::Subscription, id, "customer.subscription.updated", |sub| sub["status"] = "unpaid".into());
        }
        AfterRetries::PastDue => {}
    }
}

/// Collection was paused until now.
pub(super) fn resume_collection(world: &mut World, id: &str) {
    let subscription = world.copy(Kind::Subscription, id);
    if !has_ended(&subscription) && subscription["pause_collection"]["resumes_at"] == world.now {
        world.touch(Kind::Subscription, id, "customer.subscription.updated", |sub| {
            sub["pause_collection"] = Value::Null
        });
    }
}

/// A paused subscription starts a new period; answers false when its invoice could not be paid.
pub(super) fn resume(world: &mut World, id: &str) -> bool {
    let now = world.now;
    let mut next = world.copy(Kind::Subscription, id);
    set_period(&mut next, now, now);
    let lines = subscriptions::lines_of(&next, false);
    let draft = subscriptions::draft(world, id, "subscription_update", lines, (now, now));
    let invoice = invoices::new(world, &draft);
    invoices::finalize(world, &invoice);
    collection::collect(world, &invoice, None, true);
    if world.copy(Kind::Invoice, &invoice)["status"] != "paid" {
        return false;
    }
    world.touch(Kind::Subscription, id, "customer.subscription.updated", |sub| {
        sub["status"] = "active".into();
        sub["billing_cycle_anchor"] = now.into();
        set_period(sub, now, now);
    });
    world.tell(Kind::Subscription, id, "customer.subscription.resumed");
    subscriptions::schedule_timers(world, id);
    true
}

/// A one-off invoice for a checkout that asked for one, paid by the intent that the checkout made.
pub(super) fn receipt(world: &mut World, draft: &invoices::Draft, intent: &str) -> String {
    let id = invoices::new(world, draft);
    let now = world.now;
    let amount: i64 = draft.lines.iter().map(|line| line.amount).sum();
    let payment = world.new_id(Kind::InvoicePayment);
    let row = json!({
        "amount_paid": amount, "amount_requested": amount, "created": now, "currency": draft.currency, "id": payment,
        "invoice": id, "is_default": true, "livemode": draft.live, "object": "invoice_payment",
        "payment": { "payment_intent": intent, "type": "payment_intent" }, "status": "paid",
        "status_transitions": { "canceled_at": null, "paid_at": now },
    });
    world.insert(Kind::InvoicePayment, row);
    world.edit(Kind::Invoice, &id, |invoice| {
        invoice["status"] = "open".into();
        invoice["amount_due"] = amount.into();
        invoice["number"] = format!("SIM-{}", invoice["id"].as_str().unwrap_or_default()).into();
        invoice["_payment"] = payment.into();
        invoice["_intent"] = intent.into();
        invoice["status_transitions"]["finalized_at"] = now.into();
    });
    world.tell(Kind::Invoice, &id, "invoice.finalized");
    collection::paid(world, &id);
    debug_assert!(live(&world.copy(Kind::Invoice, &id)) == draft.live);
    id
}
