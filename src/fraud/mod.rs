//! Fraud and abuse: signals against accounts, each with a score and a reason, and what follows from their sum: a line in
//! the log, a warning, free credits held back, the account frozen. All of it is in the audit log, and an operator takes it
//! back with `faregate user unflag`.
//!
//! A signal is stored before anything follows from it, and what follows is looked at again and again ([`watch`]): a
//! process that dies in between leaves nothing undone, and two of them do nothing twice.

pub mod watch;

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;

use crate::config::{self, Action};
use crate::identity::{Arrival, Judge, Onboard};
use crate::ledger::{AccountId, Change, GrantKind, Micros, Scope};
use crate::rollout::Current;
use crate::store::fraud::{self, Case, NewSignal};
use crate::store::{NewChange, SharedStore, StoreError, StoreResult, UserStatus};
use crate::telemetry::Metrics;

/// Who is named in the audit log.
const ACTOR: &str = "fraud";
const MINUTE_US: u64 = 60 * 1_000_000;
const DAY_US: u64 = 24 * 60 * MINUTE_US;

/// Judges accounts.
pub struct Fraud {
    store: SharedStore,
    pusher: Arc<dyn Onboard>,
    current: Current,
    metrics: Metrics,
}

impl std::fmt::Debug for Fraud {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Fraud")
    }
}

pub(crate) fn now() -> Micros {
    u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(0)
}

/// The part of the net that an address is of: whoever has one address of it has them all.
fn block(address: IpAddr, settings: &config::Fraud) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(settings.block_bits_v4)).unwrap_or(0);
            format!("{}/{}", std::net::Ipv4Addr::from(u32::from(address) & mask), settings.block_bits_v4)
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(settings.block_bits_v6)).unwrap_or(0);
            format!("{}/{}", std::net::Ipv6Addr::from(u128::from(address) & mask), settings.block_bits_v6)
        }
    }
}

impl Fraud {
    pub fn new(store: SharedStore, pusher: Arc<dyn Onboard>, current: Current, metrics: Metrics) -> Arc<Fraud> {
        Arc::new(Fraud { store, pusher, current, metrics })
    }

