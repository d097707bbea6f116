//! `/v1/subscriptions`.

use serde_json::{Value, json};

use super::api::Call;
use super::collection;
use super::error::Failure;
use super::invoices;
use super::kind::Kind;
use super::lifecycle;
use super::list;
use super::payments::Outcome;
use super::pending;
use super::subscriptions::{self, Start};
use super::updates;
use super::world::{World, int};

const NEW: [&str; 14] = [
    "collection_method",
    "currency",
    "customer",
    "default_payment_method",
    "description",
    "items",
    "metadata",
    "off_session",
    "payment_behavior",
    "payment_settings",
    "proration_behavior",
    "trial_end",
    "trial_period_days",
    "trial_settings",
];

pub(super) fn route(world: &mut World, call: &Call, rest: &[&str]) -> Option<Result<Value, Failure>> {
    Some(match (call.method.as_str(), rest) {
        ("POST", []) => create(world, call),
        ("GET", []) => list_all(world, call),
        ("GET", [id]) => call.retrieve(world, Kind::Subscription, id),
        ("POST", [id]) => updates::update(world, call, id),
        ("DELETE", [id]) => cancel(world, call, id),
        ("POST", [id, "resume"]) => resume(world, call, id),
        _ => return None,
    })
}

/// Ended ones only when asked for, as with Stripe.
fn list_all(world: &World, call: &Call) -> Result<Value, Failure> {
    let mut params = call.params.clone();
    let status = params.text("status").unwrap_or_default().to_owned();
    params.remove("status");
    let (price, filters) = (params.text("price").unwrap_or_default().to_owned(), ["customer", "collection_method"]);
    params.remove("price");
    list::of(world, Kind::Subscription, "/v1/subscriptions", &params, call.live, &filters, |row| {
        let by_status = match status.as_str() {
            "" => row["status"] != "canceled",
            "all" => true,
            "ended" => lifecycle::has_ended(row),
            wanted => row["status"] == wanted,
        };
        let mut items = row["items"]["data"].as_array().into_iter().flatten();
        by_status && (price.is_empty() || items.any(|item| item["price"]["id"] == *price))
    })
}

fn create(world: &mut World, call: &Call) -> Result<Value, Failure> {
    let params = &call.params;
    params.only(&NEW)?;
    let customer = params.need("customer")?.to_owned();
    world.find(Kind::Customer, &customer, call.live, "customer")?;
    let behavior = params
        .one_of(
            "payment_behavior",
            &["allow_incomplete", "default_incomplete", "error_if_incomplete", "pending_if_incomplete"],
        )?
        .unwrap_or("allow_incomplete");
    let default_method = match params.text("default_payment_method") {
        Some(name) => Some(super::payment_methods::attach(world, name, &customer, call.live)?),
        None => None,
    };
    let begin = Start {
        items: subscriptions::priced(world, &params.list("items"), call.live, "items")?,
        metadata: params.metadata("metadata", &Value::Null)?,
        trial_end: subscriptions::trial_end(params, world.now)?,
        missing_method: subscriptions::missing_method(params)?,
        live: call.live,
        default_method,
        customer,
    };
    let has_method = super::payment_methods::default_of(
        world,
        &begin.customer,
        &json!({ "default_payment_method": begin.default_method }),
    );
    if begin.trial_end.is_none() && behavior != "default_incomplete" && has_method.is_none() {
        let message = "This customer has no attached payment source or default payment method.";
        return Err(Failure::state("resource_missing", message));
    }
    let off_session = params.flag("off_session")?.unwrap_or(false);
    if behavior == "default_incomplete" {
        let (id, _) = subscriptions::start(world, &begin);
        return Ok(world.copy(Kind::Subscription, &id));
    }
    let (id, outcome) = subscriptions::start_and_collect(world, &begin, off_session);
    match outcome {
        Outcome::Declined(failure) if behavior == "error_if_incomplete" => {
            lifecycle::end(world, &id, "payment_failed");
            Err(failure)
        }
        _ => Ok(world.copy(Kind::Subscription, &id)),
    }
}

/// Now; with `prorate` and `invoice_now` what was not used is given back to the customer's balance.
fn cancel(world: &mut World, call: &Call, id: &str) -> Result<Value, Failure> {
    call.params.only(&["cancellation_details", "invoice_now", "prorate"])?;
    let subscription = world.find(Kind::Subscription, id, call.live, "id")?.clone();
    if lifecycle::has_ended(&subscription) {
        return Err(Failure::no_such("subscription", id, "id", None));
    }
    if call.params.flag("prorate")?.unwrap_or(false) {
        let mut change =
            super::proration::change(&subscription, Vec::new(), world.now, false, subscription["status"] == "trialing");
        change.lines.retain(|line| line.amount != 0);
        if call.params.flag("invoice_now")?.unwrap_or(false) && !change.lines.is_empty() {
            let period = (subscriptions::period_of(&subscription).0, world.now);
            let draft = subscriptions::draft(world, id, "subscription_update", change.lines, period);
            let invoice = invoices::new(world, &draft);
            invoices::finalize(world, &invoice);
        } else {
            change.lines.iter().for_each(|line| pending::add_invoice_item(world, id, line));
        }
    }
    let details = call.params.sub("cancellation_details");
    world.edit(Kind::Subscription, id, |sub| updates::put_cancellation_details(sub, &details));
    lifecycle::end(world, id, "cancellation_requested");
    Ok(world.copy(Kind::Subscription, id))
}

fn resume(world: &mut World, call: &Call, id: &str) -> Result<Value, Failure> {
    call.params.only(&["billing_cycle_anchor", "proration_behavior"])?;
    let subscription = world.find(Kind::Subscription, id, call.live, "id")?;
    if subscription["status"] != "paused" {
        return Err(Failure::invalid("id", "You can only resume subscriptions with a status of `paused`."));
    }
    lifecycle::resume(world, id);
    Ok(world.copy(Kind::Subscription, id))
}

/// Pays for a change of items now. The outcome says whether the money came; nothing due counts as paid. `waits`: the
/// change is not made yet, so a failure to pay leaves the subscription as it is.
pub(super) fn invoice_change(
    world: &mut World,
    id: &str,
    change: &super::proration::Change,
    off_session: bool,
    waits: bool,
) -> (String, Outcome) {
    let subscription = world.copy(Kind::Subscription, id);
    let period = (subscriptions::period_of(&subscription).0, world.now);
    let mut lines = pending::take_invoice_items(world, id);
    lines.extend(change.lines.iter().cloned());
    let draft = subscriptions::draft(world, id, "subscription_update", lines, period);
    let invoice = invoices::new(world, &draft);
    world.edit(Kind::Invoice, &invoice, |invoice| invoice["_waits"] = waits.into());
    invoices::finalize(world, &invoice);
    let is_due = world.copy(Kind::Invoice, &invoice)["status"] == "open";
    let outcome = if is_due { collection::collect(world, &invoice, None, off_session) } else { Outcome::Paid };
    debug_assert!(int(&world.copy(Kind::Invoice, &invoice), "amount_due") >= 0);
    (invoice, outcome)
}
