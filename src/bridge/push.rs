//! Store → ledger: every billing change, in its account's order, until the ledger has acknowledged it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::ledger::{AccountId, Act, Answer, Balance, LedgerError, Op, SharedLedger};
use crate::store::{SharedStore, StoreError};
use crate::telemetry::Metrics;

/// How often changes that nobody pushed are looked for: those of other replicas that died, and those that failed.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Changes looked at in one go, beyond those that are stuck.
const PAGE: u32 = 500;
/// However many changes are stuck, no more than so many are looked at.
const PAGE_MAX: u32 = 20_000;
/// Rounds of asking for what is missing before a push gives up until the next poll.
const ROUNDS_MAX: usize = 64;
/// How long a push waits for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("account {0} is not known")]
    UnknownAccount(AccountId),
    /// The ledger will not take this change as it is; those after it wait.
    #[error("change {number} of account {account} was refused: {answer:?}")]
    Refused { account: AccountId, number: u64, answer: Answer },
    /// Others push to this account all the time.
    #[error("account {0} changes too fast")]
    Restless(AccountId),
}

/// Applies billing changes. One a process; pushing twice does no harm.
pub struct Pusher {
    store: SharedStore,
    ledger: SharedLedger,
    metrics: Metrics,
}

impl Pusher {
    pub fn new(store: SharedStore, ledger: SharedLedger, metrics: Metrics) -> Arc<Pusher> {
        Arc::new(Pusher { store, ledger, metrics })
    }

    /// Pushes what is outstanding, of all accounts, until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut stuck = 0;
        loop {
            let round = async {
                match self.push_all(stuck).await {
                    Ok(still_stuck) => stuck = still_stuck,
                    Err(error) => tracing::warn!(%error, "billing changes could not be read"),
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            };
            // A change that was under way at the stop has its number: it is pushed again, or was applied.
            tokio::select! {
                () = round => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Applies an account's outstanding changes now. When this answers, the ledger has them.
    pub async fn push(&self, account: &AccountId) -> Result<(), PushError> {
        // The balance loads the account where it must, and says which change was the last.
        let mut applied = self.balance(account).await?.change;
        for _ in 0..ROUNDS_MAX {
            let changes = self.store.changes_after(account, applied).await?;
            if changes.is_empty() {
                return Ok(());
            }
            for row in changes {
                let number = row.number;
                match self.ask(account, Act::Apply { number, change: row.change }).await? {
                    Answer::Applied | Answer::Duplicate => applied = number,
                    Answer::Gap { applied: last } => {
                        applied = last;
                        break;
                    }
                    // Parked since it was asked.
                    Answer::NotLoaded => {
                        applied = self.balance(account).await?.change;
                        break;
                    }
                    answer => return Err(PushError::Refused { account: account.clone(), number, answer }),
                }
            }
        }
        Err(PushError::Restless(account.clone()))
    }

    /// Answers how many changes stay stuck.
    async fn push_all(&self, stuck: u32) -> Result<u32, PushError> {
        let limit = PAGE.saturating_add(stuck).min(PAGE_MAX);
        let rows = self.store.unapplied_changes(limit).await?;
        let mut accounts: BTreeMap<AccountId, u32> = BTreeMap::new();
        for row in rows {
            *accounts.entry(row.account).or_default() += 1;
        }
        let mut still_stuck = 0;
        for (account, count) in accounts {
            if let Err(error) = self.push(&account).await {
                tracing::warn!(%account, %error, "billing changes wait");
                still_stuck += count;
            }
        }
        self.metrics.pending_changes.set(i64::from(still_stuck));
        Ok(still_stuck)
    }

    async fn balance(&self, account: &AccountId) -> Result<Balance, PushError> {
        match self.ask(account, Act::Balance).await? {
            Answer::Balance(balance) => Ok(balance),
            Answer::NotLoaded => Err(PushError::UnknownAccount(account.clone())),
            answer => Err(PushError::Refused { account: account.clone(), number: 0, answer }),
        }
    }

    async fn ask(&self, account: &AccountId, act: Act) -> Result<Answer, LedgerError> {
        let reply = self.ledger.submit(Op { account: account.clone(), act });
        tokio::time::timeout(ANSWER_TIMEOUT, reply).await.unwrap_or(Err(LedgerError::Unavailable))
    }
}
