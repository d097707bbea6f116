//! Who is signed in on the billing page and the console, the links that sign in, and how an operator finds a user.

use async_trait::async_trait;

use super::{Page, PageRequest, StoreResult, User};
use crate::ledger::{AccountId, Micros};

/// SHA-256 of a link's or a session's secret, which itself is kept nowhere.
pub type SecretHash = [u8; 32];

/// Open links of one user; a new one beyond it ends the one that expires first.
pub const MAX_LINKS: i64 = 16;
/// Sessions of one user, and of operators together; likewise.
pub const MAX_SESSIONS: i64 = 64;

/// A session, by its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub hash: SecretHash,
    /// `None`: the operator's.
    pub user: Option<AccountId>,
    pub expires_at: Micros,
}

#[async_trait]
pub trait Sessions {
    /// Keeps a link that signs this user in once. What has expired goes.
    async fn add_link(&self, hash: SecretHash, user: &AccountId, expires_at: Micros) -> StoreResult<()>;
    /// Whom a link would sign in; it stays unused. `None` as for [`Sessions::redeem_link`].
    async fn link_user(&self, link: SecretHash) -> StoreResult<Option<AccountId>>;
    /// Uses a link up and begins the session in one transaction. `None`: there is no such link, or it was used, or it
    /// has expired. Of many at once exactly one gets the session.
    async fn redeem_link(
        &self,
        link: SecretHash,
        session: SecretHash,
        expires_at: Micros,
    ) -> StoreResult<Option<AccountId>>;
    async fn begin_session(&self, session: Session) -> StoreResult<()>;
    /// `None` where it has ended or expired.
    async fn session(&self, hash: SecretHash) -> StoreResult<Option<Session>>;
    async fn end_session(&self, hash: SecretHash) -> StoreResult<()>;
    /// Users whose id or address begins with `text`, in the order of their ids. Addresses are compared without regard
    /// to case.
    async fn find_users(&self, text: &str, page: PageRequest) -> StoreResult<Page<User>>;
}
