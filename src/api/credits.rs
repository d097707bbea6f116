//! Credits for the product's own backend: look, deduct, and hold for later.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use uuid::Uuid;

use super::extract::{IdempotencyKey, Json, json};
use super::frame::{ClientRequestId, RequestId};
use super::idempotency::{Created, Once, fingerprint, once, record_key, replayed};
use super::problem::Problem;
use super::types::{Amount, Charged, Check, Deduct, Held, Release, Released, Reserve, Settle, Text, Time};
use super::{Api, Caller, ask, refused};
use crate::config::{Config, Mode, Plan};
use crate::credits::Credits;
use crate::identity::principal::Principal;
use crate::ledger::{AccountId, Act, Answer, Balance, GrantKind, Kept, Micros, RecordId, RecordKey, SharedLedger};
use crate::store::SharedStore;
use crate::usage::Usage;

/// A shown balance is at most a second old; the rest of the second is for the way.
const SHOWN_FOR: Duration = Duration::from_millis(900);
const MAX_SHOWN: u64 = 100_000;
/// How long a hold stands that names no time.
const HOLD_SECONDS: u64 = 15 * 60;
const MAX_HOLD_SECONDS: u64 = 24 * 3600;
/// The name of the API among the routes of usage rows.
const ROUTE: &str = "api";

/// Balances as they were less than a second ago: to be shown, never to admit.
pub(crate) struct Balances {
    shown: moka::future::Cache<AccountId, Arc<Shown>>,
}

struct Shown {
    balance: Balance,
    resets_at: Option<Micros>,
}

impl Balances {
    pub(crate) fn new() -> Balances {
        Balances { shown: moka::future::Cache::builder().max_capacity(MAX_SHOWN).time_to_live(SHOWN_FOR).build() }
    }
}

/// The balance as the ledger has it now.
pub(crate) async fn balance(ledger: &SharedLedger, config: &Config, account: &AccountId) -> Result<Balance, Problem> {
    match ask(ledger, config, account, Act::Balance).await? {
        Answer::Balance(balance) => Ok(balance),
        other => Err(refused(other, account)),
    }
}

pub(crate) async fn check(State(api): State<Arc<Api>>, Caller(principal): Caller) -> Result<Response, Problem> {
    let account = &principal.account;
    let load = async {
        let balance = balance(&api.ledger, &api.config, account).await?;
        let resets_at = resets_at(&api.store, account, &balance).await;
        Ok::<_, Problem>(Arc::new(Shown { balance, resets_at }))
    };
    let found = match api.balances.shown.get(account).await {
        Some(shown) => shown,
        // Several at once for one account ask once.
        None => match api.balances.shown.try_get_with(account.clone(), load).await {
            Ok(found) => found,
            Err(problem) => return Err(Problem::clone(&problem)),
        },
    };
    let config = api.current.get();
    Ok(json(StatusCode::OK, &shown(&found, &principal.plan, config.plans.get(&*principal.plan))))
}

/// When the soonest of what plans gave ends. The ledger knows when it lapses, which is later by the plan's grace; the store
/// knows the period that was paid.
async fn resets_at(store: &SharedStore, account: &AccountId, balance: &Balance) -> Option<Micros> {
    let plans = || balance.grants.iter().filter(|grant| grant.kind == GrantKind::Plan && grant.expires_at > 0);
    plans().next()?;
    let ends = match store.period_ends(account).await {
        Ok(ends) => ends,
        Err(error) => {
            tracing::warn!(%account, %error, "when a period ends could not be read: it is not told");
            return None;
        }
    };
    let paid = |id| ends.iter().find(|(grant, _)| *grant == id).map(|(_, ends_at)| *ends_at);
    // One that an operator gave belongs to no period.
    plans().map(|grant| paid(grant.id).unwrap_or(grant.expires_at)).min()
}

fn shown(found: &Shown, plan: &str, terms: Option<&Plan>) -> Check {
    let Shown { balance, resets_at } = found;
    Check {
        available: balance.available,
        held: balance.held,
        debt: balance.debt,
        plan: plan.to_owned(),
        low: balance.available < low_below(terms),
        resets_at: resets_at.map(Time::from_micros),
    }
}

