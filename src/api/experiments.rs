//! Which features a caller has.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde::Serialize;

use super::extract::json;
use super::problem::Problem;
use super::{Api, Caller};

#[derive(Serialize)]
struct Flags<'a> {
    flags: BTreeMap<&'a str, bool>,
}

/// Every flag of the settings, as it is for the caller now.
pub(crate) async fn flags(State(api): State<Arc<Api>>, Caller(principal): Caller) -> Result<Response, Problem> {
    let config = api.current.get();
    let of = |(name, flag): (&'_ String, &crate::config::Flag)| flag.is_on(name, &principal.account, &principal.plan);
    let flags = config.flags.iter().map(|(name, flag)| (name.as_str(), of((name, flag)))).collect();
    Ok(json(StatusCode::OK, &Flags { flags }))
}
