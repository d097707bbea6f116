//! Users: made, listed, shown with what they have.

use std::sync::Arc;

use axum::extract::{Query, Request, State};
use axum::response::Response;
use http::{StatusCode, Uri};
use serde::Deserialize;
use uuid::Uuid;

use super::{Admin, Named};
use crate::api::credits::balance;
use crate::api::extract::{IdempotencyKey, Json, checked_page, json};
use crate::api::idempotency::{Created, Once, derived_id, fingerprint, once};
use crate::api::problem::Problem;
use crate::api::types::{CreateUser, CreditsView, GrantView, List, Text, UserView};
use crate::api::usage::own;
use crate::credits::Credits;
use crate::ledger::AccountId;
use crate::store::{NewUser, StoreError};

const DEFAULT_PLAN: &str = "free";

pub(super) async fn create(
    State(admin): State<Arc<Admin>>,
    IdempotencyKey(key): IdempotencyKey,
    Json(body): Json<CreateUser>,
) -> Result<Response, Problem> {
    let CreateUser { id, email, plan, signup } = body;
    let email = email.map(|Text(email)| email);
    let plan = plan.unwrap_or_else(|| DEFAULT_PLAN.to_owned());
    let Some(terms) = admin.config.plans.get(&plan) else {
        let known: Vec<&str> = admin.config.plans.keys().map(String::as_str).collect();
        return Err(Problem::bad_request(format!("there is no such plan; the plans are {}", known.join(", "))));
    };
    let named = id.as_ref().map(AccountId::as_str).unwrap_or_default();
    let print = fingerprint(&[named, email.as_deref().unwrap_or_default(), &plan]);
    let repeatable = id.is_none() && key.is_some();
    let id = match id {
        Some(id) => id,
        None => made_id(key.as_deref())?,
    };
    let new = NewUser { id, email, plan, signup_credits: terms.signup_credits };
    let request = Once { scope: "admin users".to_owned(), key, fingerprint: print };
    let (store, tasks) = (admin.store.clone(), admin.tasks.clone());
    let work = async move {
        let (id, signup_credits) = (new.id.clone(), new.signup_credits);
        let user = match admin.store.create_user(new).await {
            // Made by an earlier attempt with this key, whose answer was lost.
            Err(StoreError::Conflict(_)) if repeatable => admin.store.user(&id).await?.ok_or_else(Problem::internal)?,
            made => made?,
        };
        admin.identity.forget_user(&user.id);
        admin.audit("user.create", Some(&user.id), &format!("plan {}", user.plan)).await;
        let mut view = UserView::from(user);
        if let Some(signup) = signup {
            admin.fraud.assess_signup(&view.id, &signup.into()).await?;
        }
        view.pending = admin.pending(&view.id).await;
        let balance = balance(&admin.ledger, &admin.config, &view.id).await;
        // Without the ledger, what it will say once it has the change.
        let stored = CreditsView { available: signup_credits, held: Credits::ZERO, debt: Credits::ZERO };
        view.pending |= balance.is_err();
        view.credits = Some(balance.as_ref().map_or(stored, CreditsView::from));
        Created::new(StatusCode::CREATED, &view)
    };
    once(store, &tasks, request, work).await
}

/// The same for the same Idempotency-Key, so that a repetition cannot make a second user even where the first answer was lost.
fn made_id(key: Option<&str>) -> Result<AccountId, Problem> {
    let id = key.map_or_else(Uuid::now_v7, |key| derived_id(&["user", key]));
    AccountId::parse(&format!("user_{}", id.simple())).map_err(|_| Problem::internal())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Search {
    /// The beginning of an id or an address.
    search: Option<Text<320>>,
    limit: Option<u32>,
    cursor: Option<String>,
}

pub(super) async fn list(State(admin): State<Arc<Admin>>, uri: Uri) -> Result<Response, Problem> {
    let Query(Search { search, limit, cursor }) =
        Query::try_from_uri(&uri).map_err(|error| Problem::bad_request(error.body_text()))?;
    let page = checked_page(limit, cursor)?;
    let page = match search {
        Some(Text(text)) => admin.store.find_users(&text, page).await?,
        None => admin.store.users(page).await?,
    };
    let data: Vec<UserView> = page.data.into_iter().map(UserView::from).collect();
    Ok(json(StatusCode::OK, &List { data, next: page.next }))
}

pub(super) async fn show(State(admin): State<Arc<Admin>>, Named(user): Named) -> Result<Response, Problem> {
    let mut view = UserView::from(user);
    let balance = balance(&admin.ledger, &admin.config, &view.id).await?;
    view.credits = Some(CreditsView::from(&balance));
    let grants = admin.store.grants(&view.id).await?;
    view.grants = Some(grants.into_iter().map(GrantView::from).collect());
    Ok(json(StatusCode::OK, &view))
}

pub(super) async fn usage(
    State(admin): State<Arc<Admin>>,
    Named(user): Named,
    request: Request,
) -> Result<Response, Problem> {
    own(&admin.store, &user.id, request).await
}
