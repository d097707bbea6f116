//! What a ledger tells the store.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::{AccountId, GrantId, Micros, RecordId};
use crate::credits::Credits;

/// One change of one account, in the order of `seq`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub account: AccountId,
    /// The account's own sequence: no gaps.
    pub seq: u64,
    pub at: Micros,
    pub kind: EventKind,
    /// Credits used: what was delivered and must be paid, whether or not there was enough.
    pub charged: Credits,
    /// Credits that ended unused: expired, revoked, clawed back.
    pub written_off: Credits,
    /// What abandoned holds had held; a figure for people, it changes no balance.
    pub forfeited: Credits,
    /// Signed change of the debt, in micro-credits.
    pub debt_delta: i64,
    /// Number of the billing change that this event answers; 0 for none.
    pub change: u64,
    /// Signed change of each grant's `remaining + held`, less what of the held is revoked already. A new grant's own
    /// amount is not here: its row has it.
    pub deltas: Deltas,
    /// The record that was charged or settled, if any.
    pub record: Option<RecordId>,
    /// The caller's usage detail, as given; empty for billing changes.
    pub usage: Bytes,
}

/// Signed changes in micro-credits, by grant.
pub type Deltas = SmallVec<[Delta; 2]>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    pub grant: GrantId,
    pub micro: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    Settled,
    Charged,
    Granted,
    Revoked,
    RolledOver,
    Frozen,
    Unfrozen,
    /// Grants written off or debt paid, outside any other event.
    Adjusted,
    /// A dead session's holds went back.
    Abandoned,
}
