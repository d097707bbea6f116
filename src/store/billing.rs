//! What users bought, and what Stripe told about it.
//!
//! All that is known of one user's purchases is read as [`BillingAccount`] and changed by [`BillingStore::apply_decision`], whose
//! transaction holds only while the version that was read still stands. So two replicas, or two events, never decide on
//! the same state twice, and a decision made on an older snapshot of Stripe's never replaces one made on a newer.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::notifications::{Notice, NoticeKind};
use super::{ChangeRow, Page, PageRequest, StoreResult, User};
use crate::ledger::{AccountId, GrantId, GrantKind, Micros};

/// Purchases of one user that are looked at, the newest: more than a pack a day for a year.
pub const PURCHASES_MAX: i64 = 500;
/// Grants of them that are looked at.
pub const PAID_GRANTS_MAX: i64 = 2_000;

/// Where an event stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventState {
    Pending,
    Processed,
    /// Stored and left alone: of a kind that changes nothing here.
    Ignored,
    /// It failed too often, or must not be processed; a person has to look at it.
    Parked,
}

/// An event as it came. `payload` is the whole body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    pub id: String,
    pub event_type: String,
    pub object_type: Option<String>,
    pub object_id: Option<String>,
    pub livemode: bool,
    /// In the smallest unit of `currency`, where the object names one.
    pub amount: Option<i64>,
    pub currency: Option<String>,
    pub created_at: Micros,
    pub payload: String,
    pub state: EventState,
    /// Why it was parked at once.
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    pub id: String,
    pub event_type: String,
    pub object_type: Option<String>,
    pub object_id: Option<String>,
    pub livemode: bool,
    pub user: Option<AccountId>,
    pub amount: Option<i64>,
    pub currency: Option<String>,
    pub created_at: Micros,
    pub received_at: Micros,
    pub state: EventState,
    pub attempts: u32,
    pub next_attempt_at: Micros,
    pub processed_at: Option<Micros>,
    pub error: Option<String>,
    /// Empty in lists.
    pub payload: String,
}

/// What came of an attempt that changed nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventOutcome {
    Processed { user: Option<AccountId> },
    Ignored,
    Retry { error: String, at: Micros },
    Parked { error: String },
}

/// Which events a list shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    pub state: Option<EventState>,
    pub user: Option<AccountId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionRow {
    pub id: String,
    pub plan: String,
    pub price: String,
    /// The subscription's only item, which an upgrade changes.
    pub item: String,
    /// In Stripe's words.
    pub status: String,
    pub currency: String,
    pub period_start: Option<Micros>,
    pub period_end: Option<Micros>,
    pub trial_end: Option<Micros>,
    pub cancel_at_period_end: bool,
    pub cancel_at: Option<Micros>,
    pub ended_at: Option<Micros>,
    /// Since when a payment is due; `None` while all is paid.
    pub past_due_since: Option<Micros>,
    pub paused: bool,
    /// Holds a downgrade that waits for the period's end.
    pub schedule: Option<String>,
    pub created_at: Micros,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PurchaseKind {
    /// A month or a year of a plan.
    Period,
    /// The rest of a period on a dearer plan.
    Proration,
    Pack,
    Trial,
}

/// Something that was paid. Its id is the source key of what it brings: `inv:…`, `pi:…` or `trial:…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purchase {
    pub id: String,
    pub kind: PurchaseKind,
    /// The plan or pack.
    pub name: String,
    pub subscription: Option<String>,
    pub payment_intent: Option<String>,
    pub currency: String,
    /// What was received, in the currency's smallest unit.
    pub amount: i64,
    /// What of it went back to the payer or was withdrawn by a dispute.
    pub reversed: i64,
    /// While it is disputed.
    pub frozen: bool,
    /// When money that a dispute had taken came back, by Stripe's books.
    pub returned_at: Option<Micros>,
    /// Micro-credits; of a year: each month's.
    pub credits: i64,
    /// Micro-credits of the first month, where that brings less: after a change of interval within a period.
    pub first: Option<i64>,
    /// 12 for a year.
    pub months: u32,
    pub period_start: Option<Micros>,
    pub period_end: Option<Micros>,
    pub created_at: Micros,
}

