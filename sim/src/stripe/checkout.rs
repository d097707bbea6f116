//! `/v1/checkout/sessions`.

use serde_json::{Value, json};

use super::api::Call;
use super::error::Failure;
use super::kind::Kind;
use super::list;
use super::params::Params;
use super::subscriptions;
use super::world::{Timer, World, int, reference, text};

const DAY_S: i64 = 86_400;
/// Soonest that a session may expire.
const EXPIRES_MIN_S: i64 = 1_800;
/// Most different things in one session, as with Stripe.
const ITEMS_MAX: usize = 100;

const FIELDS: [&str; 26] = [
    "allow_promotion_codes",
    "automatic_tax",
    "billing_address_collection",
    "cancel_url",
    "client_reference_id",
    "currency",
    "customer",
    "customer_creation",
    "customer_email",
    "customer_update",
    "expires_at",
    "invoice_creation",
    "line_items",
    "locale",
    "metadata",
    "mode",
    "payment_intent_data",
    "payment_method_collection",
    "payment_method_types",
    "return_url",
    "saved_payment_method_options",
    "setup_intent_data",
    "submit_type",
    "subscription_data",
    "success_url",
    "ui_mode",
];

pub(super) fn route(world: &mut World, call: &Call, rest: &[&str]) -> Option<Result<Value, Failure>> {
    let url = "/v1/checkout/sessions";
    let filters = ["customer", "payment_intent", "status", "subscription"];
    Some(match (call.method.as_str(), rest) {
        ("POST", []) => create(world, call),
        ("GET", []) => list::of(world, Kind::Session, url, &call.params, call.live, &filters, |_| true),
        ("GET", [id]) => call.retrieve(world, Kind::Session, id),
        ("POST", [id]) => update(world, call, id),
        ("POST", [id, "expire"]) => expire_call(world, call, id),
        ("GET", [id, "line_items"]) => line_items(world, call, id),
        _ => return None,
    })
}

fn create(world: &mut World, call: &Call) -> Result<Value, Failure> {
    let params = &call.params;
    params.only(&FIELDS)?;
    let mode = params.one_of("mode", &["payment", "setup", "subscription"])?.ok_or_else(|| Failure::missing("mode"))?;
    let ui = params.one_of("ui_mode", &["hosted_page", "embedded_page", "elements", "form"])?.unwrap_or("hosted_page");
    if ui == "hosted_page" {
        params.need("success_url")?;
    }
    let customer = params.text("customer");
    if let Some(customer) = customer {
        world.find(Kind::Customer, customer, call.live, "customer")?;
        if params.has("customer_email") {
            return Err(Failure::invalid(
                "customer_email",
                "You may only specify one of these parameters: customer, customer_email.",
            ));
        }
    }
    refuse_other_modes(params, mode)?;
    let items = items(world, call, mode)?;
    let expires = params.int("expires_at")?.unwrap_or(world.now + DAY_S);
    if !(world.now + EXPIRES_MIN_S..=world.now + DAY_S).contains(&expires) {
        let message =
            "The `expires_at` timestamp must be between 30 minutes and 24 hours from Checkout Session creation.";
        return Err(Failure::invalid("expires_at", message));
    }
    let trial = subscriptions::trial_end(&params.sub("subscription_data"), world.now)?;
    subscriptions::missing_method(&params.sub("subscription_data"))?;
    let metadata = params.metadata("metadata", &Value::Null)?;
    let id = world.id(if call.live { "cs_live" } else { "cs_test" });
    let total: i64 = items.iter().map(|item| int(item, "amount_total")).sum();
    let mut session = object(world, &id, call, mode, ui);
    session["metadata"] = metadata;
    session["expires_at"] = expires.into();
    let total = if trial.is_some() { 0 } else { total };
    if mode == "setup" {
        session["currency"] = params.text("currency").into();
    } else {
        session["amount_subtotal"] = total.into();
        session["amount_total"] = total.into();
        session["currency"] = items[0]["currency"].clone();
        session["total_details"] = json!({ "amount_discount": 0, "amount_shipping": 0, "amount_tax": 0 });
    }
    session["_line_items"] = items.into();
    session["_request"] = params.raw().clone();
    world.insert(Kind::Session, session);
    world.at(expires, Timer::ExpireSession(id.clone()));
    Ok(world.copy(Kind::Session, &id))
}

