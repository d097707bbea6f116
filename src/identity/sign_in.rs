//! From an access token to a principal. The user is made at the first one: what the issuer tells by webhook may be late, or
//! never come.

use std::net::IpAddr;
use std::time::Instant;

use super::cache::{Found, Watch};
use super::issuers::{NotVerified, Standing, Verified};
use super::keys::KeyHash;
use super::principal::{AuthError, CallerKind, SharedPrincipal};
use super::resolve::{Identity, instant_of, is_fresh, slot};
use crate::config::Unproven;
use crate::ledger::AccountId;
use crate::store::sign_ups::{Known, NewAuthEvent, Profile, SignUp, SignedUp};
use crate::store::{StoreError, User, UserStatus};

/// The type of the event by which a name or a mail address that came with a token is told to others.
pub(crate) const PROFILE_EVENT: &str = "faregate.profile";

impl Identity {
    pub(super) async fn token_user(
        &self,
        token: &str,
        digest: &KeyHash,
        address: Option<IpAddr>,
    ) -> Result<SharedPrincipal, AuthError> {
        if self.issuers.is_empty() {
            return Err(AuthError::Invalid);
        }
        let _flight = self.token_flights[slot(digest)].lock().await;
        if let Some(known) = self.cache.principal(digest) {
            return known;
        }
        let (mut watch, mut until) = (self.cache.watch(digest), None);
        let looked_up = self.look_up_token(token, address, &mut watch, &mut until).await;
        self.cache.keep(digest, looked_up.clone().map(Found::Principal), watch, until);
        looked_up
    }

    async fn look_up_token(
        &self,
        token: &str,
        address: Option<IpAddr>,
        watch: &mut Watch,
        until: &mut Option<Instant>,
    ) -> Result<SharedPrincipal, AuthError> {
        let verified = self.issuers.verify(token).await.map_err(|error| match error {
            NotVerified::Fault(fault) => {
                self.checked(fault.name());
                AuthError::Token(fault)
            }
            NotVerified::Unavailable => {
                self.checked("unavailable");
                AuthError::Unavailable
            }
        })?;
        *until = Some(instant_of(u64::try_from(verified.until).unwrap_or(0).saturating_mul(1_000_000)));
        self.cache.watch_user(watch, &verified.user);
        if verified.standing == Standing::Unproven(Unproven::Refuse) {
            self.checked("refused");
            return Err(AuthError::Unproven);
        }
        self.checked("ok");
        let user = self.vouched(&verified).await?;
        self.judge_caller(&user, address).await;
        self.principal(user, verified.issuer, CallerKind::Token, None)
    }

    /// The user that a token vouches for, as the store has it afterwards.
    async fn vouched(&self, verified: &Verified) -> Result<User, AuthError> {
        let known = self.store.known(&verified.user).await.map_err(|error| self.away(&error))?;
        let entitled = verified.standing == Standing::Proven;
        if let Some(Known { user, .. }) = known.as_ref().filter(|known| !says_more(known, &verified.profile, entitled))
        {
            if is_fresh(user) {
                self.onboarded(&user.id).await;
            }
            return Ok(user.clone());
        }
        let actor = verified.issuer.to_string();
        let signed_up = self.sign_up(verified.user.clone(), verified.profile.clone(), entitled, &actor).await;
        let signed_up = signed_up.map_err(|error| self.away(&error))?;
        if signed_up.renamed && !signed_up.created {
            self.tell_profile(&verified.user, &verified.profile).await;
        }
        Ok(signed_up.user)
    }

    /// Makes the user where there is none, with the credits that are due, live when this answers.
    pub(crate) async fn sign_up(
        &self,
        id: AccountId,
        profile: Profile,
        entitled: bool,
        actor: &str,
    ) -> Result<SignedUp, StoreError> {
        let new = SignUp {
            id: id.clone(),
            profile,
            entitled,
            plan: self.sign_up.plan.clone(),
            credits: self.sign_up.credits,
            actor: actor.to_owned(),
        };
        let signed_up = self.store.sign_up(new).await?;
        let count = |result: &str| self.metrics.sign_ups.with_label_values(&[result]).inc();
        if signed_up.created {
            count("created");
            tracing::info!(user = %id, issuer = actor, "a user has signed up");
        }
        if signed_up.granted {
            count("granted");
        }
        if signed_up.granted || is_fresh(&signed_up.user) {
            self.onboarded(&id).await;
        }
        Ok(signed_up)
    }

    /// What came with a token is told to Stripe by the same way as what came by webhook.
    async fn tell_profile(&self, user: &AccountId, profile: &Profile) {
        let event = NewAuthEvent {
            id: format!("{PROFILE_EVENT}:{user}:{}", profile.at),
            event_type: PROFILE_EVENT.to_owned(),
            user: Some(user.clone()),
            at: profile.at,
            payload: "{}".to_owned(),
        };
        if let Err(error) = self.store.insert_auth_event(event).await {
            tracing::warn!(%user, %error, "a new name or mail address could not be passed on");
        }
    }

    fn checked(&self, result: &str) {
        self.metrics.token_checks.with_label_values(&[result]).inc();
    }
}

/// Whether a token says what the store does not have yet.
fn says_more(known: &Known, told: &Profile, entitled: bool) -> bool {
    let Known { user, signup_open, profile_at } = known;
    if user.status == UserStatus::Closed {
        return false;
    }
    let other = |told: &Option<String>, known: &Option<String>| told.is_some() && told != known;
    let renamed = told.at > *profile_at && (other(&told.email, &user.email) || other(&told.name, &user.name));
    (*signup_open && entitled) || renamed
}
