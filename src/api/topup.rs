//! `/api/billing/auto-topup`: that a pack is bought by itself when little is left.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::extract::{Json, json};
use super::problem::Problem;
use super::subscription::{billing, name};
use super::types::{Amount, Time};
use super::{Api, Caller};
use crate::billing::desk::{AutoStanding, Wanted};
use crate::billing::inbox::now;
use crate::credits::Credits;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SetAutoTopup {
    threshold: Amount,
    pack: String,
    #[serde(default)]
    currency: Option<String>,
    /// In the currency's smallest unit, for a calendar month (UTC).
    monthly_cap: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Phase {
    Off,
    Ready,
    /// A card was declined; it is tried again.
    Waiting,
    /// The month's cap is reached.
    Capped,
    /// The user has to act: another card, or to ask anew.
    Stopped,
}

#[derive(Serialize)]
struct AutoTopupView {
    state: Phase,
    /// Null, as all that follows, for who never asked for it.
    threshold: Option<Credits>,
    pack: Option<String>,
    currency: Option<String>,
    /// What the pack costs, in the currency's smallest unit.
    amount: Option<i64>,
    monthly_cap: Option<i64>,
    spent_this_month: Option<i64>,
    /// What the last decline said.
    error: Option<String>,
    next_attempt_at: Option<Time>,
}

impl AutoTopupView {
    fn new(standing: Option<AutoStanding>) -> AutoTopupView {
        let Some(AutoStanding { auto, amount, spent }) = standing else {
            return AutoTopupView {
                state: Phase::Off,
                threshold: None,
                pack: None,
                currency: None,
                amount: None,
                monthly_cap: None,
                spent_this_month: None,
                error: None,
                next_attempt_at: None,
            };
        };
        let waits = auto.next_at > now();
        let state = match (auto.enabled, auto.stopped, waits, auto.error.as_deref()) {
            (false, ..) => Phase::Off,
            (_, true, ..) => Phase::Stopped,
            (.., true, Some("monthly_cap")) => Phase::Capped,
            (.., true, _) => Phase::Waiting,
            _ => Phase::Ready,
        };
        let due = matches!(state, Phase::Waiting | Phase::Capped);
        AutoTopupView {
            state,
            threshold: Credits::from_micro(auto.terms.threshold),
            pack: Some(auto.terms.pack),
            currency: Some(auto.terms.currency),
            amount,
            monthly_cap: Some(auto.terms.monthly_cap),
            spent_this_month: Some(spent),
            error: auto.error.filter(|_| state != Phase::Ready),
            next_attempt_at: due.then(|| Time::from_micros(auto.next_at)),
        }
    }
}

pub(crate) async fn show(State(api): State<Arc<Api>>, Caller(principal): Caller) -> Result<Response, Problem> {
    let standing = billing(&api)?.desk.auto_topup(&principal.account).await?;
    Ok(json(StatusCode::OK, &AutoTopupView::new(standing)))
}

pub(crate) async fn set(
    State(api): State<Arc<Api>>,
    Caller(principal): Caller,
    Json(body): Json<SetAutoTopup>,
) -> Result<Response, Problem> {
    let SetAutoTopup { threshold: Amount(threshold), pack, currency, monthly_cap } = body;
    let currency = currency.map(|currency| currency.to_lowercase());
    let wanted = Wanted { threshold, pack: name(pack)?, currency, monthly_cap };
    let standing = billing(&api)?.desk.set_auto_topup(&principal.account, &wanted).await?;
    Ok(json(StatusCode::OK, &AutoTopupView::new(Some(standing))))
}

pub(crate) async fn end(State(api): State<Arc<Api>>, Caller(principal): Caller) -> Result<Response, Problem> {
    billing(&api)?.desk.end_auto_topup(&principal.account).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
