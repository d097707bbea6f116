//! Budgets of keys. A request through a key with a budget holds its share in the store before it takes credits, so that of
//! any number of requests, on any number of replicas, none begins beyond the budget. What it came to is written a moment
//! after it ended; until then its share stays held. What goes beyond a share, as a charge may go beyond its hold, counts in
//! full and shuts the key.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use moka::sync::Cache;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::principal::Principal;
use super::resolve::Identity;
use crate::credits::Credits;
use crate::store::SharedStore;
use crate::store::key_use::{HOLD_QUIET_US, Share, Shared, Spent, SpentKey};
use crate::store::notifications::{Notice, NoticeKind};

/// How long what ended waits to be written, with whatever else ends meanwhile.
const SETTLE_INTERVAL: Duration = Duration::from_millis(50);
/// How often this replica says that its requests go on.
const RENEW_INTERVAL: Duration = Duration::from_secs(15);
/// How often what dead replicas left is looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// Shares settled in one transaction.
const SETTLED_AT_ONCE: usize = 500;
/// Ended requests that wait to be written; beyond it keys with budgets take no new ones.
const MAX_WAITING: usize = 65_536;
const SWEPT_AT_ONCE: u32 = 500;
const MAX_TOLD: u64 = 10_000;
/// Keys whose turns are kept, and how long after their last use.
const MAX_TURNS: u64 = 10_000;
const TURNS_KEPT: Duration = Duration::from_secs(60);

/// Why a request may not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BudgetRefusal {
    /// What is not used, and how much of that requests in flight hold.
    Exhausted { left: Credits, held: Credits },
    /// The store cannot be asked.
    Unavailable,
}

/// This replica's part.
pub(super) struct Budgets {
    owner: u64,
    ended: Arc<Ended>,
    /// Keys whose owners were told that the budget is used up; told again, it changes nothing.
    told: Cache<Arc<str>, ()>,
    /// By key: whose turn it is to ask the store. However many requests a key sends, it takes one place in the store's
    /// queue at a time.
    turns: Cache<String, Turn>,
}

type Turn = Arc<tokio::sync::Mutex<()>>;

#[derive(Default)]
struct Ended {
    waiting: Mutex<Vec<Spent>>,
    /// Shares that are held, or wait.
    open: AtomicUsize,
}

/// A share of a key's budget in the hands of the request that took it. Dropped unsettled, it goes back.
pub struct BudgetShare {
    store: SharedStore,
    turn: Turn,
    ended: Arc<Ended>,
    share: Share,
    held: Credits,
    settled: bool,
}

impl std::fmt::Debug for BudgetShare {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("BudgetShare").field("id", &self.share.id).field("held", &self.held).finish_non_exhaustive()
    }
}

impl Budgets {
    pub(super) fn new() -> Budgets {
        let (owner, _) = Uuid::new_v7(uuid::Timestamp::now(uuid::NoContext)).as_u64_pair();
        // The time alone is not enough where replicas start together.
        let mut random = [0; 8];
        let drawn = getrandom::fill(&mut random).is_ok();
        Budgets {
            owner: if drawn { u64::from_ne_bytes(random) } else { owner },
            ended: Arc::default(),
            told: Cache::new(MAX_TOLD),
            turns: Cache::builder().max_capacity(MAX_TURNS).time_to_idle(TURNS_KEPT).build(),
        }
    }
}

impl Identity {
    /// Takes a share of the budget of the caller's key for a request: `amount`, or what there is down to `floor`, which
    /// may be nothing at all. `None` where the key has no budget.
    ///
    /// # Errors
    /// Where not even `floor` is left, or the store cannot be asked.
    pub async fn share_budget(
        &self,
        caller: &Principal,
        request: Uuid,
        amount: Credits,
        floor: Credits,
    ) -> Result<Option<BudgetShare>, BudgetRefusal> {
        if amount.is_zero() || !caller.scope.as_ref().is_some_and(|scope| scope.budgeted) {
            return Ok(None);
        }
        if self.budgets.ended.waiting.lock().len() >= MAX_WAITING {
            return Err(BudgetRefusal::Unavailable);
        }
        let share = Share { id: request, key: caller.key_id.to_string(), amount, floor, owner: self.budgets.owner };
        self.budgets.ended.open.fetch_add(1, Ordering::Relaxed);
        // Made before the question: where its asker is gone when the answer comes, what was taken goes back.
        let mut taken = BudgetShare {
            store: self.store.clone(),
            turn: self.budgets.turns.get_with(share.key.clone(), Arc::default),
            ended: self.budgets.ended.clone(),
            share,
            held: Credits::ZERO,
            settled: false,
        };
        match taken.grow(amount, floor).await {
            Ok(_) => Ok(Some(taken)),
            Err(refusal) => {
                // What requests in flight give back may be enough for this one.
                if matches!(refusal, BudgetRefusal::Exhausted { left, held } if left.saturating_add(held) < floor) {
                    self.tell_refused(caller).await;
                }
                Err(refusal)
            }
        }
    }

