//! `/_sim`: what [`super::Control`] does, for people with curl. Parameters are form-encoded.

use http::StatusCode;
use serde_json::{Value, json};

use super::cards::{Behaviour, Card};
use super::control::{advance, change_card, charge_of};
use super::error::Failure;
use super::faults::{Fault, FaultRule};
use super::kind::Kind;
use super::outbox::{Act, Order, Rule, Twist};
use super::params::Params;
use super::prices::{self, PriceSpec};
use super::server::{Inner, Page, json as as_json, plain};
use super::world::text;
use super::{complete, disputes, events, payments, refunds};

const HELP: &str = "\
GET  /_sim                                   this
POST /_sim/advance                           to=<unix seconds> | seconds=<n> | days=<n>
POST /_sim/prices                            id, name, amount (minor units), currency, [interval=month|year|week|day]
POST /_sim/endpoints                         url, secret[, secret2]
POST /_sim/endpoints/<id>/secrets            secret[, secret2]
POST /_sim/checkout/<session>/complete       [card=pm_card_visa]
POST /_sim/payments/<intent>/settle          [paid=true|false]
POST /_sim/customers/<id>/behaviour          is=pays|declines[:code]|needs_action|processing|cards
POST /_sim/customers/<id>/card               card
POST /_sim/refunds                           of=<charge|intent|invoice>, [amount]
POST /_sim/refunds/<id>/fail
POST /_sim/disputes                          of=<charge|intent|invoice>, [amount], [inquiry=true]
POST /_sim/disputes/<id>/won | lost
POST /_sim/fraud_warnings                    of=<charge|intent|invoice>
POST /_sim/webhooks/hold
POST /_sim/webhooks/release                  [order=made|reversed|<seed>]
POST /_sim/webhooks/retry
POST /_sim/webhooks/rules                    event=<type|start*>, act=drop|hold|copies:<n>|delay:<ms>|<twist>, [times=1]
POST /_sim/webhooks/deliver                  event=<id>, [twist]
POST /_sim/faults                            [method], [path=/v1/…], fault=<name>, [times=1]
GET  /_sim/deliveries, /_sim/requests
twists: wrong_livemode, old_shape, thin, wrong_secret, altered, skew:<seconds>
faults: reset_before, reset_after, silent_after, error, error_after, rate_limit, lock_timeout, delay:<ms>
";

pub(super) fn answer(inner: &mut Inner, method: &str, path: &str, params: &Params) -> Page {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let result = match (method, segments.as_slice()) {
        ("GET", [""]) => return plain(StatusCode::OK, HELP),
        ("GET", ["deliveries"]) => Ok(deliveries(inner)),
        ("GET", ["requests"]) => Ok(requests(inner)),
        ("POST", ["webhooks", rest @ ..]) => webhooks(inner, rest, params),
        ("POST", rest) => act(inner, rest, params),
        _ => Err(Failure::no_route(method, path)),
    };
    match result {
        Ok(body) => as_json(StatusCode::OK, &body),
        Err(failure) => as_json(failure.status, &failure.body()),
    }
}

fn act(inner: &mut Inner, segments: &[&str], params: &Params) -> Result<Value, Failure> {
    let card = || Card::named(params.text("card").unwrap_or("pm_card_visa"));
    let world = &mut inner.world;
    Ok(match segments {
        ["advance"] => {
            let by = params.int("seconds")?.unwrap_or(0) + params.int("days")?.unwrap_or(0) * 86_400;
            let to = params.int("to")?.unwrap_or(world.now.saturating_add(by));
            advance(inner, to)?;
            json!({ "now": to })
        }
        ["prices"] => json!({ "id": prices::seed(world, &price(params)?) }),
        ["endpoints"] => json!({ "id": events::new(world, params.need("url")?, &secrets(params)?, false) }),
        ["endpoints", id, "secrets"] => {
            events::set_secrets(world, id, &secrets(params)?);
            json!({})
        }
        ["checkout", id, "complete"] => {
            complete::complete(world, id, &card()?)?;
            super::present::plain(&world.copy(Kind::Session, id))
        }
        ["payments", id, "settle"] => {
            payments::settle(world, id, params.flag("paid")?.unwrap_or(true));
            super::present::plain(&world.copy(Kind::PaymentIntent, id))
        }
        ["customers", id, "behaviour"] => {
            match params.need("is")? {
                "cards" => drop(world.behaviours.remove(*id)),
                is => drop(world.behaviours.insert((*id).to_owned(), Behaviour::parse(is))),
            }
            json!({})
        }
        ["customers", id, "card"] => json!({ "id": change_card(world, id, &card()?)? }),
        ["refunds"] => {
            let charge = charge_of(world, params.need("of")?);
            json!({ "id": refunds::refund(world, &charge, params.int("amount")?)? })
        }
        ["refunds", id, "fail"] => {
            refunds::fail(world, id)?;
            json!({})
        }
        ["disputes"] => {
            let charge = charge_of(world, params.need("of")?);
            let inquiry = params.flag("inquiry")?.unwrap_or(false);
            json!({ "id": disputes::open(world, &charge, params.int("amount")?, inquiry)? })
        }
        ["disputes", id, end @ ("won" | "lost")] => {
            disputes::close(world, id, *end == "won")?;
            json!({})
        }
        ["fraud_warnings"] => {
            let charge = charge_of(world, params.need("of")?);
            json!({ "id": disputes::warn(world, &charge)? })
        }
        ["faults"] => fault(inner, params)?,
        _ => return Err(Failure::no_route("POST", &segments.join("/"))),
    })
}

