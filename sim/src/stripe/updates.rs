//! `POST /v1/subscriptions/{id}`: other items, cancellation, trials, pauses.

use serde_json::{Value, json};

use super::api::Call;
use super::error::Failure;
use super::kind::Kind;
use super::lifecycle;
use super::params::Params;
use super::payments::Outcome;
use super::pending;
use super::proration::{self, Change};
use super::subscriptions::{self, period_of};
use super::subscriptions_api::invoice_change;
use super::world::{Timer, World, int, live, text};

const FIELDS: [&str; 21] = [
    "billing_cycle_anchor",
    "cancel_at",
    "cancel_at_period_end",
    "cancellation_details",
    "collection_method",
    "default_payment_method",
    "description",
    "items",
    "metadata",
    "off_session",
    "pause_collection",
    "payment_behavior",
    "payment_settings",
    "proration_behavior",
    "proration_date",
    "trial_end",
    "trial_period_days",
    "trial_settings",
    "invoice_settings",
    "days_until_due",
    "trial_from_plan",
];
/// What `pending_if_incomplete` may be used with.
const PENDING_FIELDS: [&str; 10] = [
    "expand",
    "payment_behavior",
    "proration_behavior",
    "proration_date",
    "billing_cycle_anchor",
    "items",
    "trial_end",
    "trial_from_plan",
    "off_session",
    "discounts",
];

pub(super) fn update(world: &mut World, call: &Call, id: &str) -> Result<Value, Failure> {
    let params = &call.params;
    params.only(&FIELDS)?;
    let subscription = world.find(Kind::Subscription, id, call.live, "id")?.clone();
    if lifecycle::has_ended(&subscription) && !only_metadata(params) {
        let message = "A canceled subscription can only update its cancellation_details and metadata.";
        return Err(Failure::invalid("id", message));
    }
    let behavior = params
        .one_of(
            "payment_behavior",
            &["allow_incomplete", "default_incomplete", "error_if_incomplete", "pending_if_incomplete"],
        )?
        .unwrap_or("allow_incomplete");
    let prorates = params
        .one_of("proration_behavior", &["create_prorations", "always_invoice", "none"])?
        .unwrap_or("create_prorations");
    if behavior == "pending_if_incomplete"
        && let Some(name) = params
            .raw()
            .as_object()
            .and_then(|names| names.keys().find(|name| !PENDING_FIELDS.contains(&name.as_str())))
    {
        let message = format!("When using payment_behavior=pending_if_incomplete, you cannot pass `{name}`.");
        return Err(Failure::invalid(name, message));
    }
    let change = wanted_change(world, params, &subscription)?;
    let fields = plain_fields(world, params, &subscription)?;
    if let Some(change) = change {
        apply_change(world, call, id, change, behavior, prorates)?;
    }
    let before = world.copy(Kind::Subscription, id);
    let after = merged(&before, &fields);
    if after != before {
        world.touch(Kind::Subscription, id, "customer.subscription.updated", |sub| *sub = after);
    }
    end_trial_if_asked(world, params, id);
    timers(world, id, &fields);
    Ok(world.copy(Kind::Subscription, id))
}

fn only_metadata(params: &Params) -> bool {
    params.only(&["metadata", "cancellation_details"]).is_ok()
}

/// The items that these parameters ask for, with their cost; none when nothing about items or period changes.
pub(super) fn wanted_change(
    world: &mut World,
    params: &Params,
    subscription: &Value,
) -> Result<Option<Change>, Failure> {
    let resets = params.one_of("billing_cycle_anchor", &["now", "unchanged"])? == Some("now");
    let wanted = params.list("items");
    if wanted.is_empty() && !resets {
        return Ok(None);
    }
    let id = text(subscription, "id").to_owned();
    let mut items: Vec<Value> = subscription["items"]["data"].as_array().cloned().unwrap_or_default();
    for (at, item) in wanted.iter().enumerate() {
        let price = match item.text("price") {
            Some(_) => subscriptions::priced(world, std::slice::from_ref(item), live(subscription), "items")?.pop(),
            None => None,
        };
        if price.as_ref().is_some_and(|(price, _)| price["currency"] != subscription["currency"]) {
            let message = "The price specified has another currency than the subscription.";
            return Err(Failure::invalid(&format!("items[{at}][price]"), message));
        }
        let Some(item_id) = item.text("id") else {
            let (price, quantity) = price.ok_or_else(|| Failure::missing(&format!("items[{at}][price]")))?;
            if items.iter().any(|old| old["price"]["id"] == price["id"]) {
                let message = "There is already an existing Subscription Item with this price.";
                return Err(Failure::invalid(&format!("items[{at}][price]"), message));
            }
            items.push(subscriptions::item(world, &id, &price, quantity, 0, 0));
            continue;
        };
        let Some(place) = items.iter().position(|old| old["id"] == *item_id) else {
            return Err(Failure::no_such("subscription_item", item_id, &format!("items[{at}][id]"), None));
        };
        if item.flag("deleted")?.unwrap_or(false) {
            items.remove(place);
            continue;
        }
        let quantity = item.int("quantity")?.unwrap_or_else(|| int(&items[place], "quantity"));
        let price = price.map_or_else(|| items[place]["price"].clone(), |(price, _)| price);
        pending::put_price(&mut items[place], &price, quantity);
    }
    if items.is_empty() {
        return Err(Failure::invalid("items", "A subscription must have at least one active item."));
    }
    let at = params.int("proration_date")?.unwrap_or(world.now);
    Ok(Some(proration::change(subscription, items, at, resets, subscription["status"] == "trialing")))
}

