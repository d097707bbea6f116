//! Mends what an audit found, in favour of the record: billing changes and usage rows.
//!
//! First the store: its sums, debt and grants become what the record says, in one transaction. Then the ledger, where it
//! still differs: it drops the account, and loads it from the store when it is next used. It does so only while nothing
//! is held and its limits are idle, and once the store has all its events, so that nothing in flight is lost. (An
//! adjusting change would not do: it moves ledger and store alike, and leaves between them what differs.)

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::compare::{Compared, Hot};
use super::{AuditError, Auditor, Finding, Summed, still};
use crate::bridge::usage_sums;
use crate::ledger::{AccountId, Act, Answer, Balance};
use crate::store::StoreError;
use crate::store::books::{MendHint, MendRequest};

/// Time between two tries to have the ledger drop an account.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// What came of repairing one account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repaired {
    /// What was mended; nothing where nothing had to be.
    Done { store: bool, ledger: bool },
    /// Time was up while its usage was summed up: go on from here.
    Summing(Summed),
    /// The ledger cannot drop it while it is in use, or its usage by day is still being added up.
    Busy,
    /// The record itself has holes, or the ledger cannot read the account: for a person.
    Beyond(String),
}

/// What came of an account's usage by day.
enum Days {
    /// Whether anything had to be mended.
    Mended(bool),
    Not(Repaired),
}

impl Auditor {
    /// Mends one account; `None` where there is none. Doing it again does no harm.
    pub async fn repair(
        &self,
        account: &AccountId,
        from: Summed,
        budget: Duration,
        actor: &str,
    ) -> Result<Option<Repaired>, AuditError> {
        let deadline = Instant::now() + budget;
        let Some(books) = self.store.books_of(account).await? else { return Ok(None) };
        let summed = self.sum_up(&books, still(from, &books), deadline).await?;
        if summed.upto < books.seq {
            return Ok(Some(Repaired::Summing(summed)));
        }
        let hint = match self.hot(account).await? {
            Hot::Loaded(balance) => hint(&balance),
            Hot::NotLoaded | Hot::Unreadable => None,
        };
        let (account_id, actor_name) = (account.clone(), actor.to_owned());
        let Summed { upto, micro: used, pruned, .. } = summed;
        let request = MendRequest { account: account_id, upto, used, pruned, hint, actor: actor_name };
        let store = match self.store.mend(request).await {
            Ok(mended) => mended,
            // The sum is begun anew.
            Err(StoreError::CursorMoved) => return Ok(Some(Repaired::Summing(Summed::default()))),
            Err(StoreError::Conflict(why)) => return Ok(Some(Repaired::Beyond(why))),
            Err(error) => return Err(error.into()),
        };
        let days = match self.mend_days(account, summed, deadline, actor).await? {
            Days::Mended(days) => days,
            Days::Not(repaired) => return Ok(Some(repaired)),
        };
        if store || days {
            tracing::warn!(%account, actor, "the books of an account were mended");
        }
        self.reload(account, store || days, deadline, actor).await.map(Some)
    }

    /// Has usage by day that differs added up anew.
    async fn mend_days(
        &self,
        account: &AccountId,
        summed: Summed,
        deadline: Instant,
        actor: &str,
    ) -> Result<Days, AuditError> {
        let mut redone = false;
        loop {
            let Some(books) = self.store.books_of(account).await? else { return Ok(Days::Mended(redone)) };
            let summed = self.sum_up(&books, still(summed, &books), deadline).await?;
            if summed.upto < books.seq {
                return Ok(Days::Not(Repaired::Summing(summed)));
            }
            let Some(found) = self.days(&books, &summed, deadline).await? else {
                return Ok(Days::Not(Repaired::Busy));
            };
            if found.is_empty() {
                return Ok(Days::Mended(redone));
            }
            if redone {
                let why = "usage by day differs where the rows are no longer kept";
                return Ok(Days::Not(Repaired::Beyond(why.to_owned())));
            }
            redone = self.store.redo_days(account, actor).await?;
            let left = deadline.saturating_duration_since(Instant::now());
            if !redone || !usage_sums::catch_up(&self.store, Some(account), left).await? {
                return Ok(Days::Not(Repaired::Busy));
            }
        }
    }

    /// Has the ledger drop the account if it differs from the store.
    async fn reload(
        &self,
        account: &AccountId,
        store: bool,
        deadline: Instant,
        actor: &str,
    ) -> Result<Repaired, AuditError> {
        loop {
            let Some(books) = self.store.books_of(account).await? else {
                return Ok(Repaired::Done { store, ledger: false });
            };
            let compared = self.compare(books, deadline).await?;
            let found = match compared {
                Compared::Done(found) if found.is_empty() => {
                    return Ok(Repaired::Done { store, ledger: false });
                }
                Compared::Done(found) => found,
                Compared::Moving(_) => return Ok(Repaired::Busy),
            };
            match self.hot(account).await? {
                Hot::NotLoaded => return Ok(Repaired::Done { store, ledger: false }),
                Hot::Unreadable => return Ok(Repaired::Beyond("the ledger cannot read the account".to_owned())),
                Hot::Loaded(balance) => {
                    if self.drop_account(account, &balance).await? {
                        self.note(account, &found, &balance, actor).await?;
                        return Ok(Repaired::Done { store, ledger: true });
                    }
                }
            }
            if Instant::now() >= deadline {
                return Ok(Repaired::Busy);
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    /// Once the store has all that the ledger emitted. The ledger refuses if it has moved on since, or holds anything.
    async fn drop_account(&self, account: &AccountId, balance: &Balance) -> Result<bool, AuditError> {
        let Some(books) = self.store.books_of(account).await? else { return Ok(false) };
        if books.seq < balance.seq {
            return Ok(false);
        }
        let answer = self.ask(account, Act::Park { flushed_seq: balance.seq }).await?;
        Ok(matches!(answer, Answer::Parked | Answer::NotLoaded))
    }

    async fn note(
        &self,
        account: &AccountId,
        found: &[Finding],
        balance: &Balance,
        actor: &str,
    ) -> Result<(), AuditError> {
        let found: Vec<_> = found
            .iter()
            .map(|found| json!({ "check": found.check.name(), "store": found.left, "ledger": found.right }))
            .collect();
        let detail = json!({ "ledger_seq": balance.seq, "found": found }).to_string();
        tracing::warn!(%account, actor, "the ledger loads an account anew from the store");
        Ok(self.store.audit(actor, "books.reload", Some(account), &detail).await?)
    }
}

/// What the ledger has by grant is known only while nothing is held.
fn hint(balance: &Balance) -> Option<MendHint> {
    balance.held.is_zero().then(|| MendHint {
        seq: balance.seq,
        debt: balance.debt.micro(),
        grants: balance.grants.iter().map(|grant| (grant.id, grant.remaining_micro)).collect(),
    })
}
