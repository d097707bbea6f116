//! Subscriptions as objects, and how one begins.

use serde_json::{Value, json};

use super::calendar;
use super::error::Failure;
use super::invoices::{self, Draft, Line};
use super::kind::Kind;
use super::params::Params;
use super::payments::Outcome;
use super::world::{Timer, World, int, live, reference, text};

const DAY_S: i64 = 86_400;
/// How long a first payment may be outstanding.
pub(super) const INCOMPLETE_S: i64 = 23 * 3_600;
/// How long before a renewal `invoice.upcoming` is sent.
const UPCOMING_S: i64 = 7 * DAY_S;
/// How long before its end a trial is told of.
const TRIAL_WILL_END_S: i64 = 3 * DAY_S;
/// Longest trial.
const TRIAL_DAYS_MAX: i64 = 730;

/// What begins.
#[derive(Debug, Clone)]
pub(super) struct Start {
    pub customer: String,
    /// Price objects and quantities; at least one.
    pub items: Vec<(Value, i64)>,
    pub metadata: Value,
    pub trial_end: Option<i64>,
    pub default_method: Option<String>,
    /// At the trial's end without a payment method: `create_invoice`, `pause`, `cancel`.
    pub missing_method: &'static str,
    pub live: bool,
}

/// When a trial ends that these parameters ask for, if they do.
///
/// # Errors
/// When it is not in the future, or too far.
pub(super) fn trial_end(params: &Params, now: i64) -> Result<Option<i64>, Failure> {
    if let Some(days) = params.int("trial_period_days")? {
        return match days {
            0 => Ok(None),
            1..=TRIAL_DAYS_MAX => Ok(Some(now + days * DAY_S)),
            _ => Err(Failure::invalid("trial_period_days", "The number of trial days is out of bounds.")),
        };
    }
    if params.text("trial_end") == Some("now") {
        return Ok(None);
    }
    let end = params.int("trial_end")?;
    match end {
        Some(end) if end <= now || end > now + TRIAL_DAYS_MAX * DAY_S => {
            Err(Failure::invalid("trial_end", "Invalid timestamp: must be an integer Unix timestamp in the future."))
        }
        end => Ok(end),
    }
}

/// # Errors
/// On another word.
pub(super) fn missing_method(params: &Params) -> Result<&'static str, Failure> {
    let path = "trial_settings.end_behavior.missing_payment_method";
    Ok(params.one_of(path, &["create_invoice", "pause", "cancel"])?.unwrap_or("create_invoice"))
}

/// The prices of `items` (or `line_items`), which must recur in one currency.
///
/// # Errors
/// When a price is missing, inactive, or does not fit.
pub(super) fn priced(world: &World, items: &[Params], live: bool, param: &str) -> Result<Vec<(Value, i64)>, Failure> {
    let mut priced: Vec<(Value, i64)> = Vec::new();
    for (at, item) in items.iter().enumerate() {
        let name = format!("{param}[{at}][price]");
        let price = world.find(Kind::Price, item.need("price").map_err(|_| Failure::missing(&name))?, live, &name)?;
        if price["recurring"].is_null() {
            let message = "The price specified is set to `type=one_time` but this field only accepts prices with `type=recurring`.";
            return Err(Failure::invalid(&name, message));
        }
        if price["active"] != true {
            return Err(Failure::invalid(&name, "The price specified is inactive."));
        }
        if priced.first().is_some_and(|(first, _)| first["currency"] != price["currency"]) {
            return Err(Failure::invalid(&name, "All prices on a subscription must have the same currency."));
        }
        priced.push((price.clone(), item.int("quantity")?.unwrap_or(1).max(0)));
    }
    if priced.is_empty() { Err(Failure::missing(param)) } else { Ok(priced) }
}

/// Makes the subscription and its first invoice, finalized; what is due is not yet collected. Answers both ids.
pub(super) fn start(world: &mut World, start: &Start) -> (String, String) {
    let id = world.new_id(Kind::Subscription);
    let now = world.now;
    let period_end = start.trial_end.unwrap_or_else(|| first_end(&start.items, now));
    let items: Vec<Value> =
        start.items.iter().map(|(price, quantity)| item(world, &id, price, *quantity, now, period_end)).collect();
    let subscription = object(&id, start, &items, now);
    world.insert(Kind::Subscription, subscription);
    world.tell(Kind::Subscription, &id, "customer.subscription.created");
    let lines = lines_of(&world.copy(Kind::Subscription, &id), start.trial_end.is_some());
    let draft = draft(world, &id, "subscription_create", lines, (now, now));
    let invoice = invoices::new(world, &draft);
    invoices::finalize(world, &invoice);
    schedule_timers(world, &id);
    if world.copy(Kind::Subscription, &id)["status"] == "incomplete" {
        world.at(now + INCOMPLETE_S, Timer::Incomplete(id.clone()));
    }
    (id, invoice)
}

/// As [`start`], then collects by the customer's default method.
pub(super) fn start_and_collect(world: &mut World, begin: &Start, off_session: bool) -> (String, Outcome) {
    let (id, invoice) = start(world, begin);
    let outcome = super::collection::collect(world, &invoice, begin.default_method.as_deref(), off_session);
    (id, outcome)
}

fn first_end(items: &[(Value, i64)], now: i64) -> i64 {
    items.first().map_or(now, |(price, _)| end_of_period(price, now, now))
}

/// The end of a period of this price that begins at `start`.
pub(super) fn end_of_period(price: &Value, anchor: i64, start: i64) -> i64 {
    let recurring = &price["recurring"];
    calendar::period_end(anchor, start, text(recurring, "interval"), int(recurring, "interval_count"))
}

