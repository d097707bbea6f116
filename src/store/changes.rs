//! Whether a billing change may be stored, and what is written with it: decided once for both stores.

use super::common;
use super::notifications::{Notice, NoticeKind};
use super::{ChangeRow, NewChange, NewUser, StoreError, StoreResult, User, UserStatus};
use crate::credits::Credits;
use crate::ledger::{AccountId, Change, GrantId, GrantKind, LIVE_GRANTS_MAX, Micros, Scope, WRITE_OFF_AFTER_US};

/// What the store knows of the account, read in the same transaction.
pub(super) struct Facts {
    pub(super) status: UserStatus,
    pub(super) last_change: u64,
    pub(super) debt: i64,
    /// Of all grants, applied or not. The ledger has at most this.
    pub(super) remaining: i64,
    /// Grants with something left, or not applied yet, that did not expire before [`lapsed_before`].
    pub(super) live_grants: i64,
    /// How much the grant that the change names can have been at most, if there is one.
    pub(super) named: Option<i64>,
}

/// What to write.
pub(super) struct Plan {
    pub(super) number: u64,
    pub(super) payload: String,
    pub(super) grant: Option<PlannedGrant>,
    /// The user's new status.
    pub(super) status: Option<UserStatus>,
    /// What the user is told.
    pub(super) notice: Option<NoticeKind>,
    /// For the audit log.
    pub(super) action: &'static str,
}

pub(super) struct PlannedGrant {
    pub(super) kind: GrantKind,
    pub(super) amount: i64,
    pub(super) expires_at: Option<Micros>,
}

pub(super) fn names_grant(change: &Change) -> Option<GrantId> {
    match change {
        Change::Revoke { grant, .. } => Some(*grant),
        Change::Rollover { from, .. } => Some(*from),
        Change::Freeze { scope: Scope::Grant { grant } } | Change::Unfreeze { scope: Scope::Grant { grant } } => {
            Some(*grant)
        }
        Change::Grant { .. } | Change::Freeze { .. } | Change::Unfreeze { .. } => None,
    }
}

/// Grants that expired before this stand in no other's way: the next change has the ledger write them off.
pub(super) fn lapsed_before() -> Micros {
    common::now().saturating_sub(WRITE_OFF_AFTER_US)
}

/// The amount of a grant; of a rollover that the ledger has not applied yet, its cap.
pub(super) fn most(amount: i64, change: &Change, applied: bool) -> i64 {
    match change {
        Change::Rollover { cap_micro, .. } if !applied => *cap_micro,
        _ => amount,
    }
}

/// The checks leave the ledger no reason to refuse: a change that it cannot apply would hold up all that follow.
pub(super) fn plan(new: &NewChange, facts: &Facts) -> StoreResult<Plan> {
    if facts.status == UserStatus::Closed {
        return Err(conflict("the user is closed"));
    }
    if names_grant(&new.change).is_some() && facts.named.is_none() {
        return Err(StoreError::NotFound("the grant"));
    }
    let number = facts.last_change + 1;
    let payload = serde_json::to_string(&new.change).map_err(|error| StoreError::Unavailable(error.to_string()))?;
    let mut plan = Plan { number, payload, grant: None, status: None, notice: None, action: "" };
    let limit = Credits::INPUT_LIMIT.micro();
    let planned = |kind, amount, expires_at| {
        if expires_at >= common::TIME_MAX_US {
            return Err(StoreError::Invalid("the expiry of a grant"));
        }
        Ok(Some(PlannedGrant { kind, amount, expires_at: (expires_at > 0).then_some(expires_at) }))
    };
    match &new.change {
        Change::Grant { kind, amount_micro, expires_at } => {
            if *amount_micro <= 0 {
                return Err(StoreError::Invalid("the amount of a grant"));
            }
            if *amount_micro > limit - facts.remaining {
                return Err(conflict("the account would hold too many credits"));
            }
            if facts.live_grants >= i64::from(LIVE_GRANTS_MAX) {
                return Err(conflict("the account has too many grants with credits left"));
            }
            plan.grant = planned(*kind, *amount_micro, *expires_at)?;
            plan.action = "credits.grant";
        }
        Change::Revoke { amount_micro, .. } => {
            if amount_micro.is_some_and(|amount| amount <= 0) {
                return Err(StoreError::Invalid("the amount to revoke"));
            }
            let amount = amount_micro.unwrap_or(0);
            if facts.named.is_some_and(|granted| amount > granted) {
                return Err(conflict("more would be revoked than was granted"));
            }
            if amount > limit - facts.debt {
                return Err(conflict("the account would owe too much"));
            }
            plan.action = "credits.revoke";
        }
        Change::Rollover { cap_micro, kind, expires_at, .. } => {
            if *cap_micro < 0 {
                return Err(StoreError::Invalid("the cap of a rollover"));
            }
            // One grant leaves for the one that comes.
            if facts.live_grants > i64::from(LIVE_GRANTS_MAX) {
                return Err(conflict("the account has too many grants with credits left"));
            }
            // How much moves only the ledger knows; its event says it.
            plan.grant = planned(*kind, 0, *expires_at)?;
            plan.action = "credits.rollover";
        }
        Change::Freeze { scope } => {
            plan.status = (*scope == Scope::Account).then_some(UserStatus::Frozen);
            plan.notice = plan.status.filter(|status| *status != facts.status).map(|_| NoticeKind::AccountFrozen);
            plan.action = "credits.freeze";
        }
        Change::Unfreeze { scope } => {
            plan.status = (*scope == Scope::Account).then_some(UserStatus::Active);
            plan.notice = plan.status.filter(|status| *status != facts.status).map(|_| NoticeKind::AccountUnfrozen);
            plan.action = "credits.unfreeze";
        }
    }
    Ok(plan)
}

impl Plan {
    /// What the account's user is told of this change.
    pub(super) fn notice(&self, account: &AccountId) -> Option<Notice> {
        let kind = self.notice?;
        let dedupe_key = format!("{}:{}", kind.name(), self.number);
        Some(Notice { user: account.clone(), kind, data: serde_json::json!({}), dedupe_key })
    }
}

/// The answer to a source key that is taken.
pub(super) fn repeated(new: &NewChange, known: ChangeRow) -> StoreResult<ChangeRow> {
    if known.account == new.account {
        return Ok(known);
    }
    Err(conflict("the source key belongs to another account"))
}

/// The user whose plan may change, as it was found.
pub(super) fn may_replan(found: Option<User>) -> StoreResult<User> {
    let user = found.ok_or(StoreError::NotFound("the user"))?;
    if user.status == UserStatus::Closed {
        return Err(conflict("the user is closed"));
    }
    Ok(user)
}

/// The first change of a new user.
pub(super) fn signup(user: &NewUser) -> Option<NewChange> {
    if user.signup_credits.is_zero() {
        return None;
    }
    Some(NewChange {
        account: user.id.clone(),
        change: Change::Grant { kind: GrantKind::Free, amount_micro: user.signup_credits.micro(), expires_at: 0 },
        source_key: format!("signup:{}", user.id),
        note: None,
        actor: "signup".to_owned(),
    })
}

pub(super) fn read(payload: &str) -> StoreResult<Change> {
    serde_json::from_str(payload).map_err(|_| common::broken("billing change"))
}

pub(super) fn user_exists() -> StoreError {
    conflict("the user id is taken")
}

fn conflict(why: &str) -> StoreError {
    StoreError::Conflict(why.to_owned())
}
