//! HTTP/2 streams whose client takes nothing.
//!
//! A client may keep its connection alive and give a stream no window. Then nobody reads that stream's answer, and
//! what it holds, credits and a connection to an upstream, would be held for ever. So every piece of an answer must be
//! taken within `server.write_timeout_ms`; otherwise the stream is reset, and its client counts as gone.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::tasks::LocalTasks;

/// When a stream's last piece was handed out; `None` once the next was asked for.
#[derive(Debug, Clone, Default)]
struct Given(Rc<Cell<Option<Instant>>>);

/// Which stream of a connection is being polled: how an answer's body finds the clock of its stream.
#[derive(Debug, Clone, Default)]
pub(super) struct Streams(Rc<RefCell<Option<Given>>>);

impl Streams {
    /// The next piece was asked for: the one before it is taken.
    pub(super) fn asked(&self) {
        self.note(None);
    }

    /// A piece was handed out.
    pub(super) fn gave(&self) {
        self.note(Some(Instant::now()));
    }

    fn note(&self, at: Option<Instant>) {
        if let Some(given) = &*self.0.borrow() {
            given.0.set(at);
        }
    }
}

/// Runs a connection's streams, and ends those that stand still.
#[derive(Clone)]
pub(super) struct Executor {
    pub(super) tasks: LocalTasks,
    pub(super) streams: Streams,
    pub(super) limit: Duration,
}

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Executor {
    fn execute(&self, task: F) {
        self.tasks.spawn(Watched {
            task: Some(Box::pin(task)),
            streams: self.streams.clone(),
            given: Given::default(),
            limit: self.limit,
            timer: None,
        });
    }
}

struct Watched<F> {
    task: Option<Pin<Box<F>>>,
    streams: Streams,
    given: Given,
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let Some(task) = &mut this.task else { return Poll::Ready(()) };
        this.streams.0.replace(Some(this.given.clone()));
        let polled = task.as_mut().poll(context);
        this.streams.0.replace(None);
        if polled.is_pending() && !this.stands_still(context) {
            return Poll::Pending;
        }
        // Where it did not end, dropping it resets the stream.
        this.task = None;
        Poll::Ready(())
    }
}

impl<F> Watched<F> {
    fn stands_still(&mut self, context: &mut Context<'_>) -> bool {
        let Some(given) = self.given.0.get() else { return false };
        let deadline = given + self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        // The timer stays armed from one wait to the next, and is set anew only when it fires.
        while timer.as_mut().poll(context).is_ready() {
            if Instant::now() >= deadline {
                tracing::debug!("the client took nothing of a stream for too long");
                return true;
            }
            timer.as_mut().reset(deadline);
        }
        false
    }
}
