//! `/v1/billing_portal/sessions`.

use serde_json::{Value, json};

use super::api::Call;
use super::error::Failure;
use super::kind::Kind;
use super::world::World;

const FLOWS: [&str; 4] =
    ["payment_method_update", "subscription_cancel", "subscription_update", "subscription_update_confirm"];

pub(super) fn route(world: &mut World, call: &Call, rest: &[&str]) -> Option<Result<Value, Failure>> {
    match (call.method.as_str(), rest) {
        ("POST", ["sessions"]) => Some(create(world, call)),
        _ => None,
    }
}

fn create(world: &mut World, call: &Call) -> Result<Value, Failure> {
    let params = &call.params;
    params.only(&["configuration", "customer", "flow_data", "locale", "return_url"])?;
    let customer = params.need("customer")?;
    world.find(Kind::Customer, customer, call.live, "customer")?;
    let flow = flow(world, call)?;
    let id = world.new_id(Kind::PortalSession);
    let secret = world.id("sim_portal");
    let session = json!({
        "configuration": params.text("configuration").unwrap_or("bpc_simulator"), "created": world.now, "customer": customer,
        "customer_account": null, "flow": flow, "id": id, "livemode": call.live, "locale": params.text("locale"),
        "object": "billing_portal.session", "on_behalf_of": null, "return_url": params.text("return_url"),
        "url": format!("{}/p/session/{secret}", world.base), "_secret": secret,
    });
    world.insert(Kind::PortalSession, session);
    Ok(world.copy(Kind::PortalSession, &id))
}

fn flow(world: &World, call: &Call) -> Result<Value, Failure> {
    let params = &call.params;
    if !params.has("flow_data") {
        return Ok(Value::Null);
    }
    let kind = params.one_of("flow_data.type", &FLOWS)?.ok_or_else(|| Failure::missing("flow_data[type]"))?;
    let mut flow = json!({
        "after_completion": {
            "hosted_confirmation": null, "redirect": null, "type": params.text("flow_data.after_completion.type").unwrap_or("portal_homepage"),
        },
        "subscription_cancel": null, "subscription_update": null, "subscription_update_confirm": null, "type": kind,
    });
    if let Some(url) = params.text("flow_data.after_completion.redirect.return_url") {
        flow["after_completion"]["redirect"] = json!({ "return_url": url });
    }
    if kind == "payment_method_update" {
        return Ok(flow);
    }
    let path = format!("flow_data.{kind}.subscription");
    let subscription = params.need(&path)?;
    let found = world.find(Kind::Subscription, subscription, call.live, &path)?;
    if found["customer"] != *params.need("customer")? {
        return Err(Failure::invalid(&path, "The subscription belongs to another customer."));
    }
    flow[kind] = json!({ "subscription": subscription });
    if kind == "subscription_cancel" {
        flow[kind]["retention"] = Value::Null;
    }
    if kind == "subscription_update_confirm" {
        let items = params.list("flow_data.subscription_update_confirm.items");
        let items: Vec<Value> = items
            .iter()
            .map(|item| json!({ "id": item.text("id"), "price": item.text("price"), "quantity": item.text("quantity").and_then(|text| text.parse::<i64>().ok()) }))
            .collect();
        flow[kind]["discounts"] = Value::Null;
        flow[kind]["items"] = items.into();
    }
    Ok(flow)
}