/// As the plan says; without one, the price of a message.
pub(crate) fn low_below(terms: Option<&Plan>) -> Credits {
    terms.map_or(Credits::whole(1), Plan::low_below)
}

pub(crate) async fn deduct(
    State(api): State<Arc<Api>>,
    Caller(principal): Caller,
    IdempotencyKey(key): IdempotencyKey,
    Extension(request_id): Extension<RequestId>,
    Extension(client_id): Extension<ClientRequestId>,
    Json(body): Json<Deduct>,
) -> Result<Response, Problem> {
    let account = &principal.account;
    let Deduct { amount: Amount(amount), reason } = body;
    let reason = reason.map(|Text(reason)| reason);
    let print = fingerprint(&[&amount.to_string(), reason.as_deref().unwrap_or_default()]);
    let record = key.map(|key| record_key("deduct", account, &key, print));
    let usage = usage(&principal, request_id, client_id, reason).encode();
    charge(&api, account, amount, usage, record).await
}

/// Charges without a hold, by how payment is taken of this user.
async fn charge(
    api: &Api,
    account: &AccountId,
    amount: Credits,
    usage: Bytes,
    record: Option<RecordKey>,
) -> Result<Response, Problem> {
    let mode = api.current.get().enforcement.mode_of(account);
    if mode == Mode::Off {
        return spared(api, account, None).await;
    }
    let answer = ask(&api.ledger, &api.config, account, Act::Charge { actual: amount, must: false, usage, record });
    let answer = answer.await?;
    api.balances.shown.invalidate(account).await;
    match answer {
        Answer::Insufficient { .. } if mode == Mode::Shadow => spared(api, account, Some("insufficient_credits")).await,
        Answer::Frozen if mode == Mode::Shadow => spared(api, account, Some("forbidden")).await,
        Answer::Settled { charged, available } => Ok(json(StatusCode::OK, &Charged { charged, available })),
        Answer::Repeated(Kept::Charged { charged_micro, available_micro }) => {
            let body = Charged { charged: credits(charged_micro), available: credits(available_micro) };
            Ok(replayed(json(StatusCode::OK, &body)))
        }
        Answer::Insufficient { available, held } => Err(Problem::insufficient(amount, available, held)),
        other => Err(refused(other, account)),
    }
}

/// Nothing is charged, because payment is not enforced; `reason`: why it would have been refused.
async fn spared(api: &Api, account: &AccountId, reason: Option<&str>) -> Result<Response, Problem> {
    count_spared(api, account, reason);
    let balance = balance(&api.ledger, &api.config, account).await?;
    Ok(json(StatusCode::OK, &Charged { charged: Credits::ZERO, available: balance.available }))
}

fn count_spared(api: &Api, account: &AccountId, reason: Option<&str>) {
    if let Some(reason) = reason {
        api.metrics.shadow_refusals.with_label_values(&["api", reason]).inc();
        tracing::info!(%account, outcome = reason, "a call of the API would have been refused");
    }
}

/// A hold that holds nothing, where payment is not enforced. What is settled of it is charged like a deduction.
async fn spared_hold(
    api: &Api,
    account: &AccountId,
    record: RecordKey,
    seconds: u64,
    reason: Option<&str>,
) -> Result<Response, Problem> {
    count_spared(api, account, reason);
    let balance = balance(&api.ledger, &api.config, account).await?;
    let now = u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(0);
    let body = Held {
        id: spared_id(record.id),
        held: Credits::ZERO,
        available: balance.available,
        expires_at: Time::from_micros(now.saturating_add(seconds * 1_000_000)),
    };
    Ok(json(StatusCode::CREATED, &body))
}

/// How the ids of holds begin that were never made.
const SPARED: &[u8; 6] = b"spared";

