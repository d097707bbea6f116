//! `/v1/payment_intents` and `/v1/charges`.

use serde_json::Value;

use super::api::Call;
use super::error::Failure;
use super::kind::Kind;
use super::list;
use super::payments::{self, Outcome, Payment};
use super::world::{World, reference, text};

const NEW: [&str; 16] = [
    "amount",
    "automatic_payment_methods",
    "capture_method",
    "confirm",
    "currency",
    "customer",
    "description",
    "error_on_requires_action",
    "metadata",
    "off_session",
    "payment_method",
    "payment_method_types",
    "receipt_email",
    "return_url",
    "setup_future_usage",
    "statement_descriptor_suffix",
];

pub(super) fn route(world: &mut World, call: &Call, rest: &[&str]) -> Option<Result<Value, Failure>> {
    let url = "/v1/payment_intents";
    Some(match (call.method.as_str(), rest) {
        ("POST", []) => create(world, call),
        ("GET", []) => list::of(world, Kind::PaymentIntent, url, &call.params, call.live, &["customer"], |_| true),
        ("GET", [id]) => call.retrieve(world, Kind::PaymentIntent, id),
        ("POST", [id]) => update(world, call, id),
        ("POST", [id, "confirm"]) => confirm_call(world, call, id),
        ("POST", [id, "cancel"]) => cancel(world, call, id),
        _ => return None,
    })
}

pub(super) fn charges(world: &mut World, call: &Call, rest: &[&str]) -> Option<Result<Value, Failure>> {
    let filters = ["customer", "payment_intent"];
    Some(match (call.method.as_str(), rest) {
        ("GET", []) => list::of(world, Kind::Charge, "/v1/charges", &call.params, call.live, &filters, |_| true),
        ("GET", [id]) => call.retrieve(world, Kind::Charge, id),
        ("GET", [id, "refunds"]) => {
            let url = format!("/v1/charges/{id}/refunds");
            list::of(world, Kind::Refund, &url, &call.params, call.live, &[], |refund| refund["charge"] == **id)
        }
        _ => return None,
    })
}

fn create(world: &mut World, call: &Call) -> Result<Value, Failure> {
    let params = &call.params;
    params.only(&NEW)?;
    let amount = params.int("amount")?.ok_or_else(|| Failure::missing("amount"))?;
    if amount < 1 {
        return Err(Failure::invalid("amount", "This value must be greater than or equal to 1."));
    }
    let currency = params.need("currency")?.to_lowercase();
    let metadata = params.metadata("metadata", &Value::Null)?;
    let customer = params.text("customer").unwrap_or_default().to_owned();
    if !customer.is_empty() {
        world.find(Kind::Customer, &customer, call.live, "customer")?;
    }
    let confirms = params.flag("confirm")?.unwrap_or(false);
    let off_session = params.flag("off_session")?.unwrap_or(false);
    if off_session && !confirms {
        return Err(Failure::invalid("off_session", "You can only set off_session when confirm is true."));
    }
    let method = match params.text("payment_method") {
        Some(name) => Some(payments_method(world, name, &customer, call.live)?),
        None if confirms => return Err(Failure::missing("payment_method")),
        None => None,
    };
    let payment = Payment {
        customer,
        amount,
        currency,
        metadata,
        live: call.live,
        invoice: String::new(),
        description: params.text("description").map(str::to_owned),
    };
    let id = payments::new_intent(world, &payment);
    let usage = params.text("setup_future_usage").map(str::to_owned);
    world.edit(Kind::PaymentIntent, &id, |intent| {
        intent["setup_future_usage"] = usage.into();
        if let Some(method) = &method {
            intent["payment_method"] = method.as_str().into();
            intent["status"] = "requires_confirmation".into();
        }
    });
    let Some(method) = method.filter(|_| confirms) else { return Ok(world.copy(Kind::PaymentIntent, &id)) };
    confirm(world, call, &id, &method, off_session)
}

/// A method of this customer, or one that nobody owns.
fn payments_method(world: &mut World, name: &str, customer: &str, live: bool) -> Result<String, Failure> {
    let id = super::payment_methods::named(world, name, live, "payment_method")?;
    let owner = reference(&world.copy(Kind::PaymentMethod, &id), "customer").to_owned();
    if !owner.is_empty() && owner != customer {
        let message = format!("The provided PaymentMethod ({id}) belongs to another customer.");
        return Err(Failure::invalid("payment_method", message));
    }
    Ok(id)
}

fn confirm(world: &mut World, call: &Call, id: &str, method: &str, off_session: bool) -> Result<Value, Failure> {
    let strict = call.params.flag("error_on_requires_action")?.unwrap_or(false);
    let outcome = payments::attempt(world, id, method, off_session || strict);
    let has_ended = matches!(outcome, Outcome::Paid | Outcome::Declined(_));
    if has_ended {
        payments::after(world, id, outcome == Outcome::Paid);
    }
    match outcome {
        Outcome::Declined(failure) => Err(failure),
        _ => Ok(world.copy(Kind::PaymentIntent, id)),
    }
}

fn confirm_call(world: &mut World, call: &Call, id: &str) -> Result<Value, Failure> {
    call.params.only(&["error_on_requires_action", "off_session", "payment_method", "return_url"])?;
    let intent = world.find(Kind::PaymentIntent, id, call.live, "id")?.clone();
    if !text(&intent, "status").starts_with("requires_") {
        let message = format!("You cannot confirm this PaymentIntent because it has a status of {}.", intent["status"]);
        return Err(Failure::state("payment_intent_unexpected_state", message));
    }
    let given = call.params.text("payment_method").unwrap_or_else(|| reference(&intent, "payment_method"));
    if given.is_empty() {
        return Err(Failure::missing("payment_method"));
    }
    let method = payments_method(world, given, reference(&intent, "customer"), call.live)?;
    let off_session = call.params.flag("off_session")?.unwrap_or(false);
    confirm(world, call, id, &method, off_session)
}

fn update(world: &mut World, call: &Call, id: &str) -> Result<Value, Failure> {
    call.params.only(&["description", "metadata"])?;
    let old = world.find(Kind::PaymentIntent, id, call.live, "id")?;
    let metadata = call.params.metadata("metadata", &old["metadata"])?;
    world.edit(Kind::PaymentIntent, id, |intent| intent["metadata"] = metadata);
    Ok(world.copy(Kind::PaymentIntent, id))
}

fn cancel(world: &mut World, call: &Call, id: &str) -> Result<Value, Failure> {
    call.params.only(&["cancellation_reason"])?;
    let intent = world.find(Kind::PaymentIntent, id, call.live, "id")?;
    if matches!(text(intent, "status"), "succeeded" | "canceled") {
        let message = format!("You cannot cancel this PaymentIntent because it has a status of {}.", intent["status"]);
        return Err(Failure::state("payment_intent_unexpected_state", message));
    }
    payments::cancel(world, id, call.params.text("cancellation_reason").unwrap_or("requested_by_customer"));
    Ok(world.copy(Kind::PaymentIntent, id))
}