    /// Looks at how a user came, once the user is stored; the same user again changes nothing.
    pub async fn assess_signup(&self, user: &AccountId, signup: &Arrival) -> StoreResult<()> {
        let config = self.current.get();
        let settings = &config.fraud;
        if !settings.enabled {
            return Ok(());
        }
        let now = now();
        let signal = |signal: &'static str, score: u32, reason: String| NewSignal {
            user: user.to_string(),
            signal,
            source: "signup".to_owned(),
            score: i64::from(score),
            reason,
            at: now,
        };
        let block = signup.address.map(|address| block(address, settings));
        let burst_since = now.saturating_sub(u64::from(settings.burst_minutes) * MINUTE_US);
        let farmed_since = now.saturating_sub(u64::from(settings.farmed_days) * DAY_US);
        let since = (burst_since, farmed_since);
        let found = fraud::signed_up(&self.store, user, block.as_deref(), now, since).await?;
        let mut signals = Vec::new();
        if found.burst > i64::from(settings.burst_accounts) {
            let (count, minutes) = (found.burst, settings.burst_minutes);
            let reason = format!("{count} accounts from one address block in {minutes} minutes");
            signals.push(signal("signup_burst", settings.burst_score, reason));
        }
        if found.farmed >= i64::from(settings.farmed_accounts) {
            let reason = format!("{} accounts of the address block used up their free credits", found.farmed);
            signals.push(signal("farmed_credits", settings.farmed_score, reason));
        }
        let risk = signup.bot.max(signup.free_trial_abuse).map_or(0, u32::from).min(100);
        if risk >= settings.risk_from {
            let score = risk * settings.risk_weight_percent / 100;
            let reason = format!("Stack Auth's risk score at sign-up is {risk}");
            signals.push(signal("signup_risk", score, reason));
        }
        self.raise(signals).await?;
        self.act(Some(user)).await
    }

    /// Raises signals whose score counts.
    pub(crate) async fn raise(&self, signals: Vec<NewSignal>) -> StoreResult<()> {
        for signal in signals.into_iter().filter(|signal| signal.score > 0) {
            let (name, user) = (signal.signal, signal.user.clone());
            let (score, reason) = (signal.score, signal.reason.clone());
            if fraud::raise(&self.store, vec![signal]).await? > 0 {
                self.metrics.fraud_signals.with_label_values(&[name]).inc();
                tracing::info!(user, signal = name, score, reason, "a fraud signal was raised");
            }
        }
        Ok(())
    }

    /// Does what the signals of one account, or of all, come to, where that was not done yet.
    pub(crate) async fn act(&self, user: Option<&AccountId>) -> StoreResult<()> {
        let config = self.current.get();
        for case in fraud::cases(&self.store, user, 1).await? {
            let wanted = config.fraud.action(case.score);
            let done = case.action.as_deref().and_then(Action::by_name);
            if done.is_some_and(|done| done >= wanted) {
                // What was given for nothing since then is held back, too.
                if wanted == Action::Hold
                    && let Ok(user) = AccountId::parse(&case.user)
                {
                    self.hold_free_credits(&user, case.last, true).await?;
                }
                continue;
            }
            self.take(&case, wanted).await?;
        }
        Ok(())
    }

    async fn take(&self, case: &Case, action: Action) -> StoreResult<()> {
        let Ok(user) = AccountId::parse(&case.user) else { return Ok(()) };
        match action {
            Action::Log => {}
            Action::Warn => tracing::warn!(user = case.user, score = case.score, "an account is suspicious"),
            Action::Hold => self.hold_free_credits(&user, case.last, true).await?,
            Action::Freeze => self.set_frozen(&user, case.last, true).await?,
        }
        fraud::acted(&self.store, case, action.name(), now()).await?;
        self.metrics.fraud_actions.with_label_values(&[action.name()]).inc();
        if action >= Action::Hold {
            tracing::warn!(user = case.user, score = case.score, action = action.name(), "acted against an account");
        }
        Ok(())
    }

    /// Freezes what an account was given for nothing, or makes it usable again.
    async fn hold_free_credits(&self, user: &AccountId, serial: i64, hold: bool) -> StoreResult<()> {
        for grant in self.store.grants(user).await? {
            // Whether it is frozen the row tells only once the change has been flushed; a second one changes nothing.
            if grant.kind != GrantKind::Free || grant.remaining.is_zero() {
                continue;
            }
            let scope = Scope::Grant { grant: grant.id };
            let change = if hold { Change::Freeze { scope } } else { Change::Unfreeze { scope } };
            let word = if hold { "hold" } else { "release" };
            let key = format!("fraud:{word}:{user}:{}:{serial}", grant.id.0);
            self.change(user, change, key).await?;
        }
        Ok(())
    }

    async fn set_frozen(&self, user: &AccountId, serial: i64, frozen: bool) -> StoreResult<()> {
        let known = self.store.user(user).await?.ok_or(StoreError::NotFound("the user"))?;
        let already = (known.status == UserStatus::Frozen) == frozen;
        if already || known.status == UserStatus::Closed {
            return Ok(());
        }
        let scope = Scope::Account;
        let (word, change) =
            if frozen { ("freeze", Change::Freeze { scope }) } else { ("unfreeze", Change::Unfreeze { scope }) };
        self.change(user, change, format!("fraud:{word}:{user}:{serial}")).await
    }

    async fn change(&self, user: &AccountId, change: Change, source_key: String) -> StoreResult<()> {
        let (account, actor) = (user.clone(), ACTOR.to_owned());
        match self.store.add_change(NewChange { account, change, source_key, note: None, actor }).await {
            // Closed in the meantime.
            Ok(_) | Err(StoreError::Conflict(_)) => {}
            Err(error) => return Err(error),
        }
        // Where the ledger is away it is pushed later.
        self.pusher.push(user).await;
        Ok(())
    }

    /// An operator has looked into an account: its signals no longer count, and what was done about them is undone.
    /// Answers what that was.
    pub async fn clear(&self, user: &AccountId, by: &str) -> StoreResult<Option<Action>> {
        let now = now();
        let score = fraud::cases(&self.store, Some(user), 0).await?.pop().map_or(0, |case| case.score);
        let done = fraud::clear(&self.store, user, by, now).await?;
        let done = done.as_deref().and_then(Action::by_name);
        // Undone as often as it is asked for, until it is: the keys are of this time.
        let serial = i64::try_from(now).unwrap_or(0);
        if done == Some(Action::Freeze) {
            self.set_frozen(user, serial, false).await?;
        }
        // A freeze may have come after a hold.
        if done >= Some(Action::Hold) {
            self.hold_free_credits(user, serial, false).await?;
        }
        if done.is_some() {
            fraud::undone(&self.store, user).await?;
            self.store.audit(by, "fraud.clear", Some(user), &format!("score {score}")).await?;
        }
        Ok(done)
    }
}

#[async_trait]
impl Judge for Fraud {
    async fn judge(&self, user: &AccountId, arrival: &Arrival) -> StoreResult<()> {
        self.assess_signup(user, arrival).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_fall_into_blocks() {
        let settings = config::Fraud::default();
        let of = |address: &str| block(address.parse().unwrap(), &settings);
        assert_eq!(of("203.0.113.77"), "203.0.113.0/24");
        assert_eq!(of("::ffff:203.0.113.77"), "203.0.113.0/24");
        assert_eq!(of("2001:db8:1:2:3::4"), "2001:db8:1::/48");
        let none = config::Fraud { block_bits_v4: 32, block_bits_v6: 128, ..config::Fraud::default() };
        assert_eq!(block("203.0.113.77".parse().unwrap(), &none), "203.0.113.77/32");
    }

    #[test]
    fn an_action_follows_from_the_score() {
        let settings = config::Fraud::default();
        assert_eq!(settings.action(1), Action::Log);
        assert_eq!(settings.action(i64::from(settings.warn_score)), Action::Warn);
        assert_eq!(settings.action(i64::from(settings.hold_score)), Action::Hold);
        assert_eq!(settings.action(100), Action::Freeze);
        let never = config::Fraud { freeze_score: 0, ..settings };
        assert_eq!(never.action(100), Action::Hold);
    }
}