impl Purchase {
    /// Micro-credits that its month of this number (from 0) brings.
    pub fn month_credits(&self, month: u32) -> i64 {
        self.first.filter(|_| month == 0).unwrap_or(self.credits)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantUse {
    Main,
    /// What a month left, moved into the next; the parent is where it came from.
    Rollover,
    /// Given back after a claim was withdrawn; the parent is what it was taken from.
    Restored,
}

/// Credits that came of a purchase, and how they stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaidGrant {
    /// Of the change that made it.
    pub key: String,
    pub purchase: String,
    pub used_as: GrantUse,
    pub parent: Option<String>,
    pub month: u32,
    /// As planned; of a rollover its cap.
    pub amount: i64,
    pub starts_at: Option<Micros>,
    pub ends_at: Option<Micros>,
    /// What remained was taken away at the end of its time, or rolled over.
    pub ended: bool,
    pub frozen: bool,
    /// What of `amount` is claimed back by refunds and disputes, as decided last.
    pub claimed: i64,
    /// What was taken for that; less than `claimed` where something had lapsed.
    pub taken: i64,
    /// How often claims have changed.
    pub serial: u32,
    /// As of the last flush; written by nobody but the flusher.
    pub stored: StoredGrant,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoredGrant {
    /// Whether the ledger has it.
    pub applied: bool,
    pub amount: i64,
    pub remaining: i64,
    pub lapsed: i64,
    /// Changes of the account that the ledger has not applied yet, of any kind.
    pub waiting: bool,
}

/// All that is known of what a user bought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BillingAccount {
    pub user: User,
    pub version: u64,
    pub customer: Option<String>,
    /// A fraud warning stands.
    pub flagged: bool,
    pub due_at: Option<Micros>,
    /// Oldest first.
    pub subscriptions: Vec<SubscriptionRow>,
    /// Oldest first.
    pub purchases: Vec<Purchase>,
    /// In the order they were made.
    pub grants: Vec<PaidGrant>,
}

/// A billing change whose grants are named by the source keys of the changes that made them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedChange {
    pub key: String,
    pub act: PlannedAct,
    pub note: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlannedAct {
    Grant { kind: GrantKind, amount: i64, expires_at: Micros },
    Revoke { grant: String, amount: Option<i64> },
    Rollover { from: String, cap: i64, kind: GrantKind, expires_at: Micros },
    Freeze { grant: String },
    Unfreeze { grant: String },
}

/// One thing to write, in order, in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    Change(PlannedChange),
    Subscription(SubscriptionRow),
    Purchase(Purchase),
    Grant(PaidGrant),
    Plan(String),
    Flagged(bool),
    Due(Option<Micros>),
    Customer(String),
    Checkout {
        session: String,
        state: CheckoutState,
    },
    /// For the user, in the same transaction.
    Notify {
        kind: NoticeKind,
        data: serde_json::Value,
        dedupe_key: String,
    },
    /// An automatic top-up was paid.
    TopupPaid(Uuid),
    /// For the audit log.
    Note {
        action: &'static str,
        detail: String,
    },
}

/// What a decision leads to.
#[derive(Debug, Clone)]
pub struct Decision {
    pub user: AccountId,
    /// The version on which it was made.
    pub version: u64,
    /// Who decided, for the audit log: `stripe:evt_…`, `clock`, …
    pub actor: String,
    pub effects: Vec<Effect>,
    /// Marked as processed in the same transaction.
    pub event: Option<String>,
}

