//! Links that sign a user in on the billing page.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde::Serialize;

use super::extract::json;
use super::problem::Problem;
use super::types::Time;
use super::{Api, Caller};
use crate::config::Config;
use crate::identity::principal::CallerKind;
use crate::identity::secret::{self, LinkError};
use crate::ledger::AccountId;
use crate::store::SharedStore;

#[derive(Serialize)]
pub(crate) struct LinkView {
    /// A bearer secret: it opens once, for whoever has it.
    url: String,
    expires_at: Time,
}

/// For the product's backend, with its service key: a link for the user that it names.
pub(crate) async fn create(State(api): State<Arc<Api>>, Caller(principal): Caller) -> Result<Response, Problem> {
    if principal.kind != CallerKind::Service {
        let detail = "links are made by your backend, with a service key";
        return Err(Problem::new(StatusCode::FORBIDDEN, "service-key-only", "Not with this key", detail));
    }
    let made = make(&api.config, &api.store, &principal.account).await?;
    Ok(json(StatusCode::CREATED, &made))
}

/// A link that signs this user in once.
pub(crate) async fn make(config: &Config, store: &SharedStore, user: &AccountId) -> Result<LinkView, Problem> {
    if !config.page.enabled {
        return Err(Problem::conflict("the billing page is switched off (page.enabled)"));
    }
    let expires_at = secret::from_now(config.page.link_ms);
    let url = secret::link(store, &public_url(config), user, expires_at).await.map_err(|error| match error {
        LinkError::Store(error) => Problem::from(error),
        LinkError::Randomness(error) => no_randomness(&error),
    })?;
    Ok(LinkView { url: url.reveal().to_owned(), expires_at: Time::from_micros(expires_at) })
}

pub(crate) fn no_randomness(error: &getrandom::Error) -> Problem {
    tracing::error!(%error, "no random bytes for a secret");
    Problem::internal()
}

/// Where people open the page.
fn public_url(config: &Config) -> String {
    if !config.page.url.is_empty() {
        return config.page.url.trim_end_matches('/').to_owned();
    }
    let scheme = if config.tls.certificate.is_some() { "https" } else { "http" };
    format!("{scheme}://{}{}", config.listen, config.page.prefix)
}
