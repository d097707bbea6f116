//! What users are told: raised in the transaction that makes it so, numbered by account, read and marked by the user,
//! and sent to the product's backend.
//!
//! Whoever has a transaction raises a notification within it: `add(tx, &notice)` of each store's own module, or
//! [`super::billing::Effect::Notify`] in a decision. Everybody else calls [`Notifications::notify`].

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Page, PageRequest, StoreError, StoreResult};
use crate::config::Plan;
use crate::credits::Credits;
use crate::ledger::{AccountId, Micros};

/// What a notification says besides its kind, at most, in bytes of JSON.
pub const DATA_MAX_BYTES: usize = 4 * 1024;
/// Longest dedupe key, in bytes.
pub const DEDUPE_KEY_MAX_BYTES: usize = 256;
/// Notifications marked by one call, unless it marks all.
pub const MARK_MAX: usize = 500;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoticeKind {
    CreditsLow,
    CreditsExhausted,
    PaymentFailed,
    PaymentActionRequired,
    SubscriptionChanged,
    TrialEnding,
    KeyBudgetExhausted,
    AccountFrozen,
    AccountUnfrozen,
}

impl NoticeKind {
    pub const ALL: [NoticeKind; 9] = [
        NoticeKind::CreditsLow,
        NoticeKind::CreditsExhausted,
        NoticeKind::PaymentFailed,
        NoticeKind::PaymentActionRequired,
        NoticeKind::SubscriptionChanged,
        NoticeKind::TrialEnding,
        NoticeKind::KeyBudgetExhausted,
        NoticeKind::AccountFrozen,
        NoticeKind::AccountUnfrozen,
    ];

    pub fn name(self) -> &'static str {
        match self {
            NoticeKind::CreditsLow => "credits_low",
            NoticeKind::CreditsExhausted => "credits_exhausted",
            NoticeKind::PaymentFailed => "payment_failed",
            NoticeKind::PaymentActionRequired => "payment_action_required",
            NoticeKind::SubscriptionChanged => "subscription_changed",
            NoticeKind::TrialEnding => "trial_ending",
            NoticeKind::KeyBudgetExhausted => "key_budget_exhausted",
            NoticeKind::AccountFrozen => "account_frozen",
            NoticeKind::AccountUnfrozen => "account_unfrozen",
        }
    }
}

/// Something to tell a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub user: AccountId,
    pub kind: NoticeKind,
    /// A JSON object of at most [`DATA_MAX_BYTES`]; shown to the user, so nothing internal.
    pub data: Value,
    /// Names what happened: the same key again for the same user says nothing.
    pub dedupe_key: String,
}

/// A notification as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotificationRow {
    pub user: AccountId,
    /// Of this user, from 1, in the order in which they were committed.
    pub number: u64,
    /// A [`NoticeKind`]'s name.
    pub kind: String,
    /// JSON.
    pub data: String,
    pub created_at: Micros,
    pub read_at: Option<Micros>,
}

/// Which notifications are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Marked {
    All,
    /// At most [`MARK_MAX`].
    Numbers(Vec<u64>),
}

/// How far an account is, for whoever follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub user: AccountId,
    /// Of the last flushed event.
    pub seq: u64,
    /// Of the last notification.
    pub notices: u64,
    /// Of the user's purchases; it rises with every change of the subscription.
    pub billing_version: u64,
    /// The account is closed: nobody may follow it any longer.
    pub closed: bool,
}

/// A notification on its way to the product's backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub notification: NotificationRow,
    /// With this one, from 1.
    pub attempt: u32,
}

/// What came of an attempt to deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivered {
    Done,
    Retry {
        at: Micros,
    },
    /// It goes to the dead letters, with why.
    Dead {
        error: String,
    },
}

/// Below which balance a user is warned, by plan. A balance is what remains and is held, less what is owed.
#[derive(Debug, Clone, Default)]
pub struct Thresholds {
    /// Micro-credits.
    plans: HashMap<String, i64>,
    highest: i64,
}

impl Thresholds {
    pub fn of(plans: &BTreeMap<String, Plan>) -> Thresholds {
        let plans: HashMap<String, i64> =
            plans.iter().map(|(name, plan)| (name.clone(), plan.low_below().micro())).collect();
        Thresholds { highest: plans.values().copied().max().unwrap_or(0), plans }
    }

    /// Of a plan; 0 for one that is not configured: only what is used up is told then.
    pub(super) fn of_plan(&self, plan: &str) -> i64 {
        self.plans.get(plan).copied().unwrap_or(0)
    }