impl Decision {
    /// What an [`Effect::Notify`] of this decision tells.
    pub(super) fn notice(&self, kind: NoticeKind, data: &serde_json::Value, dedupe_key: &str) -> Notice {
        Notice { user: self.user.clone(), kind, data: data.clone(), dedupe_key: dedupe_key.to_owned() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckoutKind {
    Plan,
    Pack,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckoutState {
    Open,
    /// Completed; the money is still on its way.
    Pending,
    Paid,
    Failed,
    Expired,
}

/// A page at Stripe where a user pays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkout {
    pub id: Uuid,
    pub user: AccountId,
    /// `None` until Stripe has answered.
    pub session: Option<String>,
    pub kind: CheckoutKind,
    pub name: String,
    pub price: String,
    pub currency: String,
    pub amount: i64,
    pub state: CheckoutState,
    pub created_at: Micros,
}

/// The store's side of billing.
#[async_trait]
pub trait BillingStore: Send + Sync {
    /// Whether it was new: an event that is there already stays as it is.
    async fn insert_event(&self, event: NewEvent) -> StoreResult<bool>;
    async fn billing_event(&self, id: &str) -> StoreResult<Option<EventRow>>;
    /// Newest first, without their payloads.
    async fn billing_events(&self, filter: EventFilter, page: PageRequest) -> StoreResult<Page<EventRow>>;
    /// Takes up to `limit` events whose time has come, oldest first, and counts an attempt for each. Nobody else gets
    /// them within `lease_us`; after that they are taken for left by a process that died.
    async fn claim_events(&self, limit: u32, lease_us: u64) -> StoreResult<Vec<EventRow>>;
    async fn finish_event(&self, id: &str, outcome: EventOutcome) -> StoreResult<()>;
    /// Makes an event due now, whatever its state. `NotFound` where there is none.
    async fn replay_event(&self, id: &str) -> StoreResult<EventRow>;
    /// How many events are pending, and parked.
    async fn event_counts(&self) -> StoreResult<(u64, u64)>;

    /// The user's account, begun where there is none. `NotFound` without such a user.
    async fn billing_account(&self, user: &AccountId) -> StoreResult<BillingAccount>;
    /// When the time of what a plan gave ends, by grant: the paid period's end, before the plan's grace. Newest first.
    async fn period_ends(&self, user: &AccountId) -> StoreResult<Vec<(GrantId, Micros)>>;
    /// Writes a decision and raises the version. `None`, with nothing written, where the version has moved on.
    async fn apply_decision(&self, decision: Decision) -> StoreResult<Option<Vec<ChangeRow>>>;
    async fn user_of_customer(&self, customer: &str) -> StoreResult<Option<AccountId>>;
    async fn user_of_subscription(&self, subscription: &str) -> StoreResult<Option<AccountId>>;
    async fn user_of_payment(&self, payment_intent: &str) -> StoreResult<Option<AccountId>>;
    /// Users for whom the clock has something to do, at most `limit`; each is not answered again within `lease_us`.
    async fn claim_due_accounts(&self, limit: u32, lease_us: u64) -> StoreResult<Vec<AccountId>>;
    /// Users with a customer, after `after` in the order of their ids, at most `limit`.
    async fn billed_users(&self, after: Option<&AccountId>, limit: u32) -> StoreResult<Vec<AccountId>>;

    /// Stores a checkout as the user's open one. `Conflict` where another is open.
    async fn begin_checkout(&self, checkout: Checkout) -> StoreResult<()>;
    async fn open_checkout(&self, user: &AccountId) -> StoreResult<Option<Checkout>>;
    async fn checkout_of_session(&self, session: &str) -> StoreResult<Option<Checkout>>;
    async fn set_checkout_session(&self, id: Uuid, session: &str) -> StoreResult<()>;
    async fn set_checkout_state(&self, id: Uuid, state: CheckoutState) -> StoreResult<()>;

    /// The key of a call to Stripe, made and stored at the first asking and the same afterwards. After `life_us`, when
    /// Stripe may have forgotten it, and for another fingerprint, it is a new one.
    async fn call_key(&self, scope: &str, fingerprint: u64, life_us: u64) -> StoreResult<String>;

    /// Lets go of a key under which Stripe would only repeat that it failed.
    async fn forget_call(&self, scope: &str) -> StoreResult<()>;

    /// Whether a comparison with Stripe is due; then it is this caller's, and not due again before `next_us` from now.
    /// Answers until when the last one reached.
    async fn claim_reconciliation(&self, next_us: u64) -> StoreResult<Option<Option<Micros>>>;
    /// Makes a comparison due now where the last one reached no further than `older_us` ago.
    async fn expedite_reconciliation(&self, older_us: u64) -> StoreResult<()>;
    /// It reached so far.
    async fn finish_reconciliation(&self, until: Micros) -> StoreResult<()>;
}

/// The names of closed sets in the tables.
pub(super) mod names {
    use super::super::common::broken;
    use super::super::{StoreError, StoreResult};
    use super::{CheckoutKind, CheckoutState, EventState, GrantUse, PurchaseKind};

    macro_rules! names {
        ($($kind:ident: $write:ident, $read:ident, $what:literal { $($variant:ident = $name:literal),* })*) => {
            $(
                pub(in crate::store) fn $write(value: $kind) -> &'static str {
                    match value { $($kind::$variant => $name),* }
                }
                pub(in crate::store) fn $read(name: &str) -> StoreResult<$kind> {
                    match name { $($name => Ok($kind::$variant),)* _ => Err(broken($what)) }
                }
            )*
        };
    }

    names! {
        EventState: event_state_name, event_state, "state of an event" {
            Pending = "pending", Processed = "processed", Ignored = "ignored", Parked = "parked"
        }
        PurchaseKind: purchase_kind_name, purchase_kind, "kind of purchase" {
            Period = "period", Proration = "proration", Pack = "pack", Trial = "trial"
        }
        GrantUse: grant_use_name, grant_use, "use of a grant" {
            Main = "main", Rollover = "rollover", Restored = "restored"
        }
        CheckoutKind: checkout_kind_name, checkout_kind, "kind of checkout" { Plan = "plan", Pack = "pack" }
        CheckoutState: checkout_state_name, checkout_state, "state of a checkout" {
            Open = "open", Pending = "pending", Paid = "paid", Failed = "failed", Expired = "expired"
        }
    }

    /// Where a list goes on that runs downwards by time and id.
    pub(in crate::store) fn event_position(after: Option<&str>) -> StoreResult<(i64, String)> {
        let invalid = StoreError::Invalid("the cursor of a page");
        match after.map(|after| after.split_once(' ')) {
            None => Ok((i64::MAX, String::new())),
            Some(Some((time, id))) => Ok((time.parse().map_err(|_| invalid)?, id.to_owned())),
            Some(None) => Err(invalid),
        }
    }
}

/// The billing change that a planned one becomes, once the grants it names have their numbers.
pub(super) fn change(
    decision: &Decision,
    planned: &PlannedChange,
    named: Option<GrantId>,
) -> StoreResult<super::NewChange> {
    use crate::ledger::{Change, Scope};
    let named = || named.ok_or(super::StoreError::NotFound("the grant"));
    let change = match &planned.act {
        PlannedAct::Grant { kind, amount, expires_at } => {
            Change::Grant { kind: *kind, amount_micro: *amount, expires_at: *expires_at }
        }
        PlannedAct::Revoke { amount, .. } => Change::Revoke { grant: named()?, amount_micro: *amount },
        PlannedAct::Rollover { cap, kind, expires_at, .. } => {
            Change::Rollover { from: named()?, cap_micro: *cap, kind: *kind, expires_at: *expires_at }
        }
        PlannedAct::Freeze { .. } => Change::Freeze { scope: Scope::Grant { grant: named()? } },
        PlannedAct::Unfreeze { .. } => Change::Unfreeze { scope: Scope::Grant { grant: named()? } },
    };
    Ok(super::NewChange {
        account: decision.user.clone(),
        change,
        source_key: planned.key.clone(),
        note: Some(planned.note.clone()),
        actor: decision.actor.clone(),
    })
}

impl PlannedAct {
    /// The source key of the grant that it is about.
    pub(super) fn names(&self) -> Option<&str> {
        match self {
            PlannedAct::Grant { .. } => None,
            PlannedAct::Revoke { grant, .. } | PlannedAct::Freeze { grant } | PlannedAct::Unfreeze { grant } => {
                Some(grant)
            }
            PlannedAct::Rollover { from, .. } => Some(from),
        }
    }
}