    /// Writes down what ended, renews what goes on, and settles what others left, until `stop`.
    pub(super) async fn keep_budgets(&self, stop: &CancellationToken) {
        let (mut renewed, mut swept) = (Instant::now(), Instant::now());
        // Since when the store has answered without a break. After an outage others must have had the time to say that
        // their requests go on, and to write down what ended meanwhile.
        let mut steady = Instant::now();
        while !stop.is_cancelled() {
            tokio::select! {
                () = tokio::time::sleep(SETTLE_INTERVAL) => {}
                () = stop.cancelled() => {}
            }
            self.settle_ended().await;
            if renewed.elapsed() >= RENEW_INTERVAL {
                renewed = Instant::now();
                if let Err(error) = self.store.renew_shares(self.budgets.owner).await {
                    steady = Instant::now();
                    tracing::warn!(%error, "shares of keys' budgets could not be renewed");
                }
            }
            if swept.elapsed() >= SWEEP_INTERVAL && steady.elapsed() >= Duration::from_micros(HOLD_QUIET_US) {
                swept = Instant::now();
                match self.store.sweep_shares(SWEPT_AT_ONCE).await {
                    Ok(0) => {}
                    Ok(count) => tracing::info!(count, "shares of keys' budgets that a replica left were settled"),
                    Err(error) => {
                        steady = Instant::now();
                        tracing::warn!(%error, "what replicas left of keys' budgets could not be settled");
                    }
                }
            }
        }
    }

    async fn settle_ended(&self) {
        loop {
            let batch: Vec<Spent> = {
                let mut waiting = self.budgets.ended.waiting.lock();
                let count = waiting.len().min(SETTLED_AT_ONCE);
                waiting.drain(..count).collect()
            };
            if batch.is_empty() {
                return;
            }
            match self.store.settle_shares(&batch).await {
                Ok(spent) => {
                    self.budgets.ended.open.fetch_sub(batch.len(), Ordering::Relaxed);
                    for key in spent {
                        self.tell_spent(key).await;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "what keys have used of their budgets could not be written; it is tried again");
                    self.budgets.ended.waiting.lock().splice(..0, batch);
                    return;
                }
            }
        }
    }

    /// What is left of a budget is too little for what is asked for: its owner is told, as where nothing is left.
    async fn tell_refused(&self, caller: &Principal) {
        if self.budgets.told.contains_key(&caller.key_id) {
            return;
        }
        let keys = match self.store.keys_of(Some(&caller.account)).await {
            Ok(keys) => keys,
            Err(error) => {
                tracing::warn!(key = %caller.key_id, %error, "a key whose budget is used up could not be looked up");
                return;
            }
        };
        let key = keys.into_iter().find(|key| key.id == *caller.key_id);
        if let Some((key, budget)) = key.and_then(|key| key.budget.map(|budget| (key, budget))) {
            let user = caller.account.clone();
            if self.tell_spent(SpentKey { id: key.id, user, name: key.name, limit: budget.limit }).await {
                self.budgets.told.insert(caller.key_id.clone(), ());
            }
        }
    }

    /// Whether that is known now.
    async fn tell_spent(&self, key: SpentKey) -> bool {
        let notice = Notice {
            user: key.user,
            kind: NoticeKind::KeyBudgetExhausted,
            data: json!({"key": key.id, "name": key.name, "limit": key.limit}),
            dedupe_key: format!("key_budget:{}", key.id),
        };
        let told = self.store.notify(notice).await;
        if let Err(error) = &told {
            tracing::warn!(key = key.id, %error, "that a key's budget is used up could not be told");
        }
        told.is_ok()
    }
}

impl BudgetShare {
    /// What the request may cost before more must be shared.
    pub fn held(&self) -> Credits {
        self.held
    }

    /// Takes `amount` more, or what there is down to `floor`. Answers how much it was.
    ///
    /// # Errors
    /// As [`Identity::share_budget`].
    pub async fn grow(&mut self, amount: Credits, floor: Credits) -> Result<Credits, BudgetRefusal> {
        let share = Share { amount, floor, ..self.share.clone() };
        let _turn = self.turn.lock().await;
        match self.store.share_budget(share).await {
            Ok(Shared::Held(more)) => {
                self.held = self.held.saturating_add(more);
                Ok(more)
            }
            Ok(Shared::Exhausted { left, held }) => Err(BudgetRefusal::Exhausted { left, held }),
            // Revoked just now: nobody is let in by it any more.
            Ok(Shared::Unknown) => Err(BudgetRefusal::Exhausted { left: Credits::ZERO, held: Credits::ZERO }),
            Err(error) => {
                tracing::warn!(%error, "a key's budget cannot be asked for");
                Err(BudgetRefusal::Unavailable)
            }
        }
    }

    /// Counts what the request cost.
    pub fn settle(mut self, cost: Credits) {
        self.end(cost);
    }

    fn end(&mut self, amount: Credits) {
        if !std::mem::replace(&mut self.settled, true) {
            self.ended.waiting.lock().push(Spent { id: self.share.id, key: self.share.key.clone(), amount });
        }
    }
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        self.end(Credits::ZERO);
    }
}
