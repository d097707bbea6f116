//! `/v1/subscription_schedules`: prices that change at the end of a period.

use serde_json::{Value, json};

use super::api::Call;
use super::error::Failure;
use super::kind::Kind;
use super::list;
use super::params::Params;
use super::subscriptions::{self, period_of};
use super::world::{World, int, reference, text};

pub(super) fn route(world: &mut World, call: &Call, rest: &[&str]) -> Option<Result<Value, Failure>> {
    let url = "/v1/subscription_schedules";
    Some(match (call.method.as_str(), rest) {
        ("POST", []) => create(world, call),
        ("GET", []) => list::of(world, Kind::Schedule, url, &call.params, call.live, &["customer"], |_| true),
        ("GET", [id]) => call.retrieve(world, Kind::Schedule, id),
        ("POST", [id]) => update(world, call, id),
        ("POST", [id, "release"]) => close(world, call, id, "released"),
        ("POST", [id, "cancel"]) => close(world, call, id, "canceled"),
        _ => return None,
    })
}

/// Only `from_subscription`: its first phase is the period the subscription is in.
fn create(world: &mut World, call: &Call) -> Result<Value, Failure> {
    call.params.only(&["from_subscription", "metadata"])?;
    let subscription_id = call.params.need("from_subscription")?.to_owned();
    let subscription = world.find(Kind::Subscription, &subscription_id, call.live, "from_subscription")?.clone();
    if !subscription["schedule"].is_null() {
        let message = "You cannot migrate a subscription that is already attached to a schedule.";
        return Err(Failure::invalid("from_subscription", message));
    }
    let metadata = call.params.metadata("metadata", &Value::Null)?;
    let id = world.new_id(Kind::Schedule);
    let (start, end) = period_of(&subscription);
    let items: Vec<Value> = subscription["items"]["data"].as_array().into_iter().flatten().map(phase_item).collect();
    let settings = json!({
        "application_fee_percent": null, "automatic_tax": { "disabled_reason": null, "enabled": false, "liability": null },
        "billing_cycle_anchor": "automatic", "billing_thresholds": null, "collection_method": "charge_automatically",
        "default_payment_method": null, "description": null,
        "invoice_settings": { "account_tax_ids": null, "custom_fields": null, "days_until_due": null, "description": null, "footer": null, "issuer": { "type": "self" } },
        "on_behalf_of": null, "transfer_data": null,
    });
    let schedule = json!({
        "application": null, "billing_mode": subscription["billing_mode"], "canceled_at": null, "completed_at": null,
        "created": world.now, "current_phase": { "end_date": end, "start_date": start }, "customer": subscription["customer"],
        "customer_account": null, "default_settings": settings, "end_behavior": "release", "id": id,
        "livemode": subscription["livemode"], "metadata": metadata, "object": "subscription_schedule",
        "phases": [phase(&subscription, items, start, end)], "released_at": null, "released_subscription": null,
        "status": "active", "subscription": subscription_id, "test_clock": null,
    });
    world.insert(Kind::Schedule, schedule);
    world.edit(Kind::Subscription, &subscription_id, |sub| sub["schedule"] = id.as_str().into());
    world.tell(Kind::Schedule, &id, "subscription_schedule.created");
    Ok(world.copy(Kind::Schedule, &id))
}

fn phase_item(item: &Value) -> Value {
    json!({
        "billing_thresholds": null, "discounts": [], "metadata": {}, "plan": item["price"]["id"], "price": item["price"]["id"],
        "quantity": item["quantity"], "tax_rates": [],
    })
}

fn phase(subscription: &Value, items: Vec<Value>, start: i64, end: i64) -> Value {
    json!({
        "add_invoice_items": [], "application_fee_percent": null, "billing_cycle_anchor": null, "billing_thresholds": null,
        "collection_method": null, "currency": subscription["currency"], "default_payment_method": null,
        "default_tax_rates": [], "description": null, "discounts": [], "end_date": end, "invoice_settings": null,
        "items": items, "metadata": {}, "on_behalf_of": null, "proration_behavior": "none", "start_date": start,
        "transfer_data": null, "trial_end": null,
    })
}

fn update(world: &mut World, call: &Call, id: &str) -> Result<Value, Failure> {
    let params = &call.params;
    params.only(&["end_behavior", "metadata", "phases", "proration_behavior"])?;
    let schedule = world.find(Kind::Schedule, id, call.live, "id")?.clone();
    if schedule["status"] != "active" {
        let message = format!(
            "You cannot update a subscription schedule that is currently in the `{}` status.",
            text(&schedule, "status")
        );
        return Err(Failure::invalid("id", message));
    }
    let subscription = world.copy(Kind::Subscription, reference(&schedule, "subscription"));
    let end_behavior = params.one_of("end_behavior", &["cancel", "release"])?;
    let metadata = params.metadata("metadata", &schedule["metadata"])?;
    let phases = phases(world, params, &subscription, &schedule)?;
    world.touch(Kind::Schedule, id, "subscription_schedule.updated", |schedule| {
        if !phases.is_empty() {
            schedule["phases"] = phases.into();
        }
        if let Some(behavior) = end_behavior {
            schedule["end_behavior"] = behavior.into();
        }
        schedule["metadata"] = metadata;
    });
    Ok(world.copy(Kind::Schedule, id))
}

