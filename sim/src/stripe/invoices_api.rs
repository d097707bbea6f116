//! `/v1/invoices`, `/v1/invoice_payments`.

use serde_json::Value;

use super::api::Call;
use super::collection;
use super::error::Failure;
use super::invoices;
use super::kind::Kind;
use super::list;
use super::params::Params;
use super::payments::Outcome;
use super::pending;
use super::subscriptions::{self, of_invoice, period_of};
use super::updates;
use super::world::{World, int, text};

pub(super) fn route(world: &mut World, call: &Call, rest: &[&str]) -> Option<Result<Value, Failure>> {
    Some(match (call.method.as_str(), rest) {
        ("GET", []) => list_all(world, call),
        ("POST", ["create_preview"]) => preview(world, call),
        ("GET", [id]) => call.retrieve(world, Kind::Invoice, id),
        ("POST", [id]) => update(world, call, id),
        ("GET", [id, "lines"]) => lines(world, call, id),
        ("POST", [id, "pay"]) => pay(world, call, id),
        ("POST", [id, "finalize"]) => finalize(world, call, id),
        ("POST", [id, "void"]) => end(world, call, id, collection::void),
        ("POST", [id, "mark_uncollectible"]) => end(world, call, id, collection::mark_uncollectible),
        _ => return None,
    })
}

/// `payment[payment_intent]` finds the invoice of a charge.
pub(super) fn payments(world: &mut World, call: &Call, rest: &[&str]) -> Option<Result<Value, Failure>> {
    Some(match (call.method.as_str(), rest) {
        ("GET", []) => {
            let intent = call.params.text("payment.payment_intent").map(str::to_owned);
            let charge = call.params.text("payment.charge").and_then(|charge| world.get(Kind::Charge, charge));
            let intent = intent.or_else(|| charge.map(|charge| text(charge, "payment_intent").to_owned()));
            let mut params = call.params.clone();
            params.remove("payment");
            let filters = ["invoice", "status"];
            list::of(world, Kind::InvoicePayment, "/v1/invoice_payments", &params, call.live, &filters, |row| {
                intent.as_deref().is_none_or(|intent| row["payment"]["payment_intent"] == intent)
            })
        }
        ("GET", [id]) => call.retrieve(world, Kind::InvoicePayment, id),
        _ => return None,
    })
}

fn list_all(world: &World, call: &Call) -> Result<Value, Failure> {
    let mut params = call.params.clone();
    let subscription = params.text("subscription").map(str::to_owned);
    params.remove("subscription");
    let filters = ["collection_method", "customer", "status"];
    list::of(world, Kind::Invoice, "/v1/invoices", &params, call.live, &filters, |invoice| {
        subscription.as_deref().is_none_or(|wanted| of_invoice(invoice) == wanted)
    })
}

fn lines(world: &World, call: &Call, id: &str) -> Result<Value, Failure> {
    call.params.only(&list::PAGED)?;
    let invoice = world.find(Kind::Invoice, id, call.live, "id")?;
    let rows: Vec<&Value> = invoice["lines"]["data"].as_array().into_iter().flatten().collect();
    list::page(&rows, &format!("/v1/invoices/{id}/lines"), &call.params)
}

fn update(world: &mut World, call: &Call, id: &str) -> Result<Value, Failure> {
    call.params.only(&["auto_advance", "description", "metadata"])?;
    let old = world.find(Kind::Invoice, id, call.live, "id")?;
    let metadata = call.params.metadata("metadata", &old["metadata"])?;
    let advances = call.params.flag("auto_advance")?;
    world.touch(Kind::Invoice, id, "invoice.updated", |invoice| {
        invoice["metadata"] = metadata;
        if let Some(advances) = advances {
            invoice["auto_advance"] = advances.into();
        }
    });
    Ok(world.copy(Kind::Invoice, id))
}

fn pay(world: &mut World, call: &Call, id: &str) -> Result<Value, Failure> {
    call.params.only(&["forgive", "off_session", "paid_out_of_band", "payment_method"])?;
    let invoice = world.find(Kind::Invoice, id, call.live, "id")?.clone();
    match text(&invoice, "status") {
        "draft" => invoices::finalize(world, id),
        "open" | "uncollectible" => {}
        "paid" => return Err(Failure::state("invoice_already_paid", "Invoice is already paid")),
        _ => return Err(Failure::state("invoice_not_editable", "This invoice can no longer be paid")),
    }
    if call.params.flag("paid_out_of_band")?.unwrap_or(false) {
        super::payments::cancel(world, text(&invoice, "_intent"), "automatic");
        collection::paid(world, id);
        return Ok(world.copy(Kind::Invoice, id));
    }
    let method = match call.params.text("payment_method") {
        Some(name) => Some(super::payment_methods::named(world, name, call.live, "payment_method")?),
        None => None,
    };
    // Stripe counts a call without `off_session` as off session.
    let off_session = call.params.flag("off_session")?.unwrap_or(true);
    match collection::collect(world, id, method.as_deref(), off_session) {
        Outcome::Declined(failure) => Err(failure),
        Outcome::NeedsAction => Err(Failure::card(
            "invoice_payment_intent_requires_action",
            None,
            "This invoice requires additional user action.",
        )),
        _ => Ok(world.copy(Kind::Invoice, id)),
    }
}

