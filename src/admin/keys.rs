//! API keys: users' own under `/users/{id}/keys`, the product's service keys under `/keys`. A key's text is shown once.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use http::StatusCode;

use super::grants::list_page;
use super::{Admin, Named};
use crate::api::extract::{IdempotencyKey, Json, Paging, json};
use crate::api::idempotency::{Created, Once, fingerprint, once};
use crate::api::problem::Problem;
use crate::api::types::{CreateKey, CreateUserKey, KeyView, Text};
use crate::identity::keys::{NewKey, new_key_id};
use crate::ledger::AccountId;
use crate::store::{KeyKind, KeyRow, PageRequest, UserStatus};

/// Keys of one user, or service keys, that are not revoked.
const MAX_LIVE_KEYS: usize = 100;

pub(super) async fn create(
    State(admin): State<Arc<Admin>>,
    Named(user): Named,
    IdempotencyKey(key): IdempotencyKey,
    Json(body): Json<CreateUserKey>,
) -> Result<Response, Problem> {
    if user.status == UserStatus::Closed {
        return Err(Problem::conflict("the account is closed"));
    }
    let CreateUserKey { name: Text(name), test } = body;
    let kind = if test { KeyKind::Test } else { KeyKind::Live };
    make(admin, Some(user.id), kind, name, key).await
}

pub(super) async fn create_service(
    State(admin): State<Arc<Admin>>,
    IdempotencyKey(key): IdempotencyKey,
    Json(body): Json<CreateKey>,
) -> Result<Response, Problem> {
    let CreateKey { name: Text(name) } = body;
    make(admin, None, KeyKind::Service, name, key).await
}

/// A repetition of the request is answered without the key's text: that is kept nowhere.
async fn make(
    admin: Arc<Admin>,
    user: Option<AccountId>,
    kind: KeyKind,
    name: String,
    key: Option<String>,
) -> Result<Response, Problem> {
    let owner = user.as_ref().map(AccountId::as_str).unwrap_or_default();
    let request =
        Once { scope: format!("admin keys {owner}"), key, fingerprint: fingerprint(&[&name, &format!("{kind:?}")]) };
    let (store, tasks) = (admin.store.clone(), admin.tasks.clone());
    let work = async move {
        let known = admin.store.keys_of(user.as_ref()).await?;
        if known.iter().filter(|key| key.revoked_at.is_none()).count() >= MAX_LIVE_KEYS {
            return Err(Problem::conflict(format!("there are {MAX_LIVE_KEYS} keys already: revoke one first")));
        }
        let new = NewKey::generate(kind).map_err(|error| {
            tracing::error!(%error, "a key cannot be made");
            Problem::internal()
        })?;
        let now = u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(0);
        let row = new.row(new_key_id(), user, name, now);
        admin.store.create_key(row.clone()).await?;
        admin.identity.forget_key(&row.hash);
        admin.audit("key.create", row.user.as_ref(), &row.id).await;
        let kept = KeyView::from(row);
        let shown = KeyView { key: Some(new.text.reveal().to_owned()), ..kept.clone() };
        Created::new(StatusCode::CREATED, &shown)?.keeping(&kept)
    };
    once(store, &tasks, request, work).await
}

pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    Named(user): Named,
    Paging(page): Paging,
) -> Result<Response, Problem> {
    listed(admin.store.keys_of(Some(&user.id)).await?, &page)
}

pub(super) async fn list_service(State(admin): State<Arc<Admin>>, Paging(page): Paging) -> Result<Response, Problem> {
    listed(admin.store.keys_of(None).await?, &page)
}

fn listed(keys: Vec<KeyRow>, page: &PageRequest) -> Result<Response, Problem> {
    Ok(json(StatusCode::OK, &list_page(keys, page, |key| key.id.clone(), KeyView::from)?))
}

pub(super) async fn revoke(
    State(admin): State<Arc<Admin>>,
    Named(user): Named,
    Path((_, key)): Path<(String, String)>,
) -> Result<Response, Problem> {
    revoked(&admin, Some(&user.id), &key).await
}

pub(super) async fn revoke_service(
    State(admin): State<Arc<Admin>>,
    Path(key): Path<String>,
) -> Result<Response, Problem> {
    revoked(&admin, None, &key).await
}

/// On this replica the key is refused when the answer leaves, on the others within a second.
async fn revoked(admin: &Admin, user: Option<&AccountId>, key: &str) -> Result<Response, Problem> {
    let row = admin.store.revoke_key(user, key).await?;
    admin.identity.forget_key(&row.hash);
    admin.audit("key.revoke", user, &row.id).await;
    Ok(json(StatusCode::OK, &KeyView::from(row)))
}
