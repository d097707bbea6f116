//! Users who come from an issuer of tokens: made once, given sign-up credits once a mailbox, closed for good; and what the
//! issuer told about them.

use async_trait::async_trait;

use super::billing::{EventOutcome, EventState};
use super::{NewUser, StoreResult, User, UserStatus};
use crate::credits::Credits;
use crate::ledger::{AccountId, Change, GrantId, Micros, Scope};
use crate::mail;

/// Events that were worked off are kept for so long.
pub const AUTH_EVENTS_KEPT_US: Micros = 30 * 24 * 3600 * 1_000_000;

/// Who somebody is, as of a time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    pub email: Option<String>,
    pub name: Option<String>,
    /// Nothing else is known: what is `None` here is gone. Otherwise it was not said.
    pub whole: bool,
    pub at: Micros,
}

/// A user as an issuer vouches for them.
#[derive(Debug, Clone)]
pub struct SignUp {
    pub id: AccountId,
    pub profile: Profile,
    /// Whether the sign-up credits may be given now. Otherwise they wait until they may.
    pub entitled: bool,
    /// Of a new user.
    pub plan: String,
    /// What a new user gets, once for each mailbox.
    pub credits: Credits,
    /// For the audit log.
    pub actor: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedUp {
    pub user: User,
    pub created: bool,
    /// The sign-up credits came with this call.
    pub granted: bool,
    /// Mail or name are others than before.
    pub renamed: bool,
}

/// A user, and what of the sign-up is not settled yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub user: User,
    pub signup_open: bool,
    pub profile_at: Micros,
}

/// An event of the issuer's as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAuthEvent {
    /// The same in every delivery.
    pub id: String,
    pub event_type: String,
    pub user: Option<AccountId>,
    /// When it happened.
    pub at: Micros,
    /// The whole body.
    pub payload: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthEvent {
    pub id: String,
    pub event_type: String,
    pub user: Option<AccountId>,
    pub at: Micros,
    pub state: EventState,
    pub attempts: u32,
    pub error: Option<String>,
    pub payload: String,
}

#[async_trait]
pub trait SignUps: Send + Sync {
    async fn known(&self, id: &AccountId) -> StoreResult<Option<Known>>;

    /// Makes the user where there is none, decides about the sign-up credits where that is open, and takes mail and name
    /// over where they are newer: in one transaction, so that of many at once one does each. A closed user stays as
    /// it is. Where another user's mailbox brought credits already, none are given.
    async fn sign_up(&self, new: SignUp) -> StoreResult<SignedUp>;

    /// Closes an account in one transaction: it is frozen, what is left of its grants revoked, its keys with it, and mail
    /// and name are blanked; replicas are told. A user who never came is noted as closed, on `plan`. Answers whether it
    /// was open.
    async fn close_user(&self, id: &AccountId, plan: &str, actor: &str) -> StoreResult<bool>;

    /// Whether it was new: an event that is there already stays as it is.
    async fn insert_auth_event(&self, event: NewAuthEvent) -> StoreResult<bool>;
    async fn auth_event(&self, id: &str) -> StoreResult<Option<AuthEvent>>;
    /// Takes up to `limit` events whose time has come, oldest first, and counts an attempt for each. Nobody else gets
    /// them within `lease_us`.
    async fn claim_auth_events(&self, limit: u32, lease_us: u64) -> StoreResult<Vec<AuthEvent>>;
    async fn finish_auth_event(&self, id: &str, outcome: EventOutcome) -> StoreResult<()>;
    /// How many events are pending, and parked.
    async fn auth_event_counts(&self) -> StoreResult<(u64, u64)>;
}

/// What a sign-up finds, read in its transaction.
pub(super) struct Found {
    pub(super) known: Known,
    pub(super) created: bool,
}

/// What it then leads to.
pub(super) struct Decision {
    /// The mailbox to claim, if nobody has.
    pub(super) claim: Option<[u8; 32]>,
    /// Whether the sign-up is settled with this call: credits are given where the claim, if there is one, is the user's.
    pub(super) settle: bool,
    /// The profile to write.
    pub(super) profile: Option<(Option<String>, Option<String>)>,
    pub(super) renamed: bool,
}

/// Decided once for both stores.
pub(super) fn decide(new: &SignUp, found: &Found) -> Decision {
    let Known { user, signup_open, profile_at } = &found.known;
    if user.status == UserStatus::Closed {
        return Decision { claim: None, settle: false, profile: None, renamed: false };
    }
    let told = &new.profile;
    let newer = found.created || told.at > *profile_at;
    let either = |told: &Option<String>, known: &Option<String>, whole: bool| {
        if told.is_some() || whole { told.clone() } else { known.clone() }
    };
    let email = either(&told.email, &user.email, told.whole);
    let name = either(&told.name, &user.name, told.whole);
    let renamed = newer && (email != user.email || name != user.name);
    // Of the mail address as it is known now: a token need not repeat it.
    let known = if newer { &email } else { &user.email };
    let mailbox = known.as_deref().filter(|_| new.entitled).and_then(mail::digest);
    // Nothing is given for an address that cannot be compared with others.
    let comparable = known.is_none() || mailbox.is_some();
    Decision {
        claim: mailbox,
        settle: *signup_open && new.entitled && comparable,
        profile: newer.then_some((email, name)),
        renamed,
    }
}

impl SignUp {
    /// As the user's first billing change is made from.
    pub(super) fn as_new_user(&self) -> NewUser {
        NewUser { id: self.id.clone(), email: None, plan: self.plan.clone(), signup_credits: self.credits }
    }
}

/// What closing does to the account's credits, in order; the grants are those with something left.
pub(super) fn closing(id: &AccountId, status: UserStatus, grants: &[GrantId]) -> Vec<(Change, String)> {
    let freeze = (Change::Freeze { scope: Scope::Account }, format!("close:{id}"));
    let revoke =
        |grant: &GrantId| (Change::Revoke { grant: *grant, amount_micro: None }, format!("close:{id}:{}", grant.0));
    let first = (status != UserStatus::Frozen).then_some(freeze);
    first.into_iter().chain(grants.iter().map(revoke)).collect()
}
