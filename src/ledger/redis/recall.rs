//! Records that Redis does not have, and the store may: kept answers and API holds from before the shard was opened anew.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Core;
use super::queue::{Item, Pending, Queue};
use crate::ledger::{LedgerError, RecordState};

/// The store could not answer, and the operation is owed.
const STORE_AGAIN: Duration = Duration::from_millis(500);
/// How long one look into the store may take.
const RECALL_LIMIT: Duration = Duration::from_secs(10);

/// What the store had of an operation's record when it was asked in `epoch`. It stands for that epoch only: a later one
/// begins with more in the store.
#[derive(Debug, Clone)]
pub(crate) struct Recalled {
    pub(crate) epoch: u64,
    pub(crate) state: Option<RecordState>,
}

/// Operations whose record is being looked up.
pub(crate) struct Recalling {
    core: Arc<Core>,
    queue: Arc<Queue>,
    tasks: TaskTracker,
    /// Cancelled when the session ends.
    stop: CancellationToken,
    count: usize,
}

impl Recalling {
    pub(crate) fn new(core: Arc<Core>, queue: Arc<Queue>, tasks: TaskTracker, stop: CancellationToken) -> Recalling {
        Recalling { core, queue, tasks, stop, count: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Asks the store for the operation's record; it comes back through the queue. Operations that name no record go on.
    pub(crate) fn ask(&mut self, epoch: u64, pending: Pending) {
        if self.count >= self.core.settings.max_queue && !pending.is_owed() {
            pending.answer(Err(LedgerError::Busy));
            return;
        }
        self.look(epoch, pending, Duration::ZERO);
    }

    /// As [`Recalling::ask`], in a moment.
    pub(crate) fn ask_again(&mut self, epoch: u64, pending: Pending) {
        self.look(epoch, pending, STORE_AGAIN);
    }

    fn look(&mut self, epoch: u64, pending: Pending, after: Duration) {
        let Some(record) = pending.op.act.record() else { return };
        self.count += 1;
        let (queue, source, stop) = (self.queue.clone(), self.core.source.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let lookup = async {
                tokio::time::sleep(after).await;
                tokio::time::timeout(RECALL_LIMIT, source.record(&pending.op.account, record)).await
            };
            tokio::select! {
                result = lookup => {
                    let result = result.unwrap_or(Err(LedgerError::Unavailable));
                    let result = result.map(|state| Recalled { epoch, state });
                    queue.push(Item::Recalled { pending, epoch, result });
                }
                () = stop.cancelled() => {
                    if pending.is_owed() {
                        let account = pending.op.account.as_str();
                        tracing::error!(account, "what was owed is lost: its record was still being looked up");
                    }
                    pending.answer(Err(LedgerError::Unavailable));
                }
            }
        });
    }

    /// The store's answer. Answers the operation where it can go on.
    pub(crate) fn found(
        &mut self,
        mut pending: Pending,
        epoch: u64,
        result: Result<Recalled, LedgerError>,
    ) -> Option<Pending> {
        self.count = self.count.saturating_sub(1);
        match result {
            Ok(recalled) => {
                pending.recalled = Some(recalled);
                return Some(pending);
            }
            Err(_) if pending.is_owed() => self.look(epoch, pending, STORE_AGAIN),
            Err(error) => drop(pending.answer(Err(error))),
        }
        None
    }
}
