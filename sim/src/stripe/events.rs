//! `/v1/events` and `/v1/webhook_endpoints`.

use serde_json::{Value, json};

use super::API_VERSION;
use super::api::Call;
use super::error::Failure;
use super::kind::Kind;
use super::list;
use super::outbox;
use super::world::{World, text};

/// How far back events are listed.
const KEPT_S: i64 = 30 * 86_400;
/// Most signing secrets of one endpoint.
const SECRETS_MAX: usize = 8;

pub(super) fn route(world: &mut World, call: &Call, rest: &[&str]) -> Option<Result<Value, Failure>> {
    Some(match (call.method.as_str(), rest) {
        ("GET", []) => list_all(world, call),
        ("GET", [id]) => call.retrieve(world, Kind::Event, id).map(|event| with_pending(world, event)),
        _ => return None,
    })
}

fn list_all(world: &World, call: &Call) -> Result<Value, Failure> {
    let mut params = call.params.clone();
    let delivered = params.flag("delivery_success")?;
    let mut types = params.texts("types");
    types.extend(params.text("type").map(str::to_owned));
    for name in ["delivery_success", "type", "types"] {
        params.remove(name);
    }
    let oldest = world.now - KEPT_S;
    let mut page = list::of(world, Kind::Event, "/v1/events", &params, call.live, &[], |event| {
        let reached = world.outbox.open(text(event, "id")) == 0;
        event["created"].as_i64().unwrap_or_default() >= oldest
            && delivered.is_none_or(|delivered| delivered == reached)
            && (types.is_empty() || types.iter().any(|wanted| outbox::matches(wanted, text(event, "type"))))
    })?;
    for event in page["data"].as_array_mut().into_iter().flatten() {
        *event = with_pending(world, event.take());
    }
    Ok(page)
}

fn with_pending(world: &World, mut event: Value) -> Value {
    event["pending_webhooks"] = world.outbox.open(text(&event, "id")).into();
    event
}

pub(super) fn endpoints(world: &mut World, call: &Call, rest: &[&str]) -> Option<Result<Value, Failure>> {
    let url = "/v1/webhook_endpoints";
    Some(match (call.method.as_str(), rest) {
        ("POST", []) => create(world, call),
        ("GET", []) => list::of(world, Kind::WebhookEndpoint, url, &call.params, call.live, &[], |_| true),
        ("GET", [id]) => call.retrieve(world, Kind::WebhookEndpoint, id),
        ("POST", [id]) => update(world, call, id),
        ("DELETE", [id]) => {
            let found = call.find_alive(world, Kind::WebhookEndpoint, id).map(drop);
            found.map(|()| delete(world, id))
        }
        _ => return None,
    })
}

fn create(world: &mut World, call: &Call) -> Result<Value, Failure> {
    call.params.only(&["api_version", "description", "enabled_events", "metadata", "url"])?;
    let url = call.params.need("url")?.to_owned();
    let wanted = call.params.texts("enabled_events");
    if wanted.is_empty() {
        return Err(Failure::missing("enabled_events"));
    }
    let metadata = call.params.metadata("metadata", &Value::Null)?;
    let secret = world.id("whsec");
    let id = new(world, &url, std::slice::from_ref(&secret), call.live);
    world.edit(Kind::WebhookEndpoint, &id, |endpoint| {
        endpoint["enabled_events"] = wanted.into();
        endpoint["metadata"] = metadata;
        endpoint["api_version"] = call.params.text("api_version").into();
        endpoint["description"] = call.params.text("description").into();
    });
    let mut shown = world.copy(Kind::WebhookEndpoint, &id);
    shown["secret"] = secret.into();
    Ok(shown)
}

/// An endpoint for every event, signed with each of these secrets; answers its id.
pub(super) fn new(world: &mut World, url: &str, secrets: &[String], live: bool) -> String {
    let id = world.new_id(Kind::WebhookEndpoint);
    let endpoint = json!({
        "api_version": API_VERSION, "application": null, "created": world.now, "description": null, "enabled_events": ["*"],
        "id": id, "livemode": live, "metadata": {}, "object": "webhook_endpoint", "status": "enabled", "url": url,
    });
    world.insert(Kind::WebhookEndpoint, endpoint);
    set_secrets(world, &id, secrets);
    id
}

pub(super) fn set_secrets(world: &mut World, endpoint: &str, secrets: &[String]) {
    let kept = secrets.iter().take(SECRETS_MAX).cloned().collect();
    world.secrets.insert(endpoint.to_owned(), kept);
}

fn update(world: &mut World, call: &Call, id: &str) -> Result<Value, Failure> {
    call.params.only(&["description", "disabled", "enabled_events", "metadata", "url"])?;
    let old = call.find_alive(world, Kind::WebhookEndpoint, id)?;
    let metadata = call.params.metadata("metadata", &old["metadata"])?;
    let (disabled, wanted) = (call.params.flag("disabled")?, call.params.texts("enabled_events"));
    world.edit(Kind::WebhookEndpoint, id, |endpoint| {
        endpoint["metadata"] = metadata;
        if let Some(disabled) = disabled {
            endpoint["status"] = if disabled { "disabled" } else { "enabled" }.into();
        }
        if let Some(url) = call.params.text("url") {
            endpoint["url"] = url.into();
        }
        if !wanted.is_empty() {
            endpoint["enabled_events"] = wanted.into();
        }
    });
    Ok(world.copy(Kind::WebhookEndpoint, id))
}

fn delete(world: &mut World, id: &str) -> Value {
    let gone = json!({ "id": id, "object": "webhook_endpoint", "deleted": true });
    world.secrets.remove(id);
    world.edit(Kind::WebhookEndpoint, id, |endpoint| *endpoint = gone.clone());
    gone
}
