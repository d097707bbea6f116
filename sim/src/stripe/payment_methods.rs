//! `/v1/payment_methods`, cards only.

use serde_json::{Value, json};

use super::api::Call;
use super::cards::Card;
use super::error::Failure;
use super::kind::Kind;
use super::list;
use super::world::{World, reference, text};

pub(super) fn route(world: &mut World, call: &Call, rest: &[&str]) -> Option<Result<Value, Failure>> {
    let url = "/v1/payment_methods";
    Some(match (call.method.as_str(), rest) {
        ("POST", []) => create(world, call),
        ("GET", []) => {
            list::of(world, Kind::PaymentMethod, url, &call.params, call.live, &["customer", "type"], |_| true)
        }
        ("GET", [id]) => call.retrieve(world, Kind::PaymentMethod, id),
        ("POST", [id]) => update(world, call, id),
        ("POST", [id, "attach"]) => attach_call(world, call, id),
        ("POST", [id, "detach"]) => detach(world, call, id),
        _ => return None,
    })
}

fn create(world: &mut World, call: &Call) -> Result<Value, Failure> {
    call.params.only(&["billing_details", "card", "metadata", "type"])?;
    call.params.one_of("type", &["card"])?.ok_or_else(|| Failure::missing("type"))?;
    let name = call.params.text("card.token").or(call.params.text("card.number"));
    let card = Card::named(name.ok_or_else(|| Failure::missing("card"))?)?;
    let metadata = call.params.metadata("metadata", &Value::Null)?;
    let id = new(world, &card, call.live);
    world.edit(Kind::PaymentMethod, &id, |method| method["metadata"] = metadata);
    Ok(world.copy(Kind::PaymentMethod, &id))
}

/// A payment method with this card, attached to nobody; answers its id.
pub(super) fn new(world: &mut World, card: &Card, live: bool) -> String {
    let id = world.new_id(Kind::PaymentMethod);
    let address =
        json!({ "city": null, "country": null, "line1": null, "line2": null, "postal_code": null, "state": null });
    let method = json!({
        "allow_redisplay": "unspecified",
        "billing_details": { "address": address, "email": null, "name": null, "phone": null, "tax_id": null },
        "card": {
            "brand": card.brand,
            "checks": { "address_line1_check": null, "address_postal_code_check": null, "cvc_check": "pass" },
            "country": "US", "display_brand": card.brand, "exp_month": 8, "exp_year": 2034,
            "fingerprint": card.fingerprint(), "funding": "credit", "generated_from": null, "last4": card.last4(),
            "networks": { "available": [card.brand], "preferred": null }, "regulated_status": "unregulated",
            "three_d_secure_usage": { "supported": true }, "wallet": null,
        },
        "created": world.now, "customer": null, "customer_account": null, "id": id, "livemode": live, "metadata": {},
        "object": "payment_method", "type": "card", "_behaviour": card.behaviour.text(),
    });
    world.insert(Kind::PaymentMethod, method);
    id
}

/// The method that a parameter names: one of Stripe's test names (`pm_card_visa`) makes a new one.
///
/// # Errors
/// When there is none.
pub(super) fn named(world: &mut World, name: &str, live: bool, param: &str) -> Result<String, Failure> {
    if world.get(Kind::PaymentMethod, name).is_none()
        && !live
        && let Ok(card) = Card::named(name)
    {
        return Ok(new(world, &card, live));
    }
    world.find(Kind::PaymentMethod, name, live, param).map(|method| text(method, "id").to_owned())
}

/// Attaches a method to a customer; answers its id.
///
/// # Errors
/// When either does not exist, or the method is another customer's.
pub(super) fn attach(world: &mut World, name: &str, customer: &str, live: bool) -> Result<String, Failure> {
    world.find(Kind::Customer, customer, live, "customer")?;
    let id = named(world, name, live, "payment_method")?;
    let owner = reference(&world.copy(Kind::PaymentMethod, &id), "customer").to_owned();
    if owner == customer {
        return Ok(id);
    }
    if !owner.is_empty() {
        let message = "The payment method you provided has already been attached to a customer.";
        return Err(Failure::state("payment_method_unexpected_state", message));
    }
    world.edit(Kind::PaymentMethod, &id, |method| method["customer"] = customer.into());
    world.tell(Kind::PaymentMethod, &id, "payment_method.attached");
    Ok(id)
}

fn attach_call(world: &mut World, call: &Call, id: &str) -> Result<Value, Failure> {
    call.params.only(&["customer"])?;
    let attached = attach(world, id, call.params.need("customer")?, call.live)?;
    Ok(world.copy(Kind::PaymentMethod, &attached))
}

fn detach(world: &mut World, call: &Call, id: &str) -> Result<Value, Failure> {
    call.params.only(&[])?;
    let method = world.find(Kind::PaymentMethod, id, call.live, "id")?;
    let customer = reference(method, "customer").to_owned();
    if customer.is_empty() {
        let message = "The payment method you provided is not attached to a customer.";
        return Err(Failure::state("payment_method_unexpected_state", message));
    }
    world.edit(Kind::PaymentMethod, id, |method| method["customer"] = Value::Null);
    world.tell(Kind::PaymentMethod, id, "payment_method.detached");
    if world.copy(Kind::Customer, &customer)["invoice_settings"]["default_payment_method"] == id {
        world.touch(Kind::Customer, &customer, "customer.updated", |customer| {
            customer["invoice_settings"]["default_payment_method"] = Value::Null;
        });
    }
    Ok(world.copy(Kind::PaymentMethod, id))
}

fn update(world: &mut World, call: &Call, id: &str) -> Result<Value, Failure> {
    call.params.only(&["allow_redisplay", "billing_details", "card", "metadata"])?;
    let old = world.find(Kind::PaymentMethod, id, call.live, "id")?.clone();
    let metadata = call.params.metadata("metadata", &old["metadata"])?;
    let (month, year) = (call.params.int("card.exp_month")?, call.params.int("card.exp_year")?);
    world.touch(Kind::PaymentMethod, id, "payment_method.updated", |method| {
        method["metadata"] = metadata;
        for (name, value) in [("exp_month", month), ("exp_year", year)] {
            if let Some(value) = value {
                method["card"][name] = value.into();
            }
        }
    });
    Ok(world.copy(Kind::PaymentMethod, id))
}

/// What a customer's charges go to: the subscription's, then the customer's default, else the last one attached.
pub(super) fn default_of(world: &World, customer: &str, subscription: &Value) -> Option<String> {
    let owner = world.get(Kind::Customer, customer)?;
    let chosen = [
        reference(subscription, "default_payment_method"),
        reference(&owner["invoice_settings"], "default_payment_method"),
    ];
    let usable = |id: &str| world.get(Kind::PaymentMethod, id).is_some_and(|method| method["customer"] == customer);
    chosen.into_iter().find(|id| usable(id)).map(str::to_owned)
}