fn finalize(world: &mut World, call: &Call, id: &str) -> Result<Value, Failure> {
    call.params.only(&["auto_advance"])?;
    if world.find(Kind::Invoice, id, call.live, "id")?["status"] != "draft" {
        let message = "This invoice is already finalized, you can't re-finalize a non-draft invoice.";
        return Err(Failure::state("invoice_not_editable", message));
    }
    invoices::finalize(world, id);
    Ok(world.copy(Kind::Invoice, id))
}

fn end(world: &mut World, call: &Call, id: &str, how: fn(&mut World, &str)) -> Result<Value, Failure> {
    call.params.only(&[])?;
    let invoice = world.find(Kind::Invoice, id, call.live, "id")?;
    if !matches!(text(invoice, "status"), "open" | "uncollectible") {
        let message = format!("You can only pass in open invoices. This invoice is {}.", text(invoice, "status"));
        return Err(Failure::state("invoice_not_editable", message));
    }
    how(world, id);
    Ok(world.copy(Kind::Invoice, id))
}

/// What a change, or the next renewal, would cost; nothing is kept.
fn preview(world: &mut World, call: &Call) -> Result<Value, Failure> {
    let params = &call.params;
    params.only(&["currency", "customer", "preview_mode", "schedule", "subscription", "subscription_details"])?;
    let wanted = params.text("subscription");
    if let Some(id) = wanted {
        world.find(Kind::Subscription, id, call.live, "subscription")?;
    }
    let Some(id) = wanted.map(str::to_owned) else { return preview_new(world, call) };
    let subscription = world.copy(Kind::Subscription, &id);
    let details = params.sub("subscription_details");
    let now = world.now;
    let change = updates::wanted_change(world, &with_anchor(&details), &subscription)?;
    let always = details.text("proration_behavior") == Some("always_invoice");
    let invoices_now = change.as_ref().is_some_and(|change| change.resets || always);
    let (reason, lines, period) = match &change {
        Some(change) if invoices_now => {
            ("subscription_update", change.lines.clone(), (period_of(&subscription).0, now))
        }
        _ => {
            let mut next = subscription.clone();
            let mut lines = Vec::new();
            if let Some(change) = &change {
                next["items"]["data"] = change.items.clone().into();
                if details.text("proration_behavior") != Some("none") {
                    lines.clone_from(&change.lines);
                }
            }
            let end = period_of(&subscription).1;
            super::lifecycle::set_period(&mut next, int(&subscription, "billing_cycle_anchor"), end);
            lines.extend(subscriptions::lines_of(&next, false));
            ("subscription_cycle", lines, (period_of(&subscription).0, end))
        }
    };
    let draft = subscriptions::draft(world, &id, reason, lines, period);
    let preview = world.id("upcoming_in");
    let mut invoice = invoices::object(world, &preview, &draft);
    if !invoices_now {
        invoice["billing_reason"] = "upcoming".into();
    }
    Ok(invoice)
}

/// The details as an update would take them.
fn with_anchor(details: &Params) -> Params {
    let mut only = details.clone();
    for name in ["cancel_at", "cancel_at_period_end", "cancel_now", "proration_behavior", "trial_end"] {
        only.remove(name);
    }
    only
}

/// Of a subscription that does not exist yet.
fn preview_new(world: &mut World, call: &Call) -> Result<Value, Failure> {
    let customer = call.params.need("customer")?.to_owned();
    world.find(Kind::Customer, &customer, call.live, "customer")?;
    let items = subscriptions::priced(
        world,
        &call.params.list("subscription_details.items"),
        call.live,
        "subscription_details[items]",
    )?;
    let now = world.now;
    let currency = items.first().map_or("", |(price, _)| text(price, "currency")).to_owned();
    let rows: Vec<Value> = items
        .iter()
        .map(|(price, quantity)| {
            subscriptions::item(world, "", price, *quantity, now, subscriptions::end_of_period(price, now, now))
        })
        .collect();
    let lines = subscriptions::lines_of(&serde_json::json!({ "items": { "data": rows } }), false);
    let draft = invoices::Draft {
        customer,
        subscription: String::new(),
        reason: "subscription_create",
        lines,
        period: (now, now),
        metadata: serde_json::json!({}),
        live: call.live,
        currency,
    };
    let id = world.id("upcoming_in");
    Ok(invoices::object(world, &id, &draft))
}

/// `/v1/invoiceitems`: only those made by prorations.
pub(super) fn items(world: &mut World, call: &Call, rest: &[&str]) -> Option<Result<Value, Failure>> {
    let filters = ["customer", "invoice"];
    Some(match (call.method.as_str(), rest) {
        ("GET", []) => {
            list::of(world, Kind::InvoiceItem, "/v1/invoiceitems", &call.params, call.live, &filters, |_| true)
        }
        ("GET", [id]) => call.retrieve(world, Kind::InvoiceItem, id),
        ("DELETE", [id]) => {
            let found = world.find(Kind::InvoiceItem, id, call.live, "id").map(|item| item["invoice"].is_null());
            found.and_then(|waits| {
                if waits {
                    Ok(pending::drop_invoice_item(world, id))
                } else {
                    Err(Failure::invalid("id", "The invoice item is on an invoice."))
                }
            })
        }
        _ => return None,
    })
}
