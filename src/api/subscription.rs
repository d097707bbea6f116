//! What users ask of billing: pages to pay on, their subscription, what they paid.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::response::Response;
use http::{StatusCode, Uri};
use serde::{Deserialize, Serialize};

use super::extract::{IdempotencyKey, Json, Paging, json};
use super::idempotency::{Created, Once, fingerprint, once};
use super::problem::Problem;
use super::types::{List, Time};
use super::{Api, Caller};
use crate::billing::Billing;
use crate::billing::desk::{self, Desk, DeskError, Order, Paid, Portal, What, When};
use crate::billing::lifecycle::current;
use crate::billing::plans::Catalog;
use crate::billing::stripe::StripeError;
use crate::config::Interval;
use crate::ledger::AccountId;
use crate::store::SharedStore;
use crate::store::billing::SubscriptionRow;

/// Longer names are none of ours.
const MAX_NAME_CHARS: usize = 64;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Checkout {
    #[serde(default)]
    plan: Option<String>,
    #[serde(default)]
    pack: Option<String>,
    #[serde(default)]
    interval: Option<Interval>,
    #[serde(default)]
    currency: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Flow {
    PaymentMethod,
    Cancel,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OpenPortal {
    #[serde(default)]
    flow: Option<Flow>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChangeSubscription {
    #[serde(default)]
    plan: Option<String>,
    #[serde(default)]
    interval: Option<Interval>,
    /// Tells what it would cost, and changes nothing.
    #[serde(default)]
    preview: bool,
    /// Keeps what was to end.
    #[serde(default)]
    resume: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum At {
    #[default]
    PeriodEnd,
    Now,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CancelQuery {
    #[serde(default)]
    at: At,
}

#[derive(Serialize)]
struct PageView {
    id: String,
    url: String,
}

#[derive(Serialize)]
struct PreviewView {
    takes_effect: At,
    amount_due: i64,
    currency: String,
}

impl Serialize for At {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            At::PeriodEnd => "period_end",
            At::Now => "now",
        })
    }
}

impl From<When> for At {
    fn from(when: When) -> At {
        match when {
            When::Now => At::Now,
            When::PeriodEnd => At::PeriodEnd,
        }
    }
}

#[derive(Serialize)]
pub(crate) struct Standing {
    /// The user's plan.
    plan: String,
    /// Null for who never had one.
    subscription: Option<SubscriptionView>,
}

#[derive(Serialize)]
struct SubscriptionView {
    id: String,
    plan: String,
    /// In Stripe's words: active, trialing, past_due, paused, canceled, …
    status: String,
    interval: Option<Interval>,
    currency: String,
    /// In the currency's smallest unit, for one interval.
    amount: Option<i64>,
    current_period_start: Option<Time>,
    current_period_end: Option<Time>,
    trial_end: Option<Time>,
    cancel_at_period_end: bool,
    cancel_at: Option<Time>,
    ended_at: Option<Time>,
    /// The plan that follows at the period's end.
    next_plan: Option<String>,
    /// While a payment is due: since when, until when the plan's credits stay usable, and where it can be paid.
    past_due_since: Option<Time>,
    grace_ends_at: Option<Time>,
    pay_url: Option<String>,
}

#[derive(Serialize)]
struct PaidView {
    id: String,
    /// `invoice` or `pack`.
    kind: &'static str,
    number: Option<String>,
    status: String,
    amount: i64,
    currency: String,
    created_at: Time,
    hosted_url: Option<String>,
    pdf_url: Option<String>,
}

impl From<Paid> for PaidView {
    fn from(paid: Paid) -> PaidView {
        PaidView {
            id: paid.id,
            kind: if paid.invoice { "invoice" } else { "pack" },
            number: paid.number,
            status: paid.status,
            amount: paid.amount,
            currency: paid.currency,
            created_at: Time::from_micros(paid.created_at),
            hosted_url: paid.hosted_url,
            pdf_url: paid.pdf_url,
        }
    }
}

impl From<DeskError> for Problem {
    fn from(error: DeskError) -> Problem {
        match error {
            DeskError::Unknown(why) => Problem::bad_request(why),
            DeskError::Conflict(why) => Problem::conflict(why),
            DeskError::Busy => Problem::conflict("a checkout is being begun elsewhere").retry_after(1),
            DeskError::Store(error) => error.into(),
            DeskError::Stripe(error) => stripe_problem(&error),
            DeskError::Lifecycle(error) => {
                tracing::error!(%error, "what Stripe did could not be taken over; its event will be tried again");
                Problem::unavailable("it was done at Stripe and will show here a little later")
            }
        }
    }
}

fn stripe_problem(error: &StripeError) -> Problem {
    let refused = |why: &str| {
        let title = "The payment was refused";
        Problem::new(StatusCode::PAYMENT_REQUIRED, "payment-refused", title, why.to_owned())
    };
    match error {
        StripeError::Refused { status: 402, message, .. } => refused(message),
        StripeError::Refused { code, message, .. } => {
            tracing::warn!(code, message, "Stripe refused what a user asked for");
            Problem::conflict("Stripe refused it as things stand")
        }
        error => {
            tracing::warn!(%error, "Stripe could not be asked");
            Problem::unavailable("the payment provider is out of reach")
        }
    }
}

pub(super) fn billing(api: &Api) -> Result<&Arc<Billing>, Problem> {
    api.billing.as_ref().ok_or_else(|| Problem::unavailable("billing is not set up"))
}

pub(super) fn name(text: String) -> Result<String, Problem> {
    if text.is_empty() || text.len() > MAX_NAME_CHARS {
        Err(Problem::bad_request("there is no such plan or pack"))
    } else {
        Ok(text)
    }
}

pub(crate) async fn checkout(
    State(api): State<Arc<Api>>,
    Caller(principal): Caller,
    IdempotencyKey(key): IdempotencyKey,
    Json(body): Json<Checkout>,
) -> Result<Response, Problem> {
    let billing = billing(&api)?.clone();
    let user = principal.account.clone();
    let print = fingerprint(&[&format!("{body:?}")]);
    let what = match (body.plan, body.pack, body.interval) {
        (Some(plan), None, interval) => What::Plan { name: name(plan)?, interval: interval.unwrap_or(Interval::Month) },
        (None, Some(pack), None) => What::Pack { name: name(pack)? },
        _ => return Err(Problem::bad_request("name a plan (with an interval) or a pack")),
    };
    let order = Order { what, currency: body.currency.map(|currency| currency.to_lowercase()) };
    let request = Once { scope: format!("checkout {user}"), key, fingerprint: print };
    let work = async move {
        let page = billing.desk.checkout(&user, &order).await?;
        Created::new(StatusCode::CREATED, &PageView { id: page.id, url: page.url })
    };
    once(api.store.clone(), &api.tasks, request, work).await
}

pub(crate) async fn portal(
    State(api): State<Arc<Api>>,
    Caller(principal): Caller,
    IdempotencyKey(key): IdempotencyKey,
    Json(body): Json<OpenPortal>,
) -> Result<Response, Problem> {
    let billing = billing(&api)?.clone();
    let user = principal.account.clone();
    let portal = match body.flow {
        None => Portal::Home,
        Some(Flow::PaymentMethod) => Portal::PaymentMethod,
        Some(Flow::Cancel) => Portal::Cancel,
    };
    let request = Once { scope: format!("portal {user}"), key, fingerprint: fingerprint(&[&format!("{body:?}")]) };
    let work = async move {
        let page = billing.desk.portal(&user, portal).await?;
        Created::new(StatusCode::CREATED, &PageView { id: page.id, url: page.url })
    };
    once(api.store.clone(), &api.tasks, request, work).await
}

pub(crate) async fn show(State(api): State<Arc<Api>>, Caller(principal): Caller) -> Result<Response, Problem> {
    let billing = billing(&api)?;
    Ok(json(StatusCode::OK, &standing(&api.store, &api.catalog, &billing.desk, &principal.account).await?))
}

pub(crate) async fn change(
    State(api): State<Arc<Api>>,
    Caller(principal): Caller,
    IdempotencyKey(key): IdempotencyKey,
    Json(body): Json<ChangeSubscription>,
) -> Result<Response, Problem> {
    let billing = billing(&api)?.clone();
    let user = principal.account.clone();
    let print = fingerprint(&[&format!("{body:?}")]);
    let ChangeSubscription { plan, interval, preview, resume } = body;
    let change = match (plan, resume) {
        (Some(plan), false) => Some(desk::Change { plan: name(plan)?, interval }),
        (None, true) if interval.is_none() && !preview => None,
        _ => return Err(Problem::bad_request("name a plan, or resume")),
    };
    if let (true, Some(change)) = (preview, &change) {
        let preview = billing.desk.preview(&user, change).await?;
        let (takes_effect, currency) = (preview.when.into(), preview.currency);
        return Ok(json(StatusCode::OK, &PreviewView { takes_effect, amount_due: preview.amount_due, currency }));
    }
    let request = Once { scope: format!("subscription {user}"), key, fingerprint: print };
    let (store, tasks) = (api.store.clone(), api.tasks.clone());
    let work = async move {
        match change {
            Some(change) => billing.desk.change(&user, &change).await.map(drop)?,
            None => billing.desk.resume(&user).await?,
        }
        Created::new(StatusCode::OK, &standing(&api.store, &api.catalog, &billing.desk, &user).await?)
    };
    once(store, &tasks, request, work).await
}

pub(crate) async fn cancel(
    State(api): State<Arc<Api>>,
    Caller(principal): Caller,
    uri: Uri,
) -> Result<Response, Problem> {
    let Query(query) =
        Query::<CancelQuery>::try_from_uri(&uri).map_err(|error| Problem::bad_request(error.body_text()))?;
    let billing = billing(&api)?.clone();
    let user = principal.account.clone();
    let request = Once { scope: String::new(), key: None, fingerprint: 0 };
    let (store, tasks) = (api.store.clone(), api.tasks.clone());
    let work = async move {
        let when = if query.at == At::Now { When::Now } else { When::PeriodEnd };
        billing.desk.cancel(&user, when).await?;
        Created::new(StatusCode::OK, &standing(&api.store, &api.catalog, &billing.desk, &user).await?)
    };
    once(store, &tasks, request, work).await
}

pub(crate) async fn history(
    State(api): State<Arc<Api>>,
    Caller(principal): Caller,
    Paging(page): Paging,
) -> Result<Response, Problem> {
    let billing = billing(&api)?;
    let page = billing.desk.history(&principal.account, page.limit, page.cursor.as_deref()).await?;
    let data: Vec<PaidView> = page.data.into_iter().map(PaidView::from).collect();
    Ok(json(StatusCode::OK, &List { data, next: page.next }))
}

pub(crate) async fn standing(
    store: &SharedStore,
    catalog: &Catalog,
    desk: &Desk,
    user: &AccountId,
) -> Result<Standing, Problem> {
    let account = store.billing_account(user).await?;
    let Some(row) = current(&account.subscriptions) else {
        return Ok(Standing { plan: account.user.plan, subscription: None });
    };
    let next_plan = desk.scheduled(row).await?;
    let open = desk.open_invoice(row).await?;
    let view = view(catalog, row, next_plan, open.and_then(|invoice| invoice.hosted_invoice_url));
    Ok(Standing { plan: account.user.plan, subscription: Some(view) })
}

fn view(
    catalog: &Catalog,
    row: &SubscriptionRow,
    next_plan: Option<String>,
    pay_url: Option<String>,
) -> SubscriptionView {
    let offer = catalog.plan_of_price(&row.price);
    let grace_days = catalog.plan(&row.plan).map_or(0, |plan| plan.grace_days);
    let grace = |since: u64| since + u64::from(grace_days) * 24 * 3600 * 1_000_000;
    SubscriptionView {
        id: row.id.clone(),
        plan: row.plan.clone(),
        status: row.status.clone(),
        interval: offer.map(|offer| offer.price.interval),
        currency: row.currency.clone(),
        amount: offer.map(|offer| offer.price.amount),
        current_period_start: row.period_start.map(Time::from_micros),
        current_period_end: row.period_end.map(Time::from_micros),
        trial_end: row.trial_end.map(Time::from_micros),
        cancel_at_period_end: row.cancel_at_period_end,
        cancel_at: row.cancel_at.map(Time::from_micros),
        ended_at: row.ended_at.map(Time::from_micros),
        next_plan,
        past_due_since: row.past_due_since.map(Time::from_micros),
        grace_ends_at: row.past_due_since.map(grace).map(Time::from_micros),
        pay_url,
    }
}