fn apply_change(
    world: &mut World,
    call: &Call,
    id: &str,
    change: Change,
    behavior: &str,
    prorates: &str,
) -> Result<(), Failure> {
    let invoices_now = (prorates == "always_invoice" || change.resets) && !change.lines.is_empty();
    if !invoices_now {
        if prorates == "create_prorations" {
            change
                .lines
                .iter()
                .filter(|line| line.amount != 0)
                .for_each(|line| pending::add_invoice_item(world, id, line));
        }
        put(world, id, &change);
        return Ok(());
    }
    let off_session = call.params.flag("off_session")?.unwrap_or(false);
    if behavior == "allow_incomplete" || behavior == "default_incomplete" {
        put(world, id, &change);
        invoice_change(world, id, &change, off_session, false);
        return Ok(());
    }
    let (invoice, outcome) = invoice_change(world, id, &change, off_session, true);
    match outcome {
        Outcome::Paid => put(world, id, &change),
        Outcome::Declined(failure) if behavior == "error_if_incomplete" => {
            super::collection::void(world, &invoice);
            return Err(failure);
        }
        _ => pending::hold(world, id, &change.items, &invoice),
    }
    Ok(())
}

fn put(world: &mut World, id: &str, change: &Change) {
    let now = world.now;
    world.touch(Kind::Subscription, id, "customer.subscription.updated", |sub| {
        sub["items"]["data"] = change.items.clone().into();
        if change.resets {
            sub["billing_cycle_anchor"] = now.into();
        }
    });
    subscriptions::schedule_timers(world, id);
}

/// New values of fields that cost nothing.
fn plain_fields(world: &World, params: &Params, subscription: &Value) -> Result<Value, Failure> {
    let (mut fields, now) = (json!({}), world.now);
    if params.has("metadata") {
        fields["metadata"] = params.metadata("metadata", &subscription["metadata"])?;
    }
    if let Some(description) = params.text("description") {
        fields["description"] = description.into();
    }
    if let Some(method) = params.text("default_payment_method") {
        world.find(Kind::PaymentMethod, method, live(subscription), "default_payment_method")?;
        fields["default_payment_method"] = method.into();
    }
    let end = period_of(subscription).1;
    if let Some(cancels) = params.flag("cancel_at_period_end")? {
        fields["cancel_at_period_end"] = cancels.into();
        fields["cancel_at"] = cancels.then_some(end).into();
        fields["canceled_at"] = cancels.then_some(now).into();
        let reason = cancels.then_some("cancellation_requested");
        fields["cancellation_details"] = json!({ "comment": null, "feedback": null, "reason": reason });
    }
    match params.text("cancel_at") {
        Some("min_period_end" | "max_period_end") => fields["cancel_at"] = end.into(),
        Some(_) => fields["cancel_at"] = params.int("cancel_at")?.into(),
        None if params.unset("cancel_at") => fields["cancel_at"] = Value::Null,
        None => {}
    }
    if params.has("cancellation_details") {
        let mut with = merged(subscription, &fields);
        put_cancellation_details(&mut with, &params.sub("cancellation_details"));
        fields["cancellation_details"] = with["cancellation_details"].clone();
    }
    if params.unset("pause_collection") {
        fields["pause_collection"] = Value::Null;
    } else if params.has("pause_collection") {
        let behavior = params.one_of("pause_collection.behavior", &["keep_as_draft", "mark_uncollectible", "void"])?;
        let behavior = behavior.ok_or_else(|| Failure::missing("pause_collection[behavior]"))?;
        fields["pause_collection"] =
            json!({ "behavior": behavior, "resumes_at": params.int("pause_collection.resumes_at")? });
    }
    if params.has("trial_settings") {
        let behavior = subscriptions::missing_method(params)?;
        fields["trial_settings"] = json!({ "end_behavior": { "missing_payment_method": behavior } });
    }
    if let Some(end) = subscriptions::trial_end(params, now)? {
        fields["trial_end"] = end.into();
        fields["status"] = "trialing".into();
        fields["items"] = subscription["items"].clone();
        for item in fields["items"]["data"].as_array_mut().into_iter().flatten() {
            item["current_period_end"] = end.into();
        }
    }
    Ok(fields)
}

pub(super) fn put_cancellation_details(subscription: &mut Value, details: &Params) {
    for name in ["comment", "feedback"] {
        if let Some(text) = details.text(name) {
            subscription["cancellation_details"][name] = text.into();
        }
    }
}

fn merged(object: &Value, fields: &Value) -> Value {
    let mut merged = object.clone();
    for (name, value) in fields.as_object().into_iter().flatten() {
        merged[name] = value.clone();
    }
    merged
}

/// `trial_end=now` ends a trial at once, as its end would have.
fn end_trial_if_asked(world: &mut World, params: &Params, id: &str) {
    if params.text("trial_end") == Some("now") && world.copy(Kind::Subscription, id)["status"] == "trialing" {
        let now = world.now;
        world.edit(Kind::Subscription, id, |sub| sub["trial_end"] = now.into());
        lifecycle::renew(world, id, true);
    }
}

fn timers(world: &mut World, id: &str, fields: &Value) {
    if !fields["cancel_at"].is_null() || !fields["trial_end"].is_null() {
        subscriptions::schedule_timers(world, id);
    }
    if let Some(at) = fields["pause_collection"]["resumes_at"].as_i64() {
        world.at(at, Timer::ResumeCollection(id.to_owned()));
    }
}