fn refuse_other_modes(params: &Params, mode: &str) -> Result<(), Failure> {
    let foreign = [
        ("payment_intent_data", "payment"),
        ("invoice_creation", "payment"),
        ("setup_intent_data", "setup"),
        ("subscription_data", "subscription"),
    ];
    for (name, of) in foreign {
        if params.has(name) && mode != of {
            return Err(Failure::invalid(name, format!("You can not pass `{name}` in `{mode}` mode.")));
        }
    }
    Ok(())
}

fn object(world: &World, id: &str, call: &Call, mode: &str, ui: &str) -> Value {
    let params = &call.params;
    let email = params.text("customer_email");
    let subscribes = mode == "subscription";
    let invoice_data = json!({
        "account_tax_ids": null, "custom_fields": null, "description": null, "footer": null, "issuer": null, "metadata": {},
        "rendering_options": null,
    });
    let makes_invoice = params.text("invoice_creation.enabled") == Some("true");
    json!({
        "adaptive_pricing": { "enabled": false }, "after_expiration": null, "allow_promotion_codes": null,
        "amount_subtotal": null, "amount_total": null,
        "automatic_tax": { "enabled": false, "liability": null, "provider": null, "status": null },
        "billing_address_collection": null, "cancel_url": params.text("cancel_url"),
        "client_reference_id": params.text("client_reference_id"), "client_secret": null,
        "collected_information": null, "consent": null, "consent_collection": null, "created": world.now, "currency": null,
        "currency_conversion": null, "custom_fields": [],
        "custom_text": { "after_submit": null, "shipping_address": null, "submit": null, "terms_of_service_acceptance": null },
        "customer": params.text("customer"), "customer_account": null,
        "customer_creation": if params.has("customer") || subscribes { Value::Null } else { "if_required".into() },
        "customer_details": null, "customer_email": email, "discounts": [], "expires_at": null, "id": id,
        "integration_identifier": null, "invoice": null,
        "invoice_creation": (mode == "payment").then(|| json!({ "enabled": makes_invoice, "invoice_data": invoice_data })),
        "livemode": call.live, "locale": params.text("locale"), "managed_payments": null, "metadata": {}, "mode": mode,
        "object": "checkout.session", "origin_context": null, "payment_intent": null, "payment_link": null,
        "payment_method_collection": if subscribes { params.text("payment_method_collection").unwrap_or("always") } else { "if_required" },
        "payment_method_configuration_details": null, "payment_method_options": {}, "payment_method_types": ["card"],
        "payment_status": if mode == "setup" { "no_payment_required" } else { "unpaid" }, "permissions": null,
        "phone_number_collection": { "enabled": false }, "recovered_from": null, "saved_payment_method_options": null,
        "setup_intent": null, "shipping_address_collection": null, "shipping_cost": null, "shipping_options": [],
        "status": "open", "submit_type": params.text("submit_type"), "subscription": null,
        "success_url": params.text("success_url"), "total_details": null, "ui_mode": ui,
        "url": (ui == "hosted_page").then(|| format!("{}/c/pay/{id}", world.base)), "wallet_options": null,
    })
}

/// The things sold, as `item` objects.
fn items(world: &mut World, call: &Call, mode: &str) -> Result<Vec<Value>, Failure> {
    let wanted = call.params.list("line_items");
    if mode == "setup" {
        return if wanted.is_empty() {
            Ok(Vec::new())
        } else {
            Err(Failure::invalid("line_items", "You can not pass `line_items` in `setup` mode."))
        };
    }
    if wanted.is_empty() {
        return Err(Failure::missing("line_items"));
    }
    if wanted.len() > ITEMS_MAX {
        return Err(Failure::invalid("line_items", "Too many line items."));
    }
    let mut items: Vec<Value> = Vec::new();
    for (at, item) in wanted.iter().enumerate() {
        let name = format!("line_items[{at}]");
        item.only(&["adjustable_quantity", "metadata", "price", "price_data", "quantity"])?;
        let price = if item.has("price_data") {
            price_data(world, item, call.live)
        } else {
            let id = item.need("price").map_err(|_| Failure::missing(&format!("{name}[price]")))?;
            world.find(Kind::Price, id, call.live, &format!("{name}[price]")).cloned()
        }?;
        if price["active"] != true {
            return Err(Failure::invalid(&format!("{name}[price]"), "The price specified is inactive."));
        }
        let quantity = item.int("quantity")?.ok_or_else(|| Failure::missing(&format!("{name}[quantity]")))?;
        if quantity < 1 {
            return Err(Failure::invalid(&format!("{name}[quantity]"), "Quantity must be at least 1."));
        }
        if items.first().is_some_and(|first| first["currency"] != price["currency"]) {
            return Err(Failure::invalid(&name, "The price specified has another currency than the other items."));
        }
        let amount = int(&price, "unit_amount") * quantity;
        items.push(json!({
            "adjustable_quantity": null, "amount_discount": 0, "amount_subtotal": amount, "amount_tax": 0,
            "amount_total": amount, "currency": price["currency"], "description": description(world, &price),
            "id": world.id("li"), "metadata": {}, "object": "item", "price": price, "quantity": quantity,
        }));
    }
    let recurs = |item: &Value| !item["price"]["recurring"].is_null();
    match mode {
        "payment" if items.iter().any(recurs) => Err(Failure::invalid(
            "line_items",
            "You must provide one-time prices in `payment` mode, or use `subscription` mode.",
        )),
        "subscription" if !items.iter().any(recurs) => {
            Err(Failure::invalid("line_items", "You must provide at least one recurring price in `subscription` mode."))
        }
        _ => Ok(items),
    }
}