fn phases(world: &World, params: &Params, subscription: &Value, schedule: &Value) -> Result<Vec<Value>, Failure> {
    let is_live = subscription["livemode"] == true;
    let mut phases: Vec<Value> = Vec::new();
    for (at, wanted) in params.list("phases").iter().enumerate() {
        let prices = subscriptions::priced(world, &wanted.list("items"), is_live, &format!("phases[{at}][items]"))?;
        let start = match (phases.last(), wanted.int("start_date")?) {
            (Some(before), _) => int(before, "end_date"),
            (None, Some(start)) => start,
            (None, None) => int(&schedule["current_phase"], "start_date"),
        };
        let (first, _) = &prices[0];
        let cycles = wanted.int("iterations")?.or(wanted.int("duration.interval_count")?).unwrap_or(1).clamp(1, 120);
        let counted = (0..cycles).fold(start, |from, _| subscriptions::end_of_period(first, from, from));
        let end = wanted.int("end_date")?.unwrap_or(counted);
        if end <= start {
            return Err(Failure::invalid(&format!("phases[{at}][end_date]"), "A phase must end after it starts."));
        }
        let items = prices.iter().map(|(price, quantity)| phase_item(&json!({ "price": price, "quantity": quantity })));
        phases.push(phase(subscription, items.collect(), start, end));
    }
    Ok(phases)
}

fn close(world: &mut World, call: &Call, id: &str, status: &str) -> Result<Value, Failure> {
    call.params.only(&["invoice_now", "preserve_cancel_date", "prorate"])?;
    let schedule = world.find(Kind::Schedule, id, call.live, "id")?.clone();
    if schedule["status"] != "active" {
        return Err(Failure::invalid("id", "The subscription schedule is no longer active."));
    }
    finish(world, id, status);
    if status == "canceled" {
        super::lifecycle::end(world, reference(&schedule, "subscription"), "cancellation_requested");
    }
    Ok(world.copy(Kind::Schedule, id))
}

fn finish(world: &mut World, id: &str, status: &str) {
    let (now, subscription) = (world.now, reference(&world.copy(Kind::Schedule, id), "subscription").to_owned());
    world.edit(Kind::Schedule, id, |schedule| {
        schedule["status"] = status.into();
        schedule["current_phase"] = Value::Null;
        match status {
            "released" => {
                schedule["released_at"] = now.into();
                schedule["released_subscription"] = schedule["subscription"].take();
            }
            "canceled" => schedule["canceled_at"] = now.into(),
            _ => schedule["completed_at"] = now.into(),
        }
    });
    world.edit(Kind::Subscription, &subscription, |sub| sub["schedule"] = Value::Null);
    world.tell(Kind::Schedule, id, &format!("subscription_schedule.{status}"));
}

/// The prices of the phase that begins now, when a schedule has one.
pub(super) fn next_prices(world: &World, subscription: &str) -> Option<Vec<(Value, i64)>> {
    let schedule = world.get(Kind::Schedule, reference(world.get(Kind::Subscription, subscription)?, "schedule"))?;
    let phase = schedule["phases"].as_array()?.iter().find(|phase| phase["start_date"] == world.now)?;
    let items = phase["items"].as_array()?.iter();
    Some(items.map(|item| (world.copy(Kind::Price, text(item, "price")), int(item, "quantity"))).collect())
}

/// After a renewal: the schedule is in its next phase, or done.
pub(super) fn phase_passed(world: &mut World, subscription: &str) {
    let id = reference(&world.copy(Kind::Subscription, subscription), "schedule").to_owned();
    let schedule = world.copy(Kind::Schedule, &id);
    let now = world.now;
    let mut phases = schedule["phases"].as_array().into_iter().flatten();
    if schedule["status"] != "active" {
        return;
    }
    match phases.find(|phase| int(phase, "start_date") <= now && now < int(phase, "end_date")) {
        Some(phase) => {
            let current = json!({ "end_date": phase["end_date"], "start_date": phase["start_date"] });
            if schedule["current_phase"] != current {
                world.touch(Kind::Schedule, &id, "subscription_schedule.updated", |schedule| {
                    schedule["current_phase"] = current
                });
            }
        }
        None if schedule["end_behavior"] == "cancel" => {
            finish(world, &id, "completed");
            super::lifecycle::end(world, subscription, "cancellation_requested");
        }
        None => finish(world, &id, "released"),
    }
}

pub(super) fn subscription_ended(world: &mut World, subscription: &str) {
    let id = reference(&world.copy(Kind::Subscription, subscription), "schedule").to_owned();
    if world.copy(Kind::Schedule, &id)["status"] == "active" {
        finish(world, &id, "canceled");
    }
}
