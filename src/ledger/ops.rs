//! Operations and their answers, as data; and what an account is between store and ledger.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use uuid::Uuid;

use super::Micros;
use crate::credits::Credits;

/// A user's id, and the name of their account. 1 to 128 of `A-Z a-z 0-9 . _ @ : + -`, so that it is safe in a key, a path and a log.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(Arc<str>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id is 1 to 128 characters of A-Z a-z 0-9 . _ @ : + -")]
pub struct InvalidAccountId;

impl AccountId {
    pub fn parse(text: &str) -> Result<AccountId, InvalidAccountId> {
        if Self::is_valid(text) { Ok(AccountId(text.into())) } else { Err(InvalidAccountId) }
    }

    /// Whether [`AccountId::parse`] would take it.
    pub fn is_valid(text: &str) -> bool {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._@:+-".contains(&byte);
        (1..=128).contains(&text.len()) && text.bytes().all(allowed) && text != "." && text != ".."
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl Serialize for AccountId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for AccountId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<AccountId, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        AccountId::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// A grant of an account: the number of the billing change that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GrantId(pub u64);

/// One worker's numbered conversation with a shard. Holds belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

impl SessionId {
    /// Owns the holds made through the API, which any replica may finish. Never fenced; not counted as concurrency.
    pub const API: SessionId = SessionId(0);
}

/// A hold made through the API, or an API charge with an Idempotency-Key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecordId(pub Uuid);

impl RecordId {
    /// Whether a caller that never heard of it can come upon it again: it was derived from their Idempotency-Key (version 8).
    /// Others are made up (version 7) and told in the answer alone.
    pub fn can_be_named_again(self) -> bool {
        self.0.get_version_num() != 7
    }
}

/// How long a finished record still answers (24 h, as the API's Idempotency-Key promises).
pub const RECORD_KEPT_US: Micros = 24 * 3600 * 1_000_000;
/// Open API holds of one account, at most: a load brings them all back.
pub const API_HOLDS_MAX: u64 = 1_000;
/// How long after its expiry what remains of a grant is written off.
pub const WRITE_OFF_AFTER_US: Micros = 60 * 1_000_000;
/// Grants of one account with something left, at most: every operation walks them, in Redis while nobody else is served.
pub const LIVE_GRANTS_MAX: u32 = 500;
/// How long a load's ticket stands.
pub const TICKET_LIFE_US: Micros = 10 * 1_000_000;
/// The window of requests/min and tokens/min.
pub const LIMIT_WINDOW_US: Micros = 60 * 1_000_000;
/// The largest token count that a limit reckons with; more is counted as this.
pub const TOKENS_MAX: u64 = 100_000_000;

/// What a hold took: by grant, in the order taken.
pub type Parts = SmallVec<[(GrantId, Credits); 2]>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantKind {
    Free,
    Plan,
    Topup,
    Promo,
    Adjust,
}

impl GrantKind {
    /// Given credits burn before bought ones of the same expiry.
    pub fn bought(self) -> bool {
        matches!(self, GrantKind::Plan | GrantKind::Topup)
    }
}

/// A plan's limits on one account. 0 means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    pub requests_per_minute: u64,
    pub tokens_per_minute: u64,
    pub concurrency: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Requests,
    Tokens,
    Concurrency,
}

/// A numbered billing change, made by the store's transaction and applied once, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Change {
    /// New credits; they pay debt first. `expires_at` 0: never.
    Grant {
        kind: GrantKind,
        amount_micro: i64,
        expires_at: Micros,
    },
    /// Takes back what remains of a grant and, as it comes back, what is held from it. With an amount, takes exactly
    /// that much: what was already spent of it becomes debt.
    Revoke {
        grant: GrantId,
        amount_micro: Option<i64>,
    },
    /// Moves up to `cap` of what remains of a grant into a new one (whose id is this change's number); the rest is written off.
    Rollover {
        from: GrantId,
        cap_micro: i64,
        kind: GrantKind,
        expires_at: Micros,
    },
    Freeze {
        scope: Scope,
    },
    Unfreeze {
        scope: Scope,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "scope", rename_all = "snake_case")]
pub enum Scope {
    Account,
    Grant { grant: GrantId },
}

/// One operation on one account.
#[derive(Debug, Clone, PartialEq)]
pub struct Op {
    pub account: AccountId,
    pub act: Act,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Takes `amount` into a hold of the session, or what there is down to `floor` (`floor == amount`: all or nothing).
    Reserve { amount: Credits, floor: Credits, tokens: u64, limits: Limits },
    /// Grows a hold of the session; the answer carries only the new parts.
    Extend {
        /// Whose hold it is; `UnknownHold` when that session is gone.
        session: SessionId,
        more: Credits,
        floor: Credits,
    },
    /// Ends a hold: pays `actual` from its parts, returns the rest. `tokens_back_us` shrinks the tokens/min state
    /// (see [`limit_increment`]). `usage` is opaque here and travels in the event. Where the session is no longer the
    /// caller's own (its holds went back), the implementation sends a `must` charge instead.
    Settle { session: SessionId, parts: Parts, actual: Credits, tokens_back_us: u64, usage: Bytes },
    /// Gives back parts of a hold that goes on: an extension that nobody waited for. `UnknownHold` where it ended.
    Shrink { session: SessionId, parts: Parts },
    /// Ends a hold of a request that was never forwarded. Where the session is gone there is nothing left to do.
    /// When a session's last hold of an account ends, all that it still has from it goes back.
    Release { session: SessionId, parts: Parts, tokens_back_us: u64 },
    /// Settles without a hold. `must`: takes what there is, the rest becomes debt. With a record, at most once in 24 h.
    Charge { actual: Credits, must: bool, usage: Bytes, record: Option<RecordKey> },
    /// A hold made through the API, until `expires_at`. `must`: it was promised before, and is made again of what there is.
    Hold { record: RecordKey, amount: Credits, expires_in_us: u64, must: bool },
    /// Settles a hold made through the API. `must`: it was acknowledged before; takes what there is, and charges also where
    /// the hold was lost meanwhile.
    SettleHold { record: RecordId, actual: Credits, must: bool, usage: Bytes },
    /// `expired_only`: the sweeper's form, which leaves a hold that still has time.
    ReleaseHold { record: RecordId, expired_only: bool },
    /// What the store has of a record, for the operation that comes next and names it (Redis only).
    Recall { record: RecordId, state: Option<RecordState> },
    /// Applies billing change `number`.
    Apply { number: u64, change: Change },
    /// Asks to load an account that the ledger does not have.
    Ticket { ticket: u64 },
    /// Brings an account in; only while the ticket stands.
    Load { ticket: u64, state: AccountState },
    /// Drops an idle account whose events up to `flushed_seq` are in the store.
    Park { flushed_seq: u64 },
    /// Writes off what is due and answers the balance.
    Sweep,
    /// Answers the balance; changes nothing.
    Balance,
}

