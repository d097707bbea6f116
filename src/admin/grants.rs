//! Credits that the operator gives.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use uuid::Uuid;

use super::{Admin, Named, OPERATOR};
use crate::api::extract::{IdempotencyKey, Json, Paging, json};
use crate::api::idempotency::{Created, Once, derived_id, fingerprint, once};
use crate::api::problem::Problem;
use crate::api::types::{Amount, CreateGrant, GrantView, List, Text, Time};
use crate::ledger::{Change, GrantId, GrantKind};
use crate::store::{NewChange, UserStatus};

pub(super) async fn create(
    State(admin): State<Arc<Admin>>,
    Named(user): Named,
    IdempotencyKey(key): IdempotencyKey,
    Json(body): Json<CreateGrant>,
) -> Result<Response, Problem> {
    if user.status == UserStatus::Closed {
        return Err(Problem::conflict("the account is closed"));
    }
    let CreateGrant { amount: Amount(amount), kind, expires_at, note } = body;
    let kind = kind.unwrap_or(GrantKind::Promo);
    let note = note.map(|Text(note)| note);
    let expires = match expires_at {
        None => 0,
        Some(Time(time)) if time <= jiff::Timestamp::now() => {
            return Err(Problem::bad_request("expires_at must lie in the future"));
        }
        Some(time) => time.micros().ok_or_else(|| Problem::bad_request("expires_at must lie in the future"))?,
    };
    let print = fingerprint(&[
        &amount.to_string(),
        &format!("{kind:?}"),
        &expires.to_string(),
        note.as_deref().unwrap_or_default(),
    ]);
    // The source key alone makes it once, even where this process dies between the grant and its answer.
    let source = key.as_deref().map_or_else(Uuid::now_v7, |key| derived_id(&["grant", user.id.as_str(), key]));
    let change = NewChange {
        account: user.id.clone(),
        change: Change::Grant { kind, amount_micro: amount.micro(), expires_at: expires },
        source_key: format!("admin:{source}"),
        note: note.clone(),
        actor: OPERATOR.to_owned(),
    };
    let request = Once { scope: format!("admin grants {}", user.id), key, fingerprint: print };
    let (store, tasks) = (admin.store.clone(), admin.tasks.clone());
    let work = async move {
        let row = admin.store.add_change(change).await?;
        let pending = admin.pending(&row.account).await;
        let made = GrantView {
            id: GrantId(row.number),
            kind,
            amount,
            remaining: amount,
            expires_at,
            frozen: false,
            note,
            created_at: Time(jiff::Timestamp::now()),
            pending,
        };
        // As the store has it, which knows when it was made.
        let stored = admin.store.grants(&row.account).await?.into_iter().find(|grant| grant.id == made.id);
        let view = stored.map_or(made, |grant| GrantView { pending, ..GrantView::from(grant) });
        Created::new(StatusCode::CREATED, &view)
    };
    once(store, &tasks, request, work).await
}

pub(super) async fn list(
    State(admin): State<Arc<Admin>>,
    Named(user): Named,
    Paging(page): Paging,
) -> Result<Response, Problem> {
    let grants = admin.store.grants(&user.id).await?;
    Ok(json(StatusCode::OK, &list_page(grants, &page, |grant| grant.id.0.to_string(), GrantView::from)?))
}

/// A page of a list that the store gives whole. The cursor is the id of the last item given.
pub(super) fn list_page<T, V>(
    items: Vec<T>,
    page: &crate::store::PageRequest,
    id: impl Fn(&T) -> String,
    view: impl Fn(T) -> V,
) -> Result<List<V>, Problem> {
    let start = match &page.cursor {
        None => 0,
        Some(cursor) => {
            let last = items.iter().position(|item| id(item) == *cursor);
            last.ok_or_else(|| Problem::bad_request("a cursor is what an earlier page gave as next"))? + 1
        }
    };
    let end = items.len().min(start + page.limit as usize);
    let next = if end < items.len() { items.get(end - 1).map(&id) } else { None };
    let data = items.into_iter().skip(start).take(end - start).map(view).collect();
    Ok(List { data, next })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::PageRequest;

    #[test]
    fn pages_cover_a_list_once() {
        let page = |cursor: Option<String>| {
            list_page(vec![5, 4, 3, 2, 1], &PageRequest { limit: 2, cursor }, i32::to_string, |item| item)
        };
        let (mut seen, mut cursor) = (Vec::new(), None);
        for _ in 0..3 {
            let list = page(cursor).unwrap();
            seen.extend(list.data);
            cursor = list.next;
        }
        assert_eq!((seen, cursor), (vec![5, 4, 3, 2, 1], None));
        assert!(page(Some("9".into())).is_err());
    }
}