/// A subscription item.
pub(super) fn item(world: &mut World, subscription: &str, price: &Value, quantity: i64, start: i64, end: i64) -> Value {
    let plan = json!({
        "active": price["active"], "amount": price["unit_amount"], "amount_decimal": price["unit_amount_decimal"],
        "billing_scheme": "per_unit", "created": price["created"], "currency": price["currency"], "id": price["id"],
        "interval": price["recurring"]["interval"], "interval_count": price["recurring"]["interval_count"],
        "livemode": price["livemode"], "metadata": price["metadata"], "meter": null, "nickname": price["nickname"],
        "object": "plan", "product": price["product"], "tiers_mode": null, "transform_usage": null,
        "trial_period_days": null, "usage_type": "licensed",
    });
    json!({
        "billing_thresholds": null, "created": world.now, "current_period_end": end, "current_period_start": start,
        "discounts": [], "id": world.id("si"), "metadata": {}, "object": "subscription_item", "plan": plan,
        "price": price, "quantity": quantity, "subscription": subscription, "tax_rates": [],
    })
}

fn object(id: &str, start: &Start, items: &[Value], now: i64) -> Value {
    let currency = start.items.first().map_or(Value::Null, |(price, _)| price["currency"].clone());
    let trial = start.trial_end;
    json!({
        "application": null, "application_fee_percent": null,
        "automatic_tax": { "disabled_reason": null, "enabled": false, "liability": null },
        "billing_cycle_anchor": trial.unwrap_or(now), "billing_cycle_anchor_config": null,
        "billing_mode": { "flexible": { "proration_discounts": "included" }, "type": "flexible", "updated_at": now },
        "billing_schedules": [], "billing_thresholds": null, "cancel_at": null, "cancel_at_period_end": false,
        "canceled_at": null, "cancellation_details": { "comment": null, "feedback": null, "reason": null },
        "collection_method": "charge_automatically", "created": now, "currency": currency, "customer": start.customer,
        "customer_account": null, "days_until_due": null, "default_payment_method": start.default_method,
        "default_source": null, "default_tax_rates": [], "description": null, "discounts": [], "ended_at": null, "id": id,
        "invoice_settings": { "account_tax_ids": null, "custom_fields": null, "description": null, "footer": null, "issuer": { "type": "self" } },
        "items": { "data": items, "has_more": false, "object": "list", "url": format!("/v1/subscription_items?subscription={id}") },
        "latest_invoice": null, "livemode": start.live, "managed_payments": null, "metadata": start.metadata,
        "next_pending_invoice_item_invoice": null, "object": "subscription", "on_behalf_of": null, "pause_collection": null,
        "payment_settings": { "payment_method_options": null, "payment_method_types": null, "save_default_payment_method": "off" },
        "pending_invoice_item_interval": null, "pending_setup_intent": null, "pending_update": null, "schedule": null,
        "start_date": now, "status": if trial.is_some() { "trialing" } else { "incomplete" }, "test_clock": null,
        "transfer_data": null, "trial_end": trial,
        "trial_settings": { "end_behavior": { "missing_payment_method": start.missing_method } },
        "trial_start": trial.map(|_| now),
    })
}

/// The lines of a whole period of a subscription, at its items' own periods.
pub(super) fn lines_of(subscription: &Value, free: bool) -> Vec<Line> {
    let items = subscription["items"]["data"].as_array().into_iter().flatten();
    items
        .map(|item| {
            let (price, quantity) = (item["price"].clone(), int(item, "quantity"));
            let amount = if free { 0 } else { int(&price, "unit_amount") * quantity };
            let (start, end) = (int(item, "current_period_start"), int(item, "current_period_end"));
            let (what, when) = (text(&price, "product"), calendar::date(start));
            let description =
                if free { format!("Trial period for {what}") } else { format!("{quantity} × {what} from {when}") };
            let item = text(item, "id").to_owned();
            Line {
                amount,
                description,
                start,
                end,
                price,
                quantity,
                item,
                proration: false,
                invoice_item: String::new(),
            }
        })
        .collect()
}

/// A draft for a subscription's customer.
pub(super) fn draft(world: &World, id: &str, reason: &'static str, lines: Vec<Line>, period: (i64, i64)) -> Draft {
    let subscription = world.copy(Kind::Subscription, id);
    Draft {
        customer: reference(&subscription, "customer").to_owned(),
        subscription: id.to_owned(),
        reason,
        lines,
        period,
        metadata: json!({}),
        live: live(&subscription),
        currency: text(&subscription, "currency").to_owned(),
    }
}

/// Timers for the period that a subscription is in now.
pub(super) fn schedule_timers(world: &mut World, id: &str) {
    let subscription = world.copy(Kind::Subscription, id);
    let end = period_of(&subscription).1;
    world.at(end, Timer::Period(id.to_owned()));
    if end - UPCOMING_S > world.now {
        world.at(end - UPCOMING_S, Timer::Upcoming(id.to_owned()));
    }
    if let Some(end) = subscription["trial_end"].as_i64().filter(|end| *end > world.now) {
        world.at((end - TRIAL_WILL_END_S).max(world.now), Timer::TrialWillEnd(id.to_owned()));
    }
    if let Some(at) = subscription["cancel_at"].as_i64() {
        world.at(at, Timer::CancelAt(id.to_owned()));
    }
}

/// Start and end of the period of a subscription's first item.
pub(super) fn period_of(subscription: &Value) -> (i64, i64) {
    let item = &subscription["items"]["data"][0];
    (int(item, "current_period_start"), int(item, "current_period_end"))
}

/// The subscription of an invoice; empty for a one-off.
pub(super) fn of_invoice(invoice: &Value) -> &str {
    invoice["parent"]["subscription_details"]["subscription"].as_str().unwrap_or_default()
}
