//! One worker's connections to one upstream, kept while idle, and the part of one that a request has.
//!
//! HTTP/1 connections are used last-in, first-out. HTTP/2 connections are shared, each by a bounded number of requests.
//! Everything here lives on the worker's own thread.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::response;
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn;
use tokio::time::Sleep;

use super::body::ForwardBody;
use super::connect::{Need, Open};
use super::http1::{Broken, Connection, Part};
use super::target::Target;

/// Requests that share one HTTP/2 connection before another is opened.
const STREAMS_PER_CONNECTION: usize = 100;

/// Driven by whoever waits for its answer.
pub(super) type Plain = Connection<Open>;
/// Driven by a task of its own.
pub(super) type Driven = conn::http1::SendRequest<ForwardBody>;
type Sender2 = conn::http2::SendRequest<ForwardBody>;

#[derive(Debug)]
struct Idle<C> {
    connection: C,
    since: Instant,
}

/// An HTTP/2 connection.
#[derive(Debug)]
struct Shared {
    sender: Sender2,
    streams: Cell<usize>,
    last_used: Cell<Instant>,
}

/// The connections that are open to one upstream and may carry another request.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) target: Arc<Target>,
    plain: RefCell<VecDeque<Idle<Box<Plain>>>>,
    driven: RefCell<VecDeque<Idle<Driven>>>,
    shared: RefCell<Vec<Rc<Shared>>>,
}

/// The part of a connection that one request has. Given back when its answer was read to the end; dropped before, it
/// ends the exchange.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) pool: Rc<Pool>,
    pub(super) way: Way,
}

#[derive(Debug)]
pub(super) enum Way {
    Plain(Box<Plain>),
    Driven(Driven),
    Part(Streams),
}

/// A place on an HTTP/2 connection.
#[derive(Debug)]
pub(super) struct Streams(Rc<Shared>);

/// An answer whose body is still to come.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) head: response::Parts,
    pub(super) rest: Rest,
}

/// The rest of an answer, and the connection over which it comes.
#[derive(Debug)]
pub(super) struct Rest {
    pool: Rc<Pool>,
    /// `None` once given back, or cut.
    way: Option<Way>,
    /// The body, where hyper reads it.
    body: Option<Incoming>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pool {
    pub(super) fn new(target: Arc<Target>) -> Rc<Pool> {
        Rc::new(Pool { target, plain: RefCell::default(), driven: RefCell::default(), shared: RefCell::default() })
    }

    /// A connection that is open already. `fresh`: none that was idle.
    pub(super) fn take(self: &Rc<Self>, need: Need, fresh: bool) -> Option<Lease> {
        if need != Need::Upgrade
            && let Some(shared) = self.shareable()
        {
            return Some(self.part(&shared));
        }
        if fresh {
            return None;
        }
        let way = match need {
            Need::Whole => Way::Plain(take(&self.plain, |connection| connection.is_alive())?),
            Need::Streamed | Need::Upgrade => Way::Driven(take(&self.driven, |sender| sender.is_ready())?),
        };
        Some(self.lease(way))
    }

    pub(super) fn lease(self: &Rc<Self>, way: Way) -> Lease {
        Lease { pool: Rc::clone(self), way }
    }

    /// Shares a new connection.
    pub(super) fn share(self: &Rc<Self>, sender: Sender2) -> Lease {
        let shared = Rc::new(Shared { sender, streams: Cell::new(0), last_used: Cell::new(Instant::now()) });
        self.shared.borrow_mut().push(Rc::clone(&shared));
        self.part(&shared)
    }

    fn part(self: &Rc<Self>, shared: &Rc<Shared>) -> Lease {
        shared.streams.set(shared.streams.get() + 1);
        self.lease(Way::Part(Streams(Rc::clone(shared))))
    }

    fn shareable(&self) -> Option<Rc<Shared>> {
        let mut shared = self.shared.borrow_mut();
        if shared.is_empty() {
            return None;
        }
        shared.retain(|connection| !connection.sender.is_closed());
        shared.iter().find(|connection| connection.streams.get() < STREAMS_PER_CONNECTION).cloned()
    }

    /// Closes what has been idle for too long, or was left by the upstream. Called every second.
    pub(super) fn prune(&self) {
        let limit = Duration::from_millis(self.target.settings.idle_connection_ms);
        let now = Instant::now();
        let old = |since: Instant| now.duration_since(since) >= limit;
        self.plain.borrow_mut().retain_mut(|idle| !old(idle.since) && idle.connection.is_alive());
        self.driven.borrow_mut().retain(|idle| !old(idle.since) && !idle.connection.is_closed());
        self.shared.borrow_mut().retain(|connection| {
            let unused = connection.streams.get() == 0 && old(connection.last_used.get());
            !connection.sender.is_closed() && !unused
        });
    }

    /// Closes every idle connection, at the end.
    pub(super) fn close(&self) {
        self.plain.borrow_mut().clear();
        self.driven.borrow_mut().clear();
        self.shared.borrow_mut().clear();
    }

    fn keep(&self, way: Way) {
        let most = self.target.settings.max_idle_connections;
        match way {
            Way::Plain(connection) if connection.is_reusable() => keep(&self.plain, connection, most),
            Way::Driven(sender) if !sender.is_closed() => keep(&self.driven, sender, most),
            Way::Plain(_) | Way::Driven(_) | Way::Part(_) => {}
        }
    }
}

fn take<C>(idle: &RefCell<VecDeque<Idle<C>>>, fit: impl Fn(&mut C) -> bool) -> Option<C> {
    let mut idle = idle.borrow_mut();
    while let Some(Idle { mut connection, .. }) = idle.pop_back() {
        if fit(&mut connection) {
            return Some(connection);
        }
    }
    None
}

fn keep<C>(idle: &RefCell<VecDeque<Idle<C>>>, connection: C, most: usize) {
    let mut idle = idle.borrow_mut();
    if most == 0 {
        return;
    }
    if idle.len() >= most {
        idle.pop_front();
    }
    idle.push_back(Idle { connection, since: Instant::now() });
}

impl Streams {
    pub(super) fn sender(&self) -> Sender2 {
        self.0.sender.clone()
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get().saturating_sub(1));
        self.0.last_used.set(Instant::now());
    }
}