    /// No plan's is higher.
    pub(super) fn highest(&self) -> i64 {
        self.highest
    }
}

/// A warning that a flush raises, under the number that it gave it.
pub(super) struct Warning {
    pub(super) notice: Notice,
    pub(super) number: u64,
    /// The notice's data as it is stored.
    pub(super) data: String,
}

impl Warning {
    pub(super) fn new(user: &AccountId, kind: NoticeKind, rows: &super::effects::Rows, low: i64) -> Warning {
        let credits = |micro: i64| Credits::saturating_from_micro(i128::from(micro.max(0)));
        // Written by hand: an amount is a number, and must not become a float on the way.
        let data = format!(r#"{{"balance":{},"threshold":{}}}"#, credits(rows.net()), credits(low));
        let dedupe_key = format!("{}:{}", kind.name(), rows.seq);
        Warning {
            notice: Notice { user: user.clone(), kind, data: Value::Null, dedupe_key },
            number: rows.notices,
            data,
        }
    }
}

#[async_trait]
pub trait Notifications: Send + Sync {
    /// From now on balances are compared with these when they are flushed.
    fn set_thresholds(&self, thresholds: Thresholds);
    /// Raises a notification in a transaction of its own. Whether it was new. `NotFound` without such a user.
    async fn notify(&self, notice: Notice) -> StoreResult<bool>;
    /// A user's notifications, newest first.
    async fn notifications(
        &self,
        user: &AccountId,
        unread: bool,
        page: PageRequest,
    ) -> StoreResult<Page<NotificationRow>>;
    /// Those after `number`, in order, at most `limit`.
    async fn notifications_after(&self, user: &AccountId, number: u64, limit: u32)
    -> StoreResult<Vec<NotificationRow>>;
    /// Marks them as read. How many were not.
    async fn mark_read(&self, user: &AccountId, which: Marked) -> StoreResult<u64>;
    /// Where these accounts are; unknown ones are left out.
    async fn standings(&self, users: &[AccountId]) -> StoreResult<Vec<Standing>>;

    /// Whether notifications raised from now on are to be delivered. What was waiting when it is closed is not.
    async fn open_outlet(&self, open: bool) -> StoreResult<()>;
    /// Takes up to `limit` notifications whose time has come, oldest first, and counts an attempt for each. Nobody else
    /// gets them within `lease_us`; after that they are taken for left by a process that died.
    async fn claim_deliveries(&self, limit: u32, lease_us: u64) -> StoreResult<Vec<Delivery>>;
    /// Writes down what came of an attempt, unless another one has begun since.
    async fn finish_delivery(&self, delivery: &Delivery, outcome: Delivered) -> StoreResult<()>;
    /// How many wait to be delivered.
    async fn deliveries_waiting(&self) -> StoreResult<u64>;
}

/// The data as it is stored.
pub(super) fn checked(notice: &Notice) -> StoreResult<String> {
    let data = notice.data.to_string();
    let right = notice.data.is_object() && data.len() <= DATA_MAX_BYTES && super::common::storable(&data);
    if !right {
        return Err(StoreError::Invalid("a notification's data"));
    }
    let key = &notice.dedupe_key;
    if key.is_empty() || key.len() > DEDUPE_KEY_MAX_BYTES || !super::common::storable(key) {
        return Err(StoreError::Invalid("a notification's dedupe key"));
    }
    Ok(data)
}

/// What the dead letter of an undelivered notification holds.
pub(super) fn letter(delivery: &Delivery) -> String {
    let row = &delivery.notification;
    let data: Value = serde_json::from_str(&row.data).unwrap_or_default();
    serde_json::json!({ "notification": row.number, "kind": row.kind, "data": data, "attempts": delivery.attempt })
        .to_string()
}

/// The reason of such a dead letter.
pub(super) const UNDELIVERED: &str = "undelivered";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_serde_writes() {
        for kind in NoticeKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let notice = |data: Value, key: &str| Notice {
            user: AccountId::parse("u").unwrap(),
            kind: NoticeKind::CreditsLow,
            data,
            dedupe_key: key.to_owned(),
        };
        assert!(checked(&notice(serde_json::json!({ "a": 1 }), "k")).is_ok());
        assert!(checked(&notice(serde_json::json!([]), "k")).is_err());
        assert!(checked(&notice(serde_json::json!({ "a": "x".repeat(DATA_MAX_BYTES) }), "k")).is_err());
        assert!(checked(&notice(serde_json::json!({}), "")).is_err());
        assert!(checked(&notice(serde_json::json!({}), &"k".repeat(257))).is_err());
    }
}
