//! Tasks of a worker's own thread.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::task::Poll;

use tokio::task::JoinSet;

/// Tasks of a worker's own thread, all of which are waited for or ended before the worker ends.
#[derive(Debug, Clone, Default)]
pub(super) struct LocalTasks {
    set: Rc<RefCell<JoinSet<()>>>,
}

impl LocalTasks {
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let mut set = self.set.borrow_mut();
        // What ended is taken out as something begins, so the set never outgrows what is alive by much.
        while set.try_join_next().is_some() {}
        set.spawn_local(task);
    }

    /// Until none is left.
    pub(super) async fn wait(&self) {
        std::future::poll_fn(|context| {
            loop {
                match self.set.borrow_mut().poll_join_next(context) {
                    Poll::Ready(Some(_)) => {}
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
    }

    pub(super) async fn end(&self) {
        self.set.borrow_mut().abort_all();
        self.wait().await;
    }
}

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalTasks {
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}
