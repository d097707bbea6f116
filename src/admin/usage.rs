//! Usage of everybody, added up.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::{StatusCode, Uri};

use super::Admin;
use crate::api::extract::json;
use crate::api::problem::Problem;
use crate::api::reports;

pub(super) async fn report(State(admin): State<Arc<Admin>>, uri: Uri) -> Result<Response, Problem> {
    let mut asked = reports::asked(&uri)?;
    let user = asked.user.take();
    if let Some(user) = &user
        && admin.store.user(user).await?.is_none()
    {
        return Err(Problem::not_found("there is no such user"));
    }
    Ok(json(StatusCode::OK, &reports::report(&admin.store, user, asked, true).await?))
}
