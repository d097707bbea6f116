//! Answers on their way to a worker's runtime.
//!
//! Waking a task of another thread's runtime costs a system call, each time. A group commit answers dozens at once, so
//! it leaves the answers in the worker's mailbox and wakes the worker once; a task there wakes those that wait.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::outbox::Waiter;

/// One connection's answers. Bounded by its operations in flight, each of which waits for at most one.
#[derive(Default)]
pub(super) struct Mailbox {
    /// `None` where nobody fetches: answers are then handed over where they come up.
    waiting: Mutex<Option<Vec<Waiter>>>,
    filled: Notify,
}

impl Mailbox {
    /// With the task that fetches until `stop`. Spawn it on the runtime of those who wait.
    pub(super) fn open(stop: CancellationToken) -> (Arc<Mailbox>, impl Future<Output = ()> + Send + 'static) {
        let mailbox = Arc::new(Mailbox { waiting: Mutex::new(Some(Vec::new())), filled: Notify::new() });
        let fetching = Fetching(mailbox.clone());
        (mailbox, async move { fetching.run(stop).await })
    }

    /// Whether it is the first there, and the fetcher must be woken; the caller does so once it has left all.
    fn leave(&self, waiter: Waiter) -> bool {
        let mut waiting = self.waiting.lock();
        match &mut *waiting {
            Some(waiting) => {
                waiting.push(waiter);
                waiting.len() == 1
            }
            None => {
                drop(waiting);
                waiter.answer();
                false
            }
        }
    }
}

/// Hands over what is answered together.
pub(super) fn deliver(waiters: impl Iterator<Item = Waiter>) {
    // Workers are few, and each is woken at most once.
    let mut woken: Vec<Arc<Mailbox>> = Vec::new();
    for waiter in waiters {
        let mailbox = waiter.mailbox.clone();
        if mailbox.leave(waiter) {
            woken.push(mailbox);
        }
    }
    for mailbox in woken {
        mailbox.filled.notify_one();
    }
}

/// Closes the mailbox when its task ends, however it ends.
struct Fetching(Arc<Mailbox>);

impl Fetching {
    async fn run(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = self.0.filled.notified() => {}
                () = stop.cancelled() => return,
            }
            let waiters = self.0.waiting.lock().as_mut().map(std::mem::take).unwrap_or_default();
            waiters.into_iter().for_each(Waiter::answer);
        }
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        let waiters = self.0.waiting.lock().take().unwrap_or_default();
        waiters.into_iter().for_each(Waiter::answer);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::ledger::{Answer, LedgerError};

    type Receiver = oneshot::Receiver<Result<Answer, LedgerError>>;

    fn waiter(mailbox: &Arc<Mailbox>) -> (Waiter, Receiver) {
        let (sender, receiver) = oneshot::channel();
        (Waiter { sender, answer: Answer::Applied, mailbox: mailbox.clone() }, receiver)
    }

    async fn answered(receivers: Vec<Receiver>) {
        for receiver in receivers {
            assert_eq!(receiver.await.unwrap(), Ok(Answer::Applied));
        }
    }

    #[tokio::test]
    async fn every_answer_arrives() {
        let stop = CancellationToken::new();
        let (one, fetching_one) = Mailbox::open(stop.clone());
        let (two, fetching_two) = Mailbox::open(stop.clone());
        let fetching = tokio::spawn(async move { tokio::join!(fetching_one, fetching_two) });
        for _ in 0..10 {
            let (waiters, receivers): (Vec<_>, Vec<_>) = [&one, &two, &one].into_iter().map(waiter).unzip();
            deliver(waiters.into_iter());
            answered(receivers).await;
        }
        stop.cancel();
        fetching.await.unwrap();
        let (late, receiver) = waiter(&one);
        deliver(std::iter::once(late));
        answered(vec![receiver]).await;
    }

    #[tokio::test]
    async fn a_fetcher_that_never_ran_keeps_no_answers() {
        let (mailbox, fetching) = Mailbox::open(CancellationToken::new());
        let (early, receiver) = waiter(&mailbox);
        deliver(std::iter::once(early));
        drop(fetching);
        answered(vec![receiver]).await;
    }
}
