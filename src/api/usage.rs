//! A user's own usage: row by row, newest first, or added up (`group_by`).

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::response::Response;
use http::StatusCode;

use super::extract::{Paging, json};
use super::problem::Problem;
use super::types::{List, Use};
use super::{Api, Caller, reports};
use crate::ledger::AccountId;
use crate::store::{PageRequest, SharedStore};

pub(crate) async fn list(
    State(api): State<Arc<Api>>,
    Caller(principal): Caller,
    request: Request,
) -> Result<Response, Problem> {
    own(&api.store, &principal.account, request).await
}

/// The usage of one user, as the question asks for it.
pub(crate) async fn own(store: &SharedStore, account: &AccountId, request: Request) -> Result<Response, Problem> {
    let (mut parts, _) = request.into_parts();
    if !reports::is_report(&parts.uri) {
        let Paging(page) = Paging::from_request_parts(&mut parts, &()).await?;
        return Ok(json(StatusCode::OK, &page_of(store, account, page).await?));
    }
    let asked = reports::asked(&parts.uri)?;
    if asked.user.is_some() || asked.plan.is_some() {
        return Err(Problem::bad_request("user and plan are for the operator's report over everybody"));
    }
    Ok(json(StatusCode::OK, &reports::report(store, Some(account.clone()), asked, false).await?))
}

async fn page_of(store: &SharedStore, account: &AccountId, page: PageRequest) -> Result<List<Use>, Problem> {
    let page = store.usage(account, page).await?;
    Ok(List { data: page.data.into_iter().map(Use::from).collect(), next: page.next })
}
