//! What Stripe told, how it was taken, and once more; fraud warnings that an operator has looked into.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::response::Response;
use http::{StatusCode, Uri};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Admin, Named, OPERATOR};
use crate::api::extract::json;
use crate::api::problem::Problem;
use crate::api::types::{List, Time, UserView};
use crate::ledger::AccountId;
use crate::store::PageRequest;
use crate::store::billing::{Decision, Effect, EventFilter, EventRow, EventState};
use crate::store::notifications::NoticeKind;

const DEFAULT_PAGE: u32 = 50;
const MAX_PAGE: u32 = 500;
/// Attempts to write what billing changes at the same time.
const MAX_ROUNDS: usize = 8;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    state: Option<EventState>,
    user: Option<AccountId>,
    limit: Option<u32>,
    cursor: Option<String>,
}

#[derive(Serialize)]
struct EventView {
    id: String,
    event_type: String,
    object_id: Option<String>,
    state: EventState,
    user_id: Option<AccountId>,
    /// In the currency's smallest unit.
    amount: Option<i64>,
    currency: Option<String>,
    attempts: u32,
    error: Option<String>,
    livemode: bool,
    created_at: Time,
    received_at: Time,
    processed_at: Option<Time>,
    /// Only of a pending event.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_at: Option<Time>,
    /// As it came; left out of lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Box<RawValue>>,
}

impl From<EventRow> for EventView {
    fn from(row: EventRow) -> EventView {
        let pending = row.state == EventState::Pending;
        EventView {
            id: row.id,
            event_type: row.event_type,
            object_id: row.object_id,
            state: row.state,
            user_id: row.user,
            amount: row.amount,
            currency: row.currency,
            attempts: row.attempts,
            error: row.error,
            livemode: row.livemode,
            created_at: Time::from_micros(row.created_at),
            received_at: Time::from_micros(row.received_at),
            processed_at: row.processed_at.map(Time::from_micros),
            next_attempt_at: pending.then(|| Time::from_micros(row.next_attempt_at)),
            payload: RawValue::from_string(row.payload).ok(),
        }
    }
}

pub(super) async fn list(State(admin): State<Arc<Admin>>, uri: Uri) -> Result<Response, Problem> {
    let Query(query) =
        Query::<EventsQuery>::try_from_uri(&uri).map_err(|error| Problem::bad_request(error.body_text()))?;
    let limit = query.limit.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Problem::bad_request(format!("limit is 1 to {MAX_PAGE}")));
    }
    let filter = EventFilter { state: query.state, user: query.user };
    let page = admin.store.billing_events(filter, PageRequest { limit, cursor: query.cursor }).await?;
    let data: Vec<EventView> = page.data.into_iter().map(EventView::from).collect();
    Ok(json(StatusCode::OK, &List { data, next: page.next }))
}

pub(super) async fn show(State(admin): State<Arc<Admin>>, Path(id): Path<String>) -> Result<Response, Problem> {
    let row = admin.store.billing_event(&id).await?;
    let row = row.ok_or_else(|| Problem::not_found("there is no such event"))?;
    Ok(json(StatusCode::OK, &EventView::from(row)))
}

/// Makes it due now; the inbox of whichever replica takes it within a second.
pub(super) async fn replay(State(admin): State<Arc<Admin>>, Path(id): Path<String>) -> Result<Response, Problem> {
    let row = admin.store.replay_event(&id).await?;
    admin.audit("event.replay", row.user.as_ref(), &row.id).await;
    Ok(json(StatusCode::OK, &EventView { payload: None, ..EventView::from(row) }))
}

/// The operator has looked into it: signals of fraud no longer count, and what was held back or frozen because of them is
/// usable again.
pub(super) async fn unflag(State(admin): State<Arc<Admin>>, Named(user): Named) -> Result<Response, Problem> {
    let undone = admin.fraud.clear(&user.id, OPERATOR).await?;
    admin.identity.forget_user(&user.id);
    let user = match undone {
        Some(_) => admin.store.user(&user.id).await?.ok_or_else(Problem::internal)?,
        None => user,
    };
    for _ in 0..MAX_ROUNDS {
        let account = admin.store.billing_account(&user.id).await?;
        if !account.flagged {
            return Ok(json(StatusCode::OK, &UserView::from(user)));
        }
        let detail = "the operator has looked into it".to_owned();
        let disputed = account.purchases.iter().any(|purchase| purchase.frozen);
        let told = (!disputed).then(|| Effect::Notify {
            kind: NoticeKind::AccountUnfrozen,
            data: serde_json::json!({ "reason": "resolved" }),
            dedupe_key: format!("account_unfrozen:billing:{}", account.version),
        });
        let decision = Decision {
            user: user.id.clone(),
            version: account.version,
            actor: OPERATOR.to_owned(),
            // The clock thaws the grants.
            effects: [Effect::Flagged(false), Effect::Due(Some(1)), Effect::Note { action: "billing.unflag", detail }]
                .into_iter()
                .chain(told)
                .collect(),
            event: None,
        };
        if admin.store.apply_decision(decision).await?.is_some() {
            return Ok(json(StatusCode::OK, &UserView::from(user)));
        }
    }
    Err(Problem::conflict("the account changes all the time").retry_after(1))
}
