//! From a request under `/v1` to its answer: the key, the idempotency key, the resource, `expand`.

use std::collections::HashMap;

use http::StatusCode;
use serde_json::{Value, json};

use super::error::Failure;
use super::faults::Fault;
use super::kind::Kind;
use super::params::Params;
use super::world::World;
use super::{
    checkout, customers, disputes, events, intents, invoices_api, old_shape, payment_methods, portal, present, prices,
    refunds, schedules, subscriptions_api,
};

/// Most idempotency keys kept.
const KEYS_MAX: usize = 100_000;
/// How long one is kept, in seconds of the simulator's clock.
const KEY_KEPT_S: i64 = 86_400;
const KEY_BYTES_MAX: usize = 255;

/// One request, parsed.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub method: String,
    /// With `/v1`, without the query.
    pub path: String,
    pub params: Params,
    pub live: bool,
    pub key: Option<String>,
    /// `Stripe-Version`, when it was sent.
    pub version: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reply {
    pub status: StatusCode,
    pub body: Value,
    /// It was kept under an idempotency key.
    pub replayed: bool,
}

/// Answers kept under their idempotency keys.
#[derive(Debug, Default)]
pub(super) struct Kept(HashMap<(bool, String), (String, Reply, i64)>);

impl Call {
    /// `GET /v1/…/{id}`.
    pub(super) fn retrieve(&self, world: &World, kind: Kind, id: &str) -> Result<Value, Failure> {
        self.params.only(&[])?;
        world.find(kind, id, self.live, "id").cloned()
    }

    /// One that the path names, and that was not deleted.
    pub(super) fn find_alive(&self, world: &World, kind: Kind, id: &str) -> Result<Value, Failure> {
        let found = world.find(kind, id, self.live, "id")?;
        if found["deleted"] == true { Err(Failure::no_such(kind.name(), id, "id", None)) } else { Ok(found.clone()) }
    }

    /// The same parameters to the same place, under one text.
    fn fingerprint(&self) -> String {
        format!("{} {} {}", self.method, self.path, self.params.canonical())
    }
}

/// Answers one call; a repeated idempotency key gets the first answer again.
pub(super) fn answer(world: &mut World, kept: &mut Kept, call: &Call, fault: Option<Fault>) -> Reply {
    let key = call.key.as_ref().filter(|_| call.method == "POST").map(|key| (call.live, key.clone()));
    if let Some((_, key)) = &key
        && key.len() > KEY_BYTES_MAX
    {
        let message = format!("Idempotency keys must be at most {KEY_BYTES_MAX} characters long.");
        return refuse(&Failure::invalid("Idempotency-Key", message));
    }
    if let Some(first) = key.as_ref().and_then(|key| kept.0.get(key))
        && first.2 + KEY_KEPT_S > world.now
    {
        return if first.0 == call.fingerprint() {
            Reply { replayed: true, ..first.1.clone() }
        } else {
            refuse(&Failure::idempotency(call.key.as_deref().unwrap_or_default()))
        };
    }
    let result = match fault {
        Some(Fault::RateLimit) => return refuse(&Failure::rate_limited()),
        Some(Fault::LockTimeout) => return refuse(&Failure::lock_timeout()),
        Some(Fault::Error) => Err(Failure::api()),
        Some(Fault::ErrorAfter) => execute(world, call).and_then(|_| Err(Failure::api())),
        _ => execute(world, call),
    };
    let keeps = result.as_ref().map_or_else(Failure::kept, |_| true);
    let reply =
        result.map_or_else(|failure| refuse(&failure), |body| Reply { status: StatusCode::OK, body, replayed: false });
    if let Some(key) = key.filter(|_| keeps) {
        if kept.0.len() >= KEYS_MAX {
            kept.0.retain(|_, (.., at)| *at + KEY_KEPT_S > world.now);
        }
        if kept.0.len() < KEYS_MAX {
            kept.0.insert(key, (call.fingerprint(), reply.clone(), world.now));
        }
    }
    reply
}

fn refuse(failure: &Failure) -> Reply {
    Reply { status: failure.status, body: failure.body(), replayed: false }
}

fn execute(world: &mut World, call: &Call) -> Result<Value, Failure> {
    if world.is_full() {
        return Err(Failure::api());
    }
    if let Some(version) = call.version.as_deref().filter(|version| !is_version(version)) {
        return Err(Failure::invalid("Stripe-Version", format!("Invalid Stripe API version: {version}")));
    }
    let request = world.id("req");
    world.request = Some((request, call.key.clone()));
    let answer = dispatch(world, call);
    world.request = None;
    let shown = present::shown(world, &answer?, &call.params.texts("expand"))?;
    let is_old = call.version.as_deref().is_some_and(old_shape::is_old);
    Ok(if is_old { old_shape::render(world, shown) } else { shown })
}

/// `2026-03-25.dahlia`, or a bare date.
fn is_version(version: &str) -> bool {
    let date = version.split('.').next().unwrap_or_default();
    date.len() == 10
        && date
            .bytes()
            .enumerate()
            .all(|(at, byte)| if at == 4 || at == 7 { byte == b'-' } else { byte.is_ascii_digit() })
}

fn dispatch(world: &mut World, call: &Call) -> Result<Value, Failure> {
    let segments: Vec<&str> = call.path.trim_matches('/').split('/').skip(1).collect();
    let found = match segments.as_slice() {
        ["account"] if call.method == "GET" => Some(Ok(account(call.live))),
        ["customers", rest @ ..] => customers::route(world, call, rest),
        ["products", rest @ ..] => prices::products(world, call, rest),
        ["prices", rest @ ..] => prices::prices(world, call, rest),
        ["checkout", "sessions", rest @ ..] => checkout::route(world, call, rest),
        ["subscriptions", rest @ ..] => subscriptions_api::route(world, call, rest),
        ["subscription_schedules", rest @ ..] => schedules::route(world, call, rest),
        ["invoices", rest @ ..] => invoices_api::route(world, call, rest),
        ["invoice_payments", rest @ ..] => invoices_api::payments(world, call, rest),
        ["invoiceitems", rest @ ..] => invoices_api::items(world, call, rest),
        ["payment_intents", rest @ ..] => intents::route(world, call, rest),
        ["charges", rest @ ..] => intents::charges(world, call, rest),
        ["refunds", rest @ ..] => refunds::route(world, call, rest),
        ["disputes", rest @ ..] => disputes::route(world, call, rest),
        ["radar", "early_fraud_warnings", rest @ ..] => disputes::warnings(world, call, rest),
        ["payment_methods", rest @ ..] => payment_methods::route(world, call, rest),
        ["setup_intents", id] if call.method == "GET" => Some(call.retrieve(world, Kind::SetupIntent, id)),
        ["billing_portal", rest @ ..] => portal::route(world, call, rest),
        ["events", rest @ ..] => events::route(world, call, rest),
        ["webhook_endpoints", rest @ ..] => events::endpoints(world, call, rest),
        _ => None,
    };
    found.unwrap_or_else(|| Err(Failure::no_route(&call.method, &call.path)))
}

fn account(live: bool) -> Value {
    json!({ "id": "acct_simulator", "object": "account", "country": "US", "default_currency": "usd", "charges_enabled": live, "type": "standard" })
}