impl Lease {
    /// Goes on as the rest of an answer, whose body hyper reads where one is given.
    pub(super) fn answered(self, head: response::Parts, body: Option<Incoming>) -> Answered {
        Answered { head, rest: Rest { pool: self.pool, way: Some(self.way), body, timer: None } }
    }
}

impl Rest {
    pub(super) fn target(&self) -> &Target {
        &self.pool.target
    }

    /// The next piece of the body; silence ends it after `idle`.
    pub(super) fn poll_part(&mut self, context: &mut Context<'_>, idle: Duration) -> Poll<Result<Part, Broken>> {
        if let Some(Way::Plain(connection)) = &mut self.way {
            return connection.poll_body(context, idle);
        }
        let Some(body) = &mut self.body else { return Poll::Ready(Ok(Part::End)) };
        if body.is_end_stream() {
            return Poll::Ready(Ok(Part::End));
        }
        let Poll::Ready(frame) = Pin::new(body).poll_frame(context) else {
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
            ready!(timer.as_mut().poll(context));
            return Poll::Ready(Err(Broken::TimedOut));
        };
        self.timer = None;
        Poll::Ready(match frame {
            None => Ok(Part::End),
            Some(Err(_)) => Err(Broken::Closed),
            Some(Ok(frame)) => Ok(match frame.into_data() {
                Ok(data) => Part::Data(data),
                Err(frame) => frame.into_trailers().map_or(Part::End, Part::Trailers),
            }),
        })
    }

    /// Everything of the body was read.
    pub(super) fn is_over(&self) -> bool {
        match (&self.way, &self.body) {
            (Some(Way::Plain(connection)), _) => connection.is_over(),
            (_, Some(body)) => body.is_end_stream(),
            (_, None) => true,
        }
    }

    /// Bytes of the body still to come, where that is known.
    pub(super) fn left(&self) -> Option<u64> {
        match (&self.way, &self.body) {
            (Some(Way::Plain(connection)), _) => connection.left(),
            (_, Some(body)) => body.size_hint().exact(),
            (_, None) => Some(0),
        }
    }

    /// Whether the connection is still this answer's.
    pub(super) fn is_open(&self) -> bool {
        self.way.is_some()
    }

    /// The answer was read to its end: the connection may carry another request.
    pub(super) fn done(&mut self) {
        if let Some(way) = self.way.take() {
            self.pool.keep(way);
        }
    }

    /// Tells the upstream to stop, by dropping the connection.
    pub(super) fn cut(&mut self) {
        self.way = None;
    }
}
