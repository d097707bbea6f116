//! `/v1/products` and `/v1/prices`.

use serde_json::{Value, json};

use super::api::Call;
use super::error::Failure;
use super::kind::Kind;
use super::list;
use super::world::World;

const INTERVALS: [&str; 4] = ["day", "week", "month", "year"];

/// What a test or the command line says of a price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriceSpec {
    /// None: a made-up one.
    pub id: Option<String>,
    pub product_name: String,
    /// In minor units.
    pub unit_amount: i64,
    pub currency: String,
    /// None: paid once.
    pub interval: Option<String>,
    pub live: bool,
}

pub(super) fn products(world: &mut World, call: &Call, rest: &[&str]) -> Option<Result<Value, Failure>> {
    Some(match (call.method.as_str(), rest) {
        ("POST", []) => create_product(world, call),
        ("GET", []) => list::of(world, Kind::Product, "/v1/products", &call.params, call.live, &["active"], |_| true),
        ("GET", [id]) => call.retrieve(world, Kind::Product, id),
        ("POST", [id]) => update_product(world, call, id),
        _ => return None,
    })
}

pub(super) fn prices(world: &mut World, call: &Call, rest: &[&str]) -> Option<Result<Value, Failure>> {
    Some(match (call.method.as_str(), rest) {
        ("POST", []) => create_price(world, call),
        ("GET", []) => {
            let keys = call.params.texts("lookup_keys");
            let mut params = call.params.clone();
            params.remove("lookup_keys");
            let filters = ["active", "currency", "product", "type"];
            list::of(world, Kind::Price, "/v1/prices", &params, call.live, &filters, |price| {
                keys.is_empty() || keys.iter().any(|key| price["lookup_key"] == **key)
            })
        }
        ("GET", [id]) => call.retrieve(world, Kind::Price, id),
        ("POST", [id]) => update_price(world, call, id),
        _ => return None,
    })
}

fn create_product(world: &mut World, call: &Call) -> Result<Value, Failure> {
    call.params.only(&[
        "active",
        "description",
        "id",
        "images",
        "metadata",
        "name",
        "statement_descriptor",
        "unit_label",
    ])?;
    let name = call.params.need("name")?.to_owned();
    let metadata = call.params.metadata("metadata", &Value::Null)?;
    let given = call.params.text("id");
    if given.is_some_and(|id| world.get(Kind::Product, id).is_some()) {
        return Err(Failure::state("resource_already_exists", "Product already exists."));
    }
    let id = new_product(world, given, &name, metadata, call.live);
    Ok(world.copy(Kind::Product, &id))
}

fn new_product(world: &mut World, id: Option<&str>, name: &str, metadata: Value, live: bool) -> String {
    let id = id.map_or_else(|| world.new_id(Kind::Product), str::to_owned);
    let product = json!({
        "active": true, "created": world.now, "default_price": null, "description": null, "id": id, "images": [],
        "livemode": live, "marketing_features": [], "metadata": metadata, "name": name, "object": "product",
        "package_dimensions": null, "shippable": null, "statement_descriptor": null, "tax_code": null, "type": "service",
        "unit_label": null, "updated": world.now, "url": null,
    });
    world.insert(Kind::Product, product);
    world.tell(Kind::Product, &id, "product.created");
    id
}

fn update_product(world: &mut World, call: &Call, id: &str) -> Result<Value, Failure> {
    call.params.only(&["active", "default_price", "description", "metadata", "name"])?;
    let old = call.find_alive(world, Kind::Product, id)?;
    let metadata = call.params.metadata("metadata", &old["metadata"])?;
    let active = call.params.flag("active")?;
    let now = world.now;
    world.touch(Kind::Product, id, "product.updated", |product| {
        for name in ["default_price", "description", "name"] {
            if let Some(text) = call.params.text(name) {
                product[name] = text.into();
            }
        }
        product["active"] = active.map_or(product["active"].clone(), Value::from);
        product["metadata"] = metadata;
        product["updated"] = now.into();
    });
    Ok(world.copy(Kind::Product, id))
}