/// The same for the same record, and no id of a hold that is one.
fn spared_id(RecordId(id): RecordId) -> Uuid {
    let mut bytes = id.into_bytes();
    bytes[..SPARED.len()].copy_from_slice(SPARED);
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    Uuid::from_bytes(bytes)
}

fn is_spared(RecordId(id): RecordId) -> bool {
    id.as_bytes().starts_with(SPARED)
}

pub(crate) async fn reserve(
    State(api): State<Arc<Api>>,
    Caller(principal): Caller,
    IdempotencyKey(key): IdempotencyKey,
    Json(body): Json<Reserve>,
) -> Result<Response, Problem> {
    let account = &principal.account;
    let Reserve { amount: Amount(amount), expires_in } = body;
    let seconds = expires_in.unwrap_or(HOLD_SECONDS);
    if !(1..=MAX_HOLD_SECONDS).contains(&seconds) {
        return Err(Problem::bad_request(format!("expires_in is 1 to {MAX_HOLD_SECONDS} seconds")));
    }
    let print = fingerprint(&[&amount.to_string(), &seconds.to_string()]);
    let record = match key {
        // With the caller's own key in it: whoever else may act for the account cannot guess the hold's id.
        Some(key) => record_key(&format!("reserve {}", principal.key_id), account, &key, print),
        None => RecordKey { id: RecordId(Uuid::now_v7()), fingerprint: print },
    };
    let mode = api.current.get().enforcement.mode_of(account);
    if mode == Mode::Off {
        return spared_hold(&api, account, record, seconds, None).await;
    }
    let act = Act::Hold { record, amount, expires_in_us: seconds * 1_000_000, must: false };
    let answer = ask(&api.ledger, &api.config, account, act).await?;
    api.balances.shown.invalidate(account).await;
    let made = |held, available, expires_at| {
        let body = Held { id: record.id.0, held, available, expires_at: Time::from_micros(expires_at) };
        json(StatusCode::CREATED, &body)
    };
    let spare = match answer {
        Answer::Insufficient { .. } => Some("insufficient_credits"),
        Answer::Frozen => Some("forbidden"),
        Answer::Limited { .. } => Some("rate_limited"),
        _ => None,
    };
    if mode == Mode::Shadow && spare.is_some() {
        return spared_hold(&api, account, record, seconds, spare).await;
    }
    match answer {
        Answer::Held { held, available, expires_at } => Ok(made(held, available, expires_at)),
        Answer::Repeated(Kept::Held { held_micro, available_micro, expires_at }) => {
            Ok(replayed(made(credits(held_micro), credits(available_micro), expires_at)))
        }
        // The same request again, but its hold has ended since: to answer with it would promise what is gone.
        Answer::Repeated(kept) => Err(Problem::finished(kept)),
        Answer::Insufficient { available, held } => Err(Problem::insufficient(amount, available, held)),
        other => Err(refused(other, account)),
    }
}

pub(crate) async fn settle(
    State(api): State<Arc<Api>>,
    Caller(principal): Caller,
    IdempotencyKey(key): IdempotencyKey,
    Extension(request_id): Extension<RequestId>,
    Extension(client_id): Extension<ClientRequestId>,
    Json(body): Json<Settle>,
) -> Result<Response, Problem> {
    let Settle { id, amount: Amount(amount), reason } = body;
    let reason = reason.map(|Text(reason)| reason);
    let record = hold_id(&id)?;
    let print = fingerprint(&[&record.0.to_string(), &amount.to_string(), reason.as_deref().unwrap_or_default()]);
    let usage = usage(&principal, request_id, client_id, reason).encode();
    if is_spared(record) {
        let once = RecordKey { id: record, fingerprint: print };
        return charge(&api, &principal.account, amount, usage, Some(once)).await;
    }
    let act = Act::SettleHold { record, actual: amount, must: false, usage };
    let once_ = Once { scope: format!("settle {}", principal.account), key, fingerprint: print };
    let (store, tasks) = (api.store.clone(), api.tasks.clone());
    let work = async move {
        let account = &principal.account;
        let answer = ask(&api.ledger, &api.config, account, act).await?;
        api.balances.shown.invalidate(account).await;
        match answer {
            Answer::Settled { charged, available } => Created::new(StatusCode::OK, &Charged { charged, available }),
            Answer::Insufficient { available, held } => Err(Problem::insufficient(amount, available, held)),
            other => Err(refused(other, account)),
        }
    };
    once(store, &tasks, once_, work).await
}

