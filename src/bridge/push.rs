//! Store → ledger: every billing change, in its account's order, until the ledger has acknowledged it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ledger::{AccountId, Act, Answer, Balance, LedgerError, Op, SharedLedger};
use crate::store::{SharedStore, StoreError, Unapplied};
use crate::telemetry::Metrics;

/// How often changes that nobody pushed are looked for: those of other replicas that died, and those that failed.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Accounts read in one go.
const PAGE: u32 = 500;
/// Pages in one round; the next round goes on behind them, so that no account keeps another from its turn.
const PAGES_MAX: usize = 8;
/// Accounts pushed at once: one that does not answer keeps only its own place.
const PUSHES_MAX: usize = 16;
/// The wait after an account's first failure; it doubles up to [`STUCK_WAIT_MAX`].
const STUCK_WAIT_MIN: Duration = Duration::from_millis(500);
const STUCK_WAIT_MAX: Duration = Duration::from_secs(30);
/// Accounts whose failures are remembered; those beyond are tried again each time.
const STUCK_MAX: usize = 10_000;
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

/// How far the pusher has come through the accounts, and which of them it leaves alone for now.
struct Walk {
    begun: Instant,
    /// The last account looked at.
    after: Option<AccountId>,
    /// Changes that stay outstanding so far.
    left: u64,
    stuck: HashMap<AccountId, Stuck>,
}

/// An account whose changes could not be applied: it is not tried again before `until`.
struct Stuck {
    until: Instant,
    wait: Duration,
}

impl Walk {
    fn begin() -> Walk {
        Walk { begun: Instant::now(), after: None, left: 0, stuck: HashMap::new() }
    }

    fn failed(&mut self, row: Unapplied) {
        self.left += row.changes;
        let known = self.stuck.get(&row.account).map(|stuck| stuck.wait);
        if known.is_none() && self.stuck.len() >= STUCK_MAX {
            return;
        }
        let wait = known.map_or(STUCK_WAIT_MIN, |wait| (wait * 2).min(STUCK_WAIT_MAX));
        self.stuck.insert(row.account, Stuck { until: Instant::now() + wait, wait });
    }

    /// Whoever was due when the walk began and did not fail again has nothing outstanding any more.
    fn begin_again(&mut self) {
        let begun = self.begun;
        self.stuck.retain(|_, stuck| stuck.until > begun);
        *self = Walk { stuck: std::mem::take(&mut self.stuck), ..Walk::begin() };
    }
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
        let mut walk = Walk::begin();
        loop {
            let round = async {
                if let Err(error) = self.push_all(&mut walk).await {
                    tracing::warn!(%error, "billing changes could not be read");
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

    /// One round of the walk over all accounts with outstanding changes.
    async fn push_all(&self, walk: &mut Walk) -> Result<(), StoreError> {
        for _ in 0..PAGES_MAX {
            let page = self.store.unapplied_accounts(walk.after.as_ref(), PAGE).await?;
            walk.after = page.last().map(|last| last.account.clone());
            let full = page.len() >= PAGE as usize;
            let now = Instant::now();
            let (due, waiting): (Vec<Unapplied>, Vec<Unapplied>) =
                page.into_iter().partition(|row| walk.stuck.get(&row.account).is_none_or(|stuck| stuck.until <= now));
            walk.left += waiting.iter().map(|row| row.changes).sum::<u64>();
            let mut pushes = futures_util::stream::iter(due)
                .map(|row| async move { (self.push(&row.account).await, row) })
                .buffer_unordered(PUSHES_MAX);
            while let Some((pushed, row)) = pushes.next().await {
                match pushed {
                    Ok(()) => drop(walk.stuck.remove(&row.account)),
                    Err(error) => {
                        tracing::warn!(account = %row.account, changes = row.changes, %error, "billing changes wait");
                        walk.failed(row);
                    }
                }
            }
            if !full {
                self.metrics.pending_changes.set(i64::try_from(walk.left).unwrap_or(i64::MAX));
                walk.begin_again();
                break;
            }
        }
        Ok(())
    }

    /// Writes off what is due in an account that the ledger has.
    pub async fn sweep(&self, account: &AccountId) {
        if let Err(error) = self.ask(account, Act::Sweep).await {
            tracing::debug!(%account, %error, "an account could not be swept");
        }
    }

    /// The account as the ledger has it now, loaded where it must be.
    pub async fn balance(&self, account: &AccountId) -> Result<Balance, PushError> {
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
