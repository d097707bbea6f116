//! Works off what the issuer told, as billing's inbox does with Stripe's events: each event is one replica's at a time, and
//! comes back when that one dies over it or it cannot be done yet.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::resolve::Identity;
use super::sign_in::PROFILE_EVENT;
use super::svix::Verifier;
use super::told::{self, Told};
use crate::billing::Billing;
use crate::billing::desk::DeskError;
use crate::config::{Config, Stack, Unproven};
use crate::ledger::AccountId;
use crate::store::StoreError;
use crate::store::billing::EventOutcome;
use crate::store::sign_ups::AuthEvent;

/// Events taken at once.
const BATCH: u32 = 32;
/// Events worked on at once.
const AT_ONCE: usize = 8;
/// How long a claim stands; longer than an event can take.
const LEASE_US: u64 = 120 * 1_000_000;
/// How often events are looked for that nobody told of: those of other replicas, and those tried again.
const POLL: Duration = Duration::from_millis(500);
/// The first wait before another attempt; each next one is twice as long.
const FIRST_WAIT_US: u64 = 1_000_000;
const MAX_WAIT_US: u64 = 3600 * 1_000_000;
/// For the audit log.
const ACTOR: &str = "stack";

/// Why an event cannot be done now.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("its payload cannot be read: {0}")]
    Unreadable(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Desk(#[from] DeskError),
}

/// What the worker of one replica needs beside the rest of [`Identity`].
pub(crate) struct AuthInbox {
    pub(crate) verifier: Verifier,
    settings: Stack,
    plan: String,
    /// Told when an event was stored.
    pub(crate) wake: Notify,
    billing: OnceLock<Arc<Billing>>,
}

impl AuthInbox {
    pub(super) fn new(config: &Config) -> AuthInbox {
        AuthInbox {
            verifier: Verifier::new(&config.stack.webhook_secrets, config.stack.tolerance_ms),
            settings: config.stack.clone(),
            plan: config.tokens.plan.clone(),
            wake: Notify::new(),
            billing: OnceLock::new(),
        }
    }

    /// Whether the user may have the sign-up credits; `None`: does not get in at all.
    fn entitled(&self, told: &Told) -> Option<bool> {
        let policy = match (told.anonymous, told.restricted) {
            (true, _) => self.settings.anonymous,
            (false, true) => self.settings.restricted,
            (false, false) => return Some(told.email_verified || !self.settings.require_verified_email),
        };
        match policy {
            Unproven::Refuse => None,
            Unproven::Nothing => Some(false),
            Unproven::Credits => Some(true),
        }
    }
}

impl Identity {
    /// Through whom Stripe learns of users who are renamed or leave.
    pub fn attach_billing(&self, billing: Arc<Billing>) {
        // A second router over the same parts brings the same billing.
        let _ = self.inbox.billing.set(billing);
    }

    /// Works off what the issuer told until `stop`. What is under way is finished by whoever claims it next.
    pub(super) async fn work_events(&self, stop: &CancellationToken) {
        if self.issuers.is_empty() {
            return;
        }
        let work = async {
            loop {
                let taken = match self.store.claim_auth_events(BATCH, LEASE_US).await {
                    Ok(events) => {
                        let taken = events.len();
                        stream::iter(events).for_each_concurrent(AT_ONCE, |event| self.work(event)).await;
                        taken
                    }
                    Err(error) => {
                        tracing::warn!(%error, "events about users could not be read");
                        0
                    }
                };
                if taken == 0 {
                    self.count_events().await;
                    tokio::select! {
                        () = self.inbox.wake.notified() => {}
                        () = tokio::time::sleep(POLL) => {}
                    }
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    }

    async fn work(&self, event: AuthEvent) {
        let outcome = match self.process(&event).await {
            Ok(true) => {
                tracing::info!(event = event.id, kind = event.event_type, user = ?event.user, "an event about a user was processed");
                EventOutcome::Processed { user: None }
            }
            Ok(false) => EventOutcome::Ignored,
            Err(error) => self.failed(&event, &error),
        };
        if let Err(error) = self.store.finish_auth_event(&event.id, outcome).await {
            tracing::warn!(event = event.id, %error, "what came of an event could not be written; it comes again");
        }
    }

    fn failed(&self, event: &AuthEvent, error: &Failure) -> EventOutcome {
        let text = error.to_string();
        // What cannot be read now cannot be read later.
        if matches!(error, Failure::Unreadable(_)) || event.attempts >= self.inbox.settings.max_attempts {
            tracing::error!(event = event.id, kind = event.event_type, error = text, "an event about a user is parked");
            return EventOutcome::Parked { error: text };
        }
        tracing::warn!(event = event.id, kind = event.event_type, error = text, "an event about a user is tried again");
        let wait = FIRST_WAIT_US.checked_shl(event.attempts.saturating_sub(1).min(32)).unwrap_or(MAX_WAIT_US);
        let now = u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(0);
        EventOutcome::Retry { error: text, at: now.saturating_add(wait.min(MAX_WAIT_US)) }
    }

    /// Does what an event leads to; done again it changes nothing. Whether it was of any concern.
    async fn process(&self, event: &AuthEvent) -> Result<bool, Failure> {
        let Some(user) = &event.user else { return Ok(false) };
        match event.event_type.as_str() {
            "user.created" | "user.updated" => self.told(user, event).await,
            "user.deleted" => {
                self.close(user).await?;
                Ok(true)
            }
            PROFILE_EVENT => {
                self.pass_on(user).await?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    async fn told(&self, user: &AccountId, event: &AuthEvent) -> Result<bool, Failure> {
        if event.payload.is_empty() {
            // The account was closed meanwhile, and what was known of its owner blanked.
            return Ok(false);
        }
        let told = told::told(&event.payload, event.at).map_err(Failure::Unreadable)?;
        let Some(entitled) = self.inbox.entitled(&told) else { return Ok(false) };
        let signed_up = self.sign_up(user.clone(), told.profile, entitled, ACTOR).await?;
        self.judge_told(&signed_up.user, &told.arrival).await?;
        // Also where it was written by an attempt that then failed.
        if !signed_up.created && event.event_type == "user.updated" {
            self.pass_on(user).await?;
        }
        Ok(true)
    }

    /// First nobody gets in any more, then what they had is ended. Once it is stored, every replica knows within a second.
    async fn close(&self, user: &AccountId) -> Result<(), Failure> {
        if self.store.close_user(user, &self.inbox.plan, ACTOR).await? {
            tracing::info!(%user, "an account was closed: its owner was deleted");
        }
        self.forget_user(user);
        self.onboarded(user).await;
        if let Some(billing) = self.inbox.billing.get() {
            billing.desk.leave(user).await?;
        }
        Ok(())
    }

    /// Stripe's customer is called as the user is.
    async fn pass_on(&self, user: &AccountId) -> Result<(), Failure> {
        if let Some(billing) = self.inbox.billing.get() {
            billing.desk.rename(user).await?;
        }
        Ok(())
    }

    async fn count_events(&self) {
        let Ok((pending, parked)) = self.store.auth_event_counts().await else { return };
        for (state, count) in [("pending", pending), ("parked", parked)] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.metrics.auth_events.with_label_values(&[state]).set(count);
        }
    }
}
