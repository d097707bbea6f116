//! What we know of a caller once it is authenticated.

use std::sync::Arc;

use super::scope::Scope;
use super::token::TokenFault;
use crate::ledger::{AccountId, Limits};
use crate::store::KeyKind;

/// An authenticated caller. Cheap to clone.
pub type SharedPrincipal = Arc<Principal>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Whose credits are spent; limits are keyed by it, never by what a client sends.
    pub account: AccountId,
    pub plan: Arc<str>,
    pub limits: Limits,
    /// The key's id; of a token the issuer's name.
    pub key_id: Arc<str>,
    pub kind: CallerKind,
    /// What the key may do, where that is less than its owner may.
    pub scope: Option<Arc<Scope>>,
}

/// By what a caller is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallerKind {
    Live,
    Test,
    Service,
    /// Signed in elsewhere.
    Token,
    /// Of the page.
    Session,
}

impl From<KeyKind> for CallerKind {
    fn from(kind: KeyKind) -> CallerKind {
        match kind {
            KeyKind::Live => CallerKind::Live,
            KeyKind::Test => CallerKind::Test,
            KeyKind::Service => CallerKind::Service,
        }
    }
}

/// Why a caller is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("no API key or access token was sent: use Authorization: Bearer, x-api-key or x-stack-access-token")]
    Missing,
    /// No such key, a wrong checksum, or a header that is no key.
    #[error("the API key is not valid")]
    Invalid,
    #[error("the request carries different credentials at once")]
    Ambiguous,
    #[error("the API key was revoked")]
    Revoked,
    #[error("the API key has expired")]
    Expired,
    #[error("the access token is not valid: {0}")]
    Token(TokenFault),
    /// Anonymous or restricted, where the settings say so.
    #[error("the user must finish signing up first")]
    Unproven,
    /// A service key without `x-faregate-user`, or with a name that is no id.
    #[error("a service key acts for the user named in x-faregate-user, which is missing or not a valid id")]
    NoUser,
    #[error("the user named in x-faregate-user does not exist")]
    UnknownUser,
    #[error("the account is closed")]
    Closed,
    /// Too many wrong ones came from this address lately.
    #[error("too many wrong keys came from this address; try again later")]
    Throttled { retry_after_s: u32 },
    /// The store, or the issuer of a token, cannot be asked: 503.
    #[error("keys and tokens cannot be checked right now")]
    Unavailable,
}