pub(crate) async fn release(
    State(api): State<Arc<Api>>,
    Caller(principal): Caller,
    IdempotencyKey(key): IdempotencyKey,
    Json(body): Json<Release>,
) -> Result<Response, Problem> {
    let record = hold_id(&body.id)?;
    if is_spared(record) {
        let balance = balance(&api.ledger, &api.config, &principal.account).await?;
        return Ok(json(StatusCode::OK, &Released { available: balance.available }));
    }
    let print = fingerprint(&[&record.0.to_string()]);
    let once_ = Once { scope: format!("release {}", principal.account), key, fingerprint: print };
    let (store, tasks) = (api.store.clone(), api.tasks.clone());
    let work = async move {
        let account = &principal.account;
        let act = Act::ReleaseHold { record, expired_only: false };
        let answer = ask(&api.ledger, &api.config, account, act).await?;
        api.balances.shown.invalidate(account).await;
        match answer {
            Answer::Released { available } => Created::new(StatusCode::OK, &Released { available }),
            other => Err(refused(other, account)),
        }
    };
    once(store, &tasks, once_, work).await
}

fn hold_id(text: &str) -> Result<RecordId, Problem> {
    Uuid::try_parse(text).map(RecordId).map_err(|_| Problem::unknown_hold())
}

fn credits(micro: i64) -> Credits {
    Credits::saturating_from_micro(i128::from(micro))
}

fn usage(
    principal: &Principal,
    RequestId(request_id): RequestId,
    ClientRequestId(client_request_id): ClientRequestId,
    reason: Option<String>,
) -> Usage {
    let now_ms = jiff::Timestamp::now().as_millisecond();
    Usage {
        request_id,
        client_request_id,
        key_id: Some(principal.key_id.to_string()),
        route: ROUTE.to_owned(),
        status: StatusCode::OK.as_u16(),
        created_at_ms: u64::try_from(now_ms).unwrap_or(0),
        reason,
        ..Usage::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(available: &str) -> Shown {
        let balance = Balance {
            available: available.parse().unwrap(),
            held: Credits::ZERO,
            clawed: Credits::ZERO,
            debt: Credits::ZERO,
            frozen: false,
            seq: 1,
            change: 1,
            in_flight: 0,
            grants: Vec::new(),
        };
        Shown { balance, resets_at: None }
    }

    #[test]
    fn low_is_what_the_plan_says_or_less_than_a_message() {
        let plan = Plan { signup_credits: Credits::whole(100), ..Plan::default() };
        assert!(shown(&with("9.999999"), "pro", Some(&plan)).low);
        assert!(!shown(&with("10"), "pro", Some(&plan)).low);
        assert!(shown(&with("0.5"), "gone", None).low);
        assert!(!shown(&with("1"), "gone", None).low);
    }

    #[test]
    fn holds_that_were_never_made_are_known_by_their_ids() {
        let record = record_key("reserve k", &AccountId::parse("u").unwrap(), "key", 1).id;
        let spared = RecordId(spared_id(record));
        assert!(is_spared(spared) && !is_spared(record) && !is_spared(RecordId(Uuid::now_v7())));
        assert_eq!(spared_id(record), spared.0);
        assert_eq!(spared.0.get_version_num(), 8);
    }

    #[test]
    fn the_answer_has_its_form() {
        let found = Shown { resets_at: Some(5_000_000), ..with("1") };
        let text = serde_json::to_string(&shown(&found, "pro", None)).unwrap();
        assert_eq!(
            text,
            r#"{"available":1,"held":0,"debt":0,"plan":"pro","low":false,"resets_at":"1970-01-01T00:00:05Z"}"#
        );
    }
}