fn create_price(world: &mut World, call: &Call) -> Result<Value, Failure> {
    let params = &call.params;
    params.only(&[
        "active",
        "billing_scheme",
        "currency",
        "lookup_key",
        "metadata",
        "nickname",
        "product",
        "product_data",
        "recurring",
        "tax_behavior",
        "unit_amount",
    ])?;
    let currency = params.need("currency")?.to_lowercase();
    let unit_amount = params.int("unit_amount")?.ok_or_else(|| Failure::missing("unit_amount"))?;
    if unit_amount < 0 {
        return Err(Failure::invalid("unit_amount", "This value must be greater than or equal to 0."));
    }
    let recurring = recurring(call)?;
    let metadata = params.metadata("metadata", &Value::Null)?;
    let product = if let Some(product) = params.text("product") {
        world.find(Kind::Product, product, call.live, "product")?;
        product.to_owned()
    } else {
        let name = params.need("product_data.name")?.to_owned();
        new_product(world, None, &name, json!({}), call.live)
    };
    let id = world.new_id(Kind::Price);
    let mut price = price_object(&id, &product, unit_amount, &currency, recurring, world.now, call.live);
    price["metadata"] = metadata;
    for name in ["lookup_key", "nickname"] {
        price[name] = params.text(name).into();
    }
    world.insert(Kind::Price, price);
    world.tell(Kind::Price, &id, "price.created");
    Ok(world.copy(Kind::Price, &id))
}

fn recurring(call: &Call) -> Result<Value, Failure> {
    if !call.params.has("recurring") {
        return Ok(Value::Null);
    }
    let interval = call.params.one_of("recurring.interval", &INTERVALS)?;
    let interval = interval.ok_or_else(|| Failure::missing("recurring[interval]"))?;
    let count = call.params.int("recurring.interval_count")?.unwrap_or(1);
    if !(1..=36).contains(&count) {
        return Err(Failure::invalid("recurring[interval_count]", "Invalid interval_count"));
    }
    Ok(recurring_object(interval, count))
}

fn recurring_object(interval: &str, count: i64) -> Value {
    json!({
        "interval": interval, "interval_count": count, "meter": null, "trial_period_days": null, "usage_type": "licensed",
    })
}

fn price_object(id: &str, product: &str, amount: i64, currency: &str, recurring: Value, now: i64, live: bool) -> Value {
    let kind = if recurring.is_null() { "one_time" } else { "recurring" };
    json!({
        "active": true, "billing_scheme": "per_unit", "created": now, "currency": currency, "custom_unit_amount": null,
        "id": id, "livemode": live, "lookup_key": null, "metadata": {}, "nickname": null, "object": "price",
        "product": product, "recurring": recurring, "tax_behavior": "unspecified", "tiers_mode": null,
        "transform_quantity": null, "type": kind, "unit_amount": amount, "unit_amount_decimal": amount.to_string(),
    })
}

fn update_price(world: &mut World, call: &Call, id: &str) -> Result<Value, Failure> {
    call.params.only(&["active", "lookup_key", "metadata", "nickname"])?;
    let old = call.find_alive(world, Kind::Price, id)?;
    let metadata = call.params.metadata("metadata", &old["metadata"])?;
    let active = call.params.flag("active")?;
    world.touch(Kind::Price, id, "price.updated", |price| {
        price["active"] = active.map_or(price["active"].clone(), Value::from);
        price["metadata"] = metadata;
    });
    Ok(world.copy(Kind::Price, id))
}

/// A price with a product of its own; answers its id. One that exists already stays as it is.
pub(super) fn seed(world: &mut World, spec: &PriceSpec) -> String {
    if let Some(id) = spec.id.as_deref().filter(|id| world.get(Kind::Price, id).is_some()) {
        return id.to_owned();
    }
    let product = new_product(world, None, &spec.product_name, json!({}), spec.live);
    let id = spec.id.clone().unwrap_or_else(|| world.new_id(Kind::Price));
    let recurring = spec.interval.as_deref().map_or(Value::Null, |interval| recurring_object(interval, 1));
    let price = price_object(&id, &product, spec.unit_amount, &spec.currency, recurring, world.now, spec.live);
    world.insert(Kind::Price, price);
    world.tell(Kind::Price, &id, "price.created");
    id
}
