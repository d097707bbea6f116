//! What we know of a caller once it is authenticated.

use std::sync::Arc;

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
    pub key_id: Arc<str>,
    pub kind: KeyKind,
}

/// Why a caller is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("no API key was sent: use Authorization: Bearer or x-api-key")]
    Missing,
    /// No such key, a wrong checksum, or a header that is no key.
    #[error("the API key is not valid")]
    Invalid,
    #[error("the API key was revoked")]
    Revoked,
    /// A service key without `x-faregate-user`, or with a name that is no id.
    #[error("a service key acts for the user named in x-faregate-user, which is missing or not a valid id")]
    NoUser,
    #[error("the user named in x-faregate-user does not exist")]
    UnknownUser,
    #[error("the account is closed")]
    Closed,
    /// The store cannot be asked: 503.
    #[error("keys cannot be checked right now")]
    Unavailable,
}
