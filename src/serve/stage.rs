//! Tasks that start together and end together, each with an owner that waits for it.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tasks of one step of the shutdown.
#[derive(Debug, Clone)]
pub struct Stage {
    name: &'static str,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
    /// Cancelled when a task that should have gone on ended: then the process must end too, rather than limp.
    broken: CancellationToken,
}

impl Stage {
    pub fn new(name: &'static str, broken: &CancellationToken) -> Stage {
        Stage { name, tasks: TaskTracker::new(), stop: CancellationToken::new(), broken: broken.clone() }
    }

    /// Runs a task that ends when the stage stops, and not before.
    pub fn spawn(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let (stop, broken) = (self.stop.clone(), self.broken.clone());
        self.tasks.spawn(async move {
            let ended = AssertUnwindSafe(task).catch_unwind().await;
            if ended.is_err() || !stop.is_cancelled() {
                tracing::error!(task = what, "a task ended that should go on; the process ends");
                broken.cancel();
            }
        });
    }

    /// Stops its tasks and waits for them, up to `limit`. Answers whether all ended.
    pub async fn end(&self, limit: Duration) -> bool {
        self.stop.cancel();
        self.tasks.close();
        let ended = tokio::time::timeout(limit, self.tasks.wait()).await.is_ok();
        if !ended {
            tracing::error!(stage = self.name, left = self.tasks.len(), "tasks did not end in time");
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_early_breaks_the_process() {
        let broken = CancellationToken::new();
        let stage = Stage::new("test", &broken);
        let stop = stage.stop.clone();
        stage.spawn("patient", async move { stop.cancelled().await });
        stage.spawn("hasty", async {});
        broken.cancelled().await;
        assert!(stage.end(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn tasks_that_wait_for_the_stop_break_nothing() {
        let broken = CancellationToken::new();
        let stage = Stage::new("test", &broken);
        let stop = stage.stop.clone();
        stage.spawn("patient", async move { stop.cancelled().await });
        assert!(stage.end(Duration::from_secs(5)).await);
        assert!(!broken.is_cancelled());
    }

    #[tokio::test]
    async fn stubborn_tasks_are_left_after_the_limit() {
        let stage = Stage::new("test", &CancellationToken::new());
        stage.spawn("stubborn", std::future::pending());
        assert!(!stage.end(Duration::from_millis(20)).await);
    }
}
