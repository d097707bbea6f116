//! A user's own keys: made, shown, ended.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::extract::{IdempotencyKey, Json, Paging, json};
use super::idempotency::{Created, Once, fingerprint, once};
use super::problem::Problem;
use super::types::{Amount, List, Text, Time};
use super::{Api, Caller};
use crate::credits::Credits;
use crate::identity::keys::{NewKey, new_key_id};
use crate::identity::scope;
use crate::store::{KeyBudget, KeyKind, KeyRow, PageRequest};

/// Keys of one user that are not revoked.
const MAX_KEYS: usize = 100;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateKey {
    name: Text<128>,
    #[serde(default)]
    expires_at: Option<Time>,
    /// What its requests may cost in all.
    #[serde(default)]
    budget: Option<Amount>,
    /// Globs of the models that it may ask for.
    #[serde(default)]
    models: Option<Vec<String>>,
}

#[derive(Clone, Serialize)]
struct Budget {
    limit: Credits,
    used: Credits,
}

#[derive(Clone, Serialize)]
struct KeyView {
    id: String,
    name: String,
    prefix: String,
    created_at: Time,
    last_used_at: Option<Time>,
    expires_at: Option<Time>,
    budget: Option<Budget>,
    models: Option<Vec<String>>,
    /// Only in the answer that makes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl From<KeyRow> for KeyView {
    fn from(row: KeyRow) -> KeyView {
        KeyView {
            id: row.id,
            name: row.name,
            prefix: row.prefix,
            created_at: Time::from_micros(row.created_at),
            last_used_at: row.last_used_at.map(Time::from_micros),
            expires_at: row.expires_at.map(Time::from_micros),
            budget: row.budget.map(|KeyBudget { limit, used }| Budget { limit, used }),
            models: row.models,
            key: None,
        }
    }
}

/// Those that are not revoked, newest first.
pub(crate) async fn list(
    State(api): State<Arc<Api>>,
    Caller(caller): Caller,
    Paging(PageRequest { limit, cursor }): Paging,
) -> Result<Response, Problem> {
    let keys = api.store.keys_of(Some(&caller.account)).await?;
    let live = keys.into_iter().filter(|key| key.revoked_at.is_none());
    // In the order of their making, so that a key's id says where to go on.
    let mut left = live.skip_while(|key| cursor.as_ref().is_some_and(|after| key.id >= *after)).map(KeyView::from);
    let data: Vec<KeyView> = left.by_ref().take(usize::try_from(limit).unwrap_or(usize::MAX)).collect();
    let next = data.last().filter(|_| left.next().is_some()).map(|last| last.id.clone());
    Ok(json(StatusCode::OK, &List { data, next }))
}

pub(crate) async fn create(
    State(api): State<Arc<Api>>,
    Caller(caller): Caller,
    IdempotencyKey(key): IdempotencyKey,
    Json(body): Json<CreateKey>,
) -> Result<Response, Problem> {
    let CreateKey { name: Text(name), expires_at, budget, models } = body;
    let now = Time(jiff::Timestamp::now());
    if expires_at.is_some_and(|at| at.0 <= now.0) {
        return Err(Problem::bad_request("expires_at lies in the past"));
    }
    if let Some(models) = &models {
        scope::check_models(models).map_err(|error| Problem::bad_request(format!("models: {error}")))?;
    }
    let budget = budget.map(|Amount(limit)| limit);
    let print = fingerprint(&[
        &name,
        &expires_at.map(|at| at.0.to_string()).unwrap_or_default(),
        &budget.map(|limit| limit.to_string()).unwrap_or_default(),
        &models.as_ref().map(|models| models.join("\n")).unwrap_or_default(),
    ]);
    let once_ = Once { scope: format!("keys {}", caller.account), key, fingerprint: print };
    let (store, tasks, owner) = (api.store.clone(), api.tasks.clone(), caller.account.clone());
    let kept_in = store.clone();
    let work = async move {
        let known = store.keys_of(Some(&owner)).await?;
        if known.iter().filter(|key| key.revoked_at.is_none()).count() >= MAX_KEYS {
            return Err(Problem::conflict(format!("there are {MAX_KEYS} keys already: revoke one first")));
        }
        let new = NewKey::generate(KeyKind::Live).map_err(|error| {
            tracing::error!(%error, "no key can be made");
            Problem::internal()
        })?;
        let row = new.row(new_key_id(), Some(owner.clone()), name, now.micros().unwrap_or(0));
        let row = KeyRow {
            expires_at: expires_at.and_then(Time::micros),
            budget: budget.map(|limit| KeyBudget { limit, used: Credits::ZERO }),
            models,
            ..row
        };
        store.create_key(row.clone()).await?;
        api.identity.forget_key(&row.hash);
        if let Err(error) = store.audit("user", "key.create", Some(&owner), &row.id).await {
            tracing::error!(%error, key = row.id, "that a key was made could not be written to the audit log");
        }
        let kept = KeyView::from(row);
        let shown = KeyView { key: Some(new.text.reveal().to_owned()), ..kept.clone() };
        // A repetition is answered without the key's text: that is kept nowhere.
        Created::new(StatusCode::CREATED, &shown)?.keeping(&kept)
    };
    once(kept_in, &tasks, once_, work).await
}

/// At once here, within a second on every other replica.
pub(crate) async fn revoke(
    State(api): State<Arc<Api>>,
    Caller(caller): Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let revoked = api.store.revoke_key(Some(&caller.account), &id).await?;
    api.identity.forget_key(&revoked.hash);
    if let Err(error) = api.store.audit("user", "key.revoke", Some(&caller.account), &id).await {
        tracing::error!(%error, key = id, "that a key was revoked could not be written to the audit log");
    }
    Ok(StatusCode::NO_CONTENT)
}
