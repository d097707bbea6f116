//! A user's own usage, newest first.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;

use super::extract::{Paging, json};
use super::problem::Problem;
use super::types::{List, Use};
use super::{Api, Caller};
use crate::ledger::AccountId;
use crate::store::{PageRequest, SharedStore};

pub(crate) async fn list(
    State(api): State<Arc<Api>>,
    Caller(principal): Caller,
    Paging(page): Paging,
) -> Result<Response, Problem> {
    Ok(json(StatusCode::OK, &page_of(&api.store, &principal.account, page).await?))
}

pub(crate) async fn page_of(store: &SharedStore, account: &AccountId, page: PageRequest) -> Result<List<Use>, Problem> {
    let page = store.usage(account, page).await?;
    Ok(List { data: page.data.into_iter().map(Use::from).collect(), next: page.next })
}
