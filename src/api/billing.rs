//! What is sold, and what Stripe tells.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::rejection::BytesRejection;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::Serialize;

use super::Api;
use super::extract::{json, unreadable};
use super::problem::Problem;
use super::rate::address_of;
use crate::billing::envelope;
use crate::billing::terms::Terms;
use crate::config::{Interval, Pack, Plan};
use crate::credits::Credits;
use crate::identity::principal::AuthError;
use crate::store::billing::EventState;

#[derive(Serialize)]
struct Offers<'a> {
    plans: Vec<PlanView<'a>>,
    packs: Vec<PackView<'a>>,
}

#[derive(Serialize)]
struct PlanView<'a> {
    name: &'a str,
    signup_credits: Credits,
    /// For each paid month.
    credits: Credits,
    rollover_cap: Credits,
    trial_days: u32,
    trial_credits: Credits,
    requests_per_minute: u64,
    tokens_per_minute: u64,
    concurrency: u64,
    prices: Vec<PriceView<'a>>,
}

#[derive(Serialize)]
struct PackView<'a> {
    name: &'a str,
    credits: Credits,
    expires_after_days: u32,
    prices: Vec<PriceView<'a>>,
}

#[derive(Serialize)]
struct PriceView<'a> {
    currency: &'a str,
    /// Left out where it is paid once.
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<Interval>,
    /// In the currency's smallest unit.
    amount: i64,
}

impl<'a> PlanView<'a> {
    fn new((name, plan): (&'a str, &'a Plan)) -> PlanView<'a> {
        let price = |price: &'a crate::config::PlanPrice| PriceView {
            currency: &price.currency,
            interval: Some(price.interval),
            amount: price.amount,
        };
        PlanView {
            name,
            signup_credits: plan.signup_credits,
            credits: plan.credits,
            rollover_cap: plan.rollover_cap,
            trial_days: plan.trial_days,
            trial_credits: plan.trial_credits,
            requests_per_minute: plan.requests_per_minute,
            tokens_per_minute: plan.tokens_per_minute,
            concurrency: plan.concurrency,
            prices: plan.prices.iter().map(price).collect(),
        }
    }
}

impl<'a> PackView<'a> {
    fn new((name, pack): (&'a str, &'a Pack)) -> PackView<'a> {
        let price = |price: &'a crate::config::PackPrice| PriceView {
            currency: &price.currency,
            interval: None,
            amount: price.amount,
        };
        PackView {
            name,
            credits: pack.credits,
            expires_after_days: pack.expires_after_days,
            prices: pack.prices.iter().map(price).collect(),
        }
    }
}

/// Open to whoever looks at prices; who sends credentials sees the terms that are theirs.
pub(crate) async fn plans(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Problem> {
    let who = match api.known(request.headers(), address_of(request.extensions())).await {
        Err(AuthError::Missing) => None,
        who => Some(who?),
    };
    if let Some(who) = &who {
        api.rates.check(who, request.extensions())?;
    }
    let terms = Terms::new(api.store.clone(), api.current.clone());
    let mut plans = Vec::new();
    for (name, plan) in api.catalog.plans() {
        let seen = match &who {
            Some(who) => terms.of(&who.account, name).await?,
            None => None,
        };
        let theirs = seen.and_then(|seen| api.catalog.variant(&seen)).unwrap_or(plan);
        plans.push(PlanView::new((name, theirs)));
    }
    let packs = api.catalog.packs().map(PackView::new).collect();
    Ok(json(StatusCode::OK, &Offers { plans, packs }))
}

#[derive(Serialize)]
struct Received {
    received: bool,
}

/// An event of Stripe's: verified, stored, answered. It is worked off later; Stripe sends it again where this fails.
pub(crate) async fn webhook(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let count = |result: &str| api.metrics.billing_webhooks.with_label_values(&[result]).inc();
    let billing = api.billing.as_ref().ok_or_else(|| Problem::unavailable("billing is not set up"))?;
    let body = body.map_err(unreadable)?;
    let header = headers.get("stripe-signature").and_then(|value| value.to_str().ok()).unwrap_or_default();
    if let Err(error) = billing.verifier.verify(header, &body, now_s()) {
        count(error.name());
        return Err(Problem::bad_request(error.to_string()));
    }
    let mut event = envelope::read(&body).map_err(|error| {
        count("unreadable");
        Problem::bad_request(error.to_string())
    })?;
    if event.livemode != billing.livemode {
        event.state = EventState::Parked;
        let (told, ours) = (mode(event.livemode), mode(billing.livemode));
        event.error = Some(format!("the event is of {told} mode, the key here is of {ours} mode"));
        tracing::error!(event = event.id, "an event of Stripe's other mode came; it is parked");
    }
    let id = event.id.clone();
    let payment = payment(&event.event_type);
    match api.store.insert_event(event).await {
        Ok(fresh) => {
            count(if fresh { "stored" } else { "duplicate" });
            if let Some(result) = payment.filter(|_| fresh) {
                api.metrics.payments.with_label_values(&[result]).inc();
            }
            billing.wake.notify_one();
            Ok(json(StatusCode::OK, &Received { received: true }))
        }
        Err(error) => {
            count("failed");
            tracing::error!(event = id, %error, "an event of Stripe's could not be stored; Stripe will send it again");
            Err(Problem::unavailable("the event could not be stored"))
        }
    }
}

/// What an event says of a payment.
fn payment(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "invoice.paid" | "checkout.session.async_payment_succeeded" => "paid",
        "invoice.payment_failed" | "checkout.session.async_payment_failed" => "failed",
        "charge.refunded" => "refunded",
        "charge.dispute.created" => "disputed",
        _ => return None,
    })
}

fn mode(live: bool) -> &'static str {
    if live { "live" } else { "test" }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
