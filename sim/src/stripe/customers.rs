//! `/v1/customers`.

use serde_json::{Value, json};

use super::api::Call;
use super::error::Failure;
use super::kind::Kind;
use super::list;
use super::params::Params;
use super::world::World;

const FIELDS: [&str; 12] = [
    "address",
    "balance",
    "description",
    "email",
    "invoice_settings",
    "metadata",
    "name",
    "payment_method",
    "phone",
    "preferred_locales",
    "shipping",
    "tax_exempt",
];

pub(super) fn route(world: &mut World, call: &Call, rest: &[&str]) -> Option<Result<Value, Failure>> {
    Some(match (call.method.as_str(), rest) {
        ("POST", []) => create(world, call),
        ("GET", []) => list::of(world, Kind::Customer, "/v1/customers", &call.params, call.live, &["email"], |_| true),
        ("GET", [id]) => call.retrieve(world, Kind::Customer, id),
        ("POST", [id]) => update(world, call, id),
        ("DELETE", [id]) => delete(world, call, id),
        ("GET", [id, "payment_methods"]) => {
            let url = format!("/v1/customers/{id}/payment_methods");
            list::of(world, Kind::PaymentMethod, &url, &call.params, call.live, &["type"], |row| {
                row["customer"] == **id
            })
        }
        ("GET", [id, "payment_methods", method]) => {
            let found = world.find(Kind::PaymentMethod, method, call.live, "id");
            found.and_then(|found| {
                let owned = found["customer"] == **id;
                owned.then(|| found.clone()).ok_or_else(|| Failure::no_such("PaymentMethod", method, "id", None))
            })
        }
        _ => return None,
    })
}

fn create(world: &mut World, call: &Call) -> Result<Value, Failure> {
    call.params.only(&FIELDS)?;
    let id = new(world, &call.params, call.live)?;
    if let Some(method) = call.params.text("payment_method") {
        super::payment_methods::attach(world, method, &id, call.live)?;
    }
    Ok(world.copy(Kind::Customer, &id))
}

/// A customer by the parameters of `POST /v1/customers`; answers its id.
///
/// # Errors
/// On parameters that do not fit.
pub(super) fn new(world: &mut World, params: &Params, is_live: bool) -> Result<String, Failure> {
    let metadata = params.metadata("metadata", &Value::Null)?;
    let balance = params.int("balance")?.unwrap_or(0);
    let id = world.new_id(Kind::Customer);
    let mut customer = json!({
        "address": null, "balance": balance, "created": world.now, "currency": null,
        "default_source": null, "delinquent": false, "description": null, "discount": null, "email": null, "id": id,
        "invoice_prefix": format!("SIM{}", world.serial()),
        "invoice_settings": {
            "custom_fields": null, "default_payment_method": null, "footer": null, "rendering_options": null,
        },
        "livemode": is_live, "metadata": metadata, "name": null, "next_invoice_sequence": 1, "object": "customer",
        "phone": null, "preferred_locales": [], "shipping": null, "tax_exempt": "none", "test_clock": null,
    });
    set_texts(&mut customer, params);
    world.insert(Kind::Customer, customer);
    world.tell(Kind::Customer, &id, "customer.created");
    Ok(id)
}

fn set_texts(customer: &mut Value, params: &Params) {
    for name in ["description", "email", "name", "phone"] {
        if params.has(name) {
            customer[name] = params.text(name).into();
        }
    }
    if params.has("address") {
        let mut address = json!({});
        for name in ["city", "country", "line1", "line2", "postal_code", "state"] {
            address[name] = params.text(&format!("address.{name}")).into();
        }
        customer["address"] = address;
    }
}

fn update(world: &mut World, call: &Call, id: &str) -> Result<Value, Failure> {
    call.params.only(&FIELDS)?;
    let old = call.find_alive(world, Kind::Customer, id)?;
    let metadata = call.params.metadata("metadata", &old["metadata"])?;
    let balance = call.params.int("balance")?;
    let default_method = call.params.text("invoice_settings.default_payment_method");
    if let Some(method) = default_method {
        let found = world.find(Kind::PaymentMethod, method, call.live, "invoice_settings[default_payment_method]")?;
        if found["customer"] != id {
            let message = format!("The customer does not have a payment method with the ID {method}.");
            return Err(Failure::invalid("invoice_settings[default_payment_method]", message));
        }
    }
    let unset = call.params.unset("invoice_settings.default_payment_method");
    world.touch(Kind::Customer, id, "customer.updated", |customer| {
        set_texts(customer, &call.params);
        customer["metadata"] = metadata;
        if let Some(balance) = balance {
            customer["balance"] = balance.into();
        }
        if default_method.is_some() || unset {
            customer["invoice_settings"]["default_payment_method"] = default_method.into();
        }
    });
    Ok(world.copy(Kind::Customer, id))
}

/// Cancels its subscriptions at once, as Stripe does.
fn delete(world: &mut World, call: &Call, id: &str) -> Result<Value, Failure> {
    call.find_alive(world, Kind::Customer, id)?;
    let running = |sub: &Value| sub["customer"] == id && sub["ended_at"].is_null();
    for subscription in world.ids(Kind::Subscription, running) {
        super::lifecycle::end(world, &subscription, "cancellation_requested");
    }
    let gone = json!({ "id": id, "object": "customer", "deleted": true });
    world.tell(Kind::Customer, id, "customer.deleted");
    world.edit(Kind::Customer, id, |customer| {
        *customer = gone.clone();
        customer["_live"] = call.live.into();
    });
    Ok(gone)
}