fn description(world: &World, price: &Value) -> Value {
    world.get(Kind::Product, reference(price, "product")).map_or(Value::Null, |product| product["name"].clone())
}

/// A price made on the spot.
fn price_data(world: &mut World, item: &Params, live: bool) -> Result<Value, Failure> {
    let amount = item.int("price_data.unit_amount")?.ok_or_else(|| Failure::missing("price_data[unit_amount]"))?;
    let spec = super::prices::PriceSpec {
        id: None,
        product_name: item.text("price_data.product_data.name").unwrap_or("Product").to_owned(),
        unit_amount: amount,
        currency: item.need("price_data.currency")?.to_lowercase(),
        interval: item.text("price_data.recurring.interval").map(str::to_owned),
        live,
    };
    let id = super::prices::seed(world, &spec);
    Ok(world.copy(Kind::Price, &id))
}

fn update(world: &mut World, call: &Call, id: &str) -> Result<Value, Failure> {
    call.params.only(&["metadata"])?;
    let old = world.find(Kind::Session, id, call.live, "id")?;
    let metadata = call.params.metadata("metadata", &old["metadata"])?;
    world.edit(Kind::Session, id, |session| session["metadata"] = metadata);
    Ok(world.copy(Kind::Session, id))
}

fn expire_call(world: &mut World, call: &Call, id: &str) -> Result<Value, Failure> {
    call.params.only(&[])?;
    let session = world.find(Kind::Session, id, call.live, "id")?;
    if session["status"] != "open" {
        let message = format!(
            "Only Checkout Sessions with a status in [\"open\"] can be expired. This Checkout Session has a status of {}.",
            text(session, "status")
        );
        return Err(Failure::state("resource_missing", message));
    }
    expire(world, id);
    Ok(world.copy(Kind::Session, id))
}

pub(super) fn expire(world: &mut World, id: &str) {
    if world.copy(Kind::Session, id)["status"] == "open" {
        world.edit(Kind::Session, id, |session| {
            session["status"] = "expired".into();
            session["url"] = Value::Null;
        });
        world.tell(Kind::Session, id, "checkout.session.expired");
    }
}

fn line_items(world: &World, call: &Call, id: &str) -> Result<Value, Failure> {
    call.params.only(&list::PAGED)?;
    let session = world.find(Kind::Session, id, call.live, "id")?;
    let items: Vec<&Value> = session["_line_items"].as_array().into_iter().flatten().collect();
    list::page(&items, &format!("/v1/checkout/sessions/{id}/line_items"), &call.params)
}

/// A slow payment of a session has ended.
pub(super) fn async_payment(world: &mut World, intent: &str, paid: bool) {
    let waits = |session: &Value| {
        reference(session, "payment_intent") == intent
            && session["status"] == "complete"
            && session["payment_status"] == "unpaid"
    };
    for id in world.ids(Kind::Session, waits) {
        if paid {
            world.edit(Kind::Session, &id, |session| session["payment_status"] = "paid".into());
        }
        world.tell(
            Kind::Session,
            &id,
            if paid { "checkout.session.async_payment_succeeded" } else { "checkout.session.async_payment_failed" },
        );
    }
}
