//! How often the API may be called: by user, by service key, by address. Counted is who was authenticated and where the
//! connection came from, never what a caller says of itself.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::Extensions;

use super::problem::Problem;
use super::{Api, SignedIn};
use crate::config::Config;
use crate::identity::principal::{AuthError, CallerKind, Principal};
use crate::ledger::AccountId;
use crate::limits::{ClientAddress, Limit, network};

pub(super) struct Rates {
    users: Limit<AccountId>,
    service_keys: Limit<Arc<str>>,
    addresses: Limit<u128>,
    ipv6_prefix_bits: u32,
    /// Paths of what is signed by others, whose bursts are theirs to make.
    signed: [String; 2],
}

impl Rates {
    pub(super) fn new(config: &Config) -> Rates {
        let (api, prefix) = (&config.api, config.api.prefix.trim_end_matches('/'));
        Rates {
            users: Limit::per_minute(api.user_requests_per_minute),
            service_keys: Limit::per_minute(api.service_key_requests_per_minute),
            addresses: Limit::per_minute(api.address_requests_per_minute),
            ipv6_prefix_bits: config.server.ipv6_prefix_bits,
            signed: [format!("{prefix}/billing/webhook"), format!("{prefix}/auth/webhook")],
        }
    }

    /// Of a caller who is known. The product's backend makes all its users' calls from one address.
    pub(super) fn check(&self, who: &Principal, extensions: &Extensions) -> Result<(), Problem> {
        let limited = |what: &str| format!("more calls a minute than one {what} may make");
        if who.kind == CallerKind::Service {
            let checked = self.service_keys.check(who.key_id.clone());
            return checked.map_err(|wait| Problem::too_many_requests(limited("service key"), wait));
        }
        // First, so that whoever is over it uses up nothing of what others at the address have.
        let checked = self.users.check(who.account.clone());
        checked.map_err(|wait| Problem::too_many_requests(limited("user"), wait))?;
        self.check_address(address_of(extensions))
    }

    fn check_address(&self, address: Option<IpAddr>) -> Result<(), Problem> {
        let Some(address) = address else { return Ok(()) };
        let checked = self.addresses.check(network(address, self.ipv6_prefix_bits));
        checked.map_err(|wait| Problem::too_many_requests("more calls a minute than one address may make", wait))
    }
}

pub(super) fn address_of(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<ClientAddress>().map(|ClientAddress(address)| *address)
}

/// Counts calls of nobody: those that show something are counted once it is known what.
pub(super) async fn nobodys(State(api): State<Arc<Api>>, request: Request, next: Next) -> Result<Response, Problem> {
    let signed = api.rates.signed.iter().any(|path| path == request.uri().path());
    let nobody = matches!(api.identity.cached(request.headers()), Some(Err(AuthError::Missing)))
        && request.extensions().get::<SignedIn>().is_none();
    if nobody && !signed {
        api.rates.check_address(address_of(request.extensions()))?;
    }
    Ok(next.run(request).await)
}