fn webhooks(inner: &mut Inner, segments: &[&str], params: &Params) -> Result<Value, Failure> {
    let world = &mut inner.world;
    let outbox = &mut world.outbox;
    Ok(match segments {
        ["hold"] => {
            outbox.holding = true;
            json!({})
        }
        ["release"] => {
            let order = match params.text("order") {
                None | Some("made") => Order::AsMade,
                Some("reversed") => Order::Reversed,
                Some(_) => Order::Shuffled(params.int("order")?.unwrap_or(0).unsigned_abs()),
            };
            json!({ "released": outbox.release(order) })
        }
        ["retry"] => {
            outbox.retry_now();
            json!({})
        }
        ["rules"] => {
            let rule = params.need("act")?;
            let act = act_of(rule).ok_or_else(|| Failure::invalid("act", format!("Unknown act: {rule}")))?;
            let times = u32::try_from(params.int("times")?.unwrap_or(1)).unwrap_or(1);
            outbox.rule(Rule { event: params.need("event")?.to_owned(), act, times });
            json!({})
        }
        ["deliver"] => {
            let event = world.find(Kind::Event, params.need("event")?, false, "event")?.clone();
            let twist = params.text("twist").and_then(twist_of).unwrap_or_default();
            for endpoint in world.ids(Kind::WebhookEndpoint, |endpoint| endpoint["status"] == "enabled") {
                world.outbox.queue_again(text(&event, "id"), text(&event, "type"), &endpoint, twist);
            }
            json!({})
        }
        _ => return Err(Failure::no_route("POST", &segments.join("/"))),
    })
}

fn act_of(text: &str) -> Option<Act> {
    if let Some(count) = text.strip_prefix("copies:") {
        return count.parse::<u32>().ok().map(|count| Act::Copies(count.min(100)));
    }
    if let Some(wait) = text.strip_prefix("delay:") {
        return wait.parse::<u64>().ok().map(|wait| Act::Delay(std::time::Duration::from_millis(wait.min(600_000))));
    }
    match text {
        "drop" => Some(Act::Drop),
        "hold" => Some(Act::Hold),
        _ => twist_of(text).map(Act::Twist),
    }
}

fn twist_of(text: &str) -> Option<Twist> {
    let mut twist = Twist::default();
    match text.split_once(':').unwrap_or((text, "0")) {
        ("wrong_livemode", _) => twist.wrong_livemode = true,
        ("old_shape", _) => twist.old_shape = true,
        ("thin", _) => twist.thin = true,
        ("wrong_secret", _) => twist.wrong_secret = true,
        ("altered", _) => twist.altered = true,
        ("skew", by) => twist.skew_s = by.parse().ok()?,
        _ => return None,
    }
    Some(twist)
}

fn fault(inner: &mut Inner, params: &Params) -> Result<Value, Failure> {
    let name = params.need("fault")?;
    let fault = Fault::parse(name).ok_or_else(|| Failure::invalid("fault", format!("Unknown fault: {name}")))?;
    inner.faults.add(FaultRule {
        method: params.text("method").unwrap_or_default().to_owned(),
        path: params.text("path").unwrap_or_default().to_owned(),
        fault,
        times: u32::try_from(params.int("times")?.unwrap_or(1)).unwrap_or(1),
    });
    Ok(json!({}))
}

fn price(params: &Params) -> Result<PriceSpec, Failure> {
    Ok(PriceSpec {
        id: params.text("id").map(str::to_owned),
        product_name: params.text("name").unwrap_or("Product").to_owned(),
        unit_amount: params.int("amount")?.ok_or_else(|| Failure::missing("amount"))?,
        currency: params.text("currency").unwrap_or("usd").to_lowercase(),
        interval: params.one_of("interval", &["day", "week", "month", "year"])?.map(str::to_owned),
        live: false,
    })
}

fn secrets(params: &Params) -> Result<Vec<String>, Failure> {
    let first = params.need("secret")?.to_owned();
    Ok(std::iter::once(first).chain(params.text("secret2").map(str::to_owned)).collect())
}

fn deliveries(inner: &Inner) -> Value {
    inner
        .world
        .outbox
        .all()
        .map(|(id, delivery)| {
            json!({
                "id": id, "event": delivery.event, "type": delivery.kind, "endpoint": delivery.endpoint,
                "state": format!("{:?}", delivery.state), "attempts": delivery.attempts, "status": delivery.status,
            })
        })
        .collect()
}

fn requests(inner: &Inner) -> Value {
    inner
        .seen
        .iter()
        .map(|seen| {
            json!({
                "method": seen.method, "path": seen.path, "params": seen.params, "live": seen.live,
                "idempotency_key": seen.idempotency_key, "version": seen.version, "status": seen.status,
                "replayed": seen.replayed,
            })
        })
        .collect()
}