impl Act {
    /// The record that the operation names: whoever keeps records hands it to the model.
    pub fn record(&self) -> Option<RecordId> {
        match self {
            Act::Charge { record, .. } => record.map(|key| key.id),
            Act::Hold { record, .. } => Some(record.id),
            Act::SettleHold { record, .. } | Act::ReleaseHold { record, .. } | Act::Recall { record, .. } => {
                Some(*record)
            }
            _ => None,
        }
    }
}

/// Names a record and what it stands for: the same id with another fingerprint is a misuse of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordKey {
    pub id: RecordId,
    /// Digest of the request that made it, below 2^53.
    pub fingerprint: u64,
}

/// An account as the store knows it: everything flushed, every change up to `change` included.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AccountState {
    pub seq: u64,
    pub change: u64,
    pub frozen: bool,
    pub debt_micro: i64,
    pub grants: Vec<GrantState>,
    /// Open API holds and, for the embedded ledger, kept answers.
    pub records: Vec<RecordState>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantState {
    pub id: GrantId,
    pub kind: GrantKind,
    /// In the store and in a load: remaining and held together. In a balance: what remains.
    pub remaining_micro: i64,
    /// 0: never.
    pub expires_at: Micros,
    pub frozen: bool,
}

/// A record as it is kept: held with its parts, or finished with its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordState {
    pub id: RecordId,
    pub fingerprint: u64,
    /// A held record: when it expires. A finished one: until when it answers.
    pub until: Micros,
    pub held: Option<Vec<(GrantId, i64)>>,
    pub answer: Kept,
}

/// The answer that a record repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kept {
    Held { held_micro: i64, available_micro: i64, expires_at: Micros },
    Charged { charged_micro: i64, available_micro: i64 },
    Released { available_micro: i64 },
}

impl Kept {
    pub fn set_available(&mut self, micro: i64) {
        match self {
            Kept::Held { available_micro, .. }
            | Kept::Charged { available_micro, .. }
            | Kept::Released { available_micro } => *available_micro = micro,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A hold was made or grown.
    Reserved(Reserved),
    /// Settled or charged.
    Settled {
        charged: Credits,
        available: Credits,
    },
    Released {
        available: Credits,
    },
    /// A hold was made through the API; it is known by its record.
    Held {
        held: Credits,
        available: Credits,
        expires_at: Micros,
    },
    /// Does not fit. With `held` returned, it might.
    Insufficient {
        available: Credits,
        held: Credits,
    },
    /// `retry_after_us` is `None` where the limit could never admit it.
    Limited {
        limit: Limit,
        retry_after_us: Option<Micros>,
    },
    Frozen,
    /// The ledger does not have the account: load it and ask again.
    NotLoaded,
    UnknownHold,
    /// The record was finished before; this is what it answered then.
    Finished(Kept),
    /// The same request again: what was answered the first time.
    Repeated(Kept),
    /// The record exists for another request.
    Mismatch,
    /// Whether there is such a record the store knows: see [`Act::Recall`] (Redis only; no caller gets it).
    UnknownRecord,
    /// The billing change was the next one, and took effect.
    Applied,
    Duplicate,
    /// The change is not the next one: `applied` is the last that was.
    Gap {
        applied: u64,
    },
    Ticketed,
    Loaded,
    /// The account is in the ledger already.
    Already,
    /// The ticket no longer stands, or the account is not idle.
    Refused,
    Parked,
    Balance(Balance),
    /// An amount or a sum would pass 2^53.
    TooLarge,
    /// The account's value cannot be read; only its own operations fail.
    Unreadable,
    /// The ledger takes no new work: the event backlog or its memory is full.
    Backlogged,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserved {
    /// The session that now holds them.
    pub session: SessionId,
    pub parts: Parts,
    /// What could be reserved after this.
    pub available: Credits,
    /// How far the requests/min and tokens/min states are used: microseconds until each is idle.
    pub requests_busy_us: Micros,
    pub tokens_busy_us: Micros,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balance {
    /// What could be reserved now.
    pub available: Credits,
    pub held: Credits,
    /// How much of what is held a revocation has written off already. What remains and what is held, less this and the
    /// debt, is what the store knows at the same `seq`.
    pub clawed: Credits,
    pub debt: Credits,
    pub frozen: bool,
    pub seq: u64,
    pub change: u64,
    /// Live holds of worker sessions.
    pub in_flight: u64,
    pub grants: Vec<GrantState>,
}
