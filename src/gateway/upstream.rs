//! One worker's connections to one upstream.
//!
//! HTTP/1 connections are kept while idle and used last-in, first-out. HTTP/2 connections are shared, each by a bounded
//! number of requests. Everything here lives on the worker's own thread.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response, Uri, uri};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use prometheus::IntCounter;
use tokio::time::timeout;

use super::body::ForwardBody;
use super::connect;
use super::target::Target;
use super::worker::LocalTasks;
use crate::config;
use crate::telemetry::Metrics;

/// Requests that share one HTTP/2 connection before another is opened.
const STREAMS_PER_CONNECTION: usize = 100;
/// Open connections to one upstream, per worker.
const MAX_CONNECTIONS: usize = 16_384;
/// Connections that one request may find dead before it was sent; after the first they are fresh ones.
const MAX_STALE: usize = 2;

type Sender1 = http1::SendRequest<ForwardBody>;
type Sender2 = http2::SendRequest<ForwardBody>;

/// Why an attempt got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("the connection could not be made")]
    Connect,
    #[error("the connection was not made in time")]
    ConnectTimeout,
    #[error("the connection broke before an answer began")]
    Closed,
    #[error("the answer is not HTTP")]
    Garbled,
    #[error("no answer began in time")]
    FirstByteTimeout,
    #[error("too many connections")]
    Full,
}

impl Fault {
    pub(super) fn label(self) -> &'static str {
        match self {
            Fault::Connect => "connect",
            Fault::ConnectTimeout => "connect_timeout",
            Fault::Closed => "closed",
            Fault::Garbled => "garbled",
            Fault::FirstByteTimeout => "first_byte_timeout",
            Fault::Full => "full",
        }
    }
}

/// One worker's end of it.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) target: Arc<Target>,
    idle: RefCell<VecDeque<Idle>>,
    shared: RefCell<Vec<Rc<Shared>>>,
    open: Rc<Cell<usize>>,
    tasks: LocalTasks,
    connects: IntCounter,
    errors: [IntCounter; 6],
}

#[derive(Debug)]
struct Idle {
    sender: Sender1,
    since: Instant,
}

/// An HTTP/2 connection.
#[derive(Debug)]
struct Shared {
    sender: Sender2,
    streams: Cell<usize>,
    last_used: Cell<Instant>,
}

/// The part of a connection that one request has. Given back when its answer was read to the end.
#[derive(Debug)]
pub(super) struct Lease {
    upstream: Rc<Upstream>,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Own(Option<Sender1>),
    Part(Rc<Shared>),
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) response: Response<Incoming>,
    pub(super) lease: Lease,
}

/// An attempt without an answer, and its body where that was not touched.
pub(super) struct Failed {
    pub(super) fault: Fault,
    pub(super) unsent: Option<ForwardBody>,
}

impl Failed {
    fn new(fault: Fault, unsent: Option<Request<ForwardBody>>) -> Failed {
        Failed { fault, unsent: unsent.map(Request::into_body) }
    }
}

/// One request as it shall be sent.
pub(super) struct Outbound<'a> {
    pub(super) method: http::Method,
    pub(super) path: &'a uri::PathAndQuery,
    pub(super) headers: http::HeaderMap,
    pub(super) body: ForwardBody,
    /// Only HTTP/1 can change protocols.
    pub(super) upgrade: bool,
}

impl Upstream {
    pub(super) fn new(target: Arc<Target>, tasks: LocalTasks, metrics: &Metrics) -> Rc<Upstream> {
        let faults = [
            Fault::Connect,
            Fault::ConnectTimeout,
            Fault::Closed,
            Fault::Garbled,
            Fault::FirstByteTimeout,
            Fault::Full,
        ];
        let error = |fault: Fault| metrics.upstream_errors.with_label_values(&[&target.name, fault.label()]);
        Rc::new(Upstream {
            connects: metrics.upstream_connects.with_label_values(&[&target.name]),
            errors: faults.map(error),
            target,
            idle: RefCell::default(),
            shared: RefCell::default(),
            open: Rc::default(),
            tasks,
        })
    }

    /// Sends a request and waits for the head of its answer. A kept connection that turns out to be dead before it
    /// took the request costs nothing but another look.
    pub(super) async fn send(self: &Rc<Self>, outbound: Outbound<'_>) -> Result<Answered, Failed> {
        let result = self.try_send(outbound).await;
        if let Err(failed) = &result {
            self.errors[failed.fault as usize].inc();
        }
        result
    }

    async fn try_send(self: &Rc<Self>, outbound: Outbound<'_>) -> Result<Answered, Failed> {
        let Some(path) = self.target.path(outbound.path) else { return Err(Failed::new(Fault::Garbled, None)) };
        let upgrade = outbound.upgrade;
        let wait = Wait::new(&outbound.body, &self.target.settings);
        let mut request = Request::new(outbound.body);
        *request.method_mut() = outbound.method;
        *request.headers_mut() = outbound.headers;
        let mut fresh = false;
        for attempt in 0..=MAX_STALE {
            let lease = match self.kept(upgrade, fresh) {
                Some(lease) => lease,
                // Boxed: it is rare, and with TLS large.
                None => match Box::pin(self.connect(upgrade)).await {
                    Ok(lease) => lease,
                    Err(fault) => return Err(Failed::new(fault, Some(request))),
                },
            };
            self.address(&mut request, &lease, &path);
            match lease.exchange(request, &wait).await {
                Ok(answered) => return Ok(answered),
                Err((fault, Some(unsent))) if attempt < MAX_STALE => {
                    tracing::trace!(upstream = self.target.name, %fault, "a kept connection was dead");
                    request = *unsent;
                    fresh = true;
                }
                Err((fault, unsent)) => return Err(Failed::new(fault, unsent.map(|request| *request))),
            }
        }
        Err(Failed::new(Fault::Closed, Some(request)))
    }

    /// HTTP/1 asks by path and names the host; HTTP/2 asks by the whole URL.
    fn address(&self, request: &mut Request<ForwardBody>, lease: &Lease, path: &uri::PathAndQuery) {
        match lease.way {
            Way::Own(_) => {
                *request.version_mut() = http::Version::HTTP_11;
                *request.uri_mut() = Uri::from(path.clone());
                request.headers_mut().insert(http::header::HOST, self.target.host.clone());
            }
            Way::Part(_) => {
                let mut parts = uri::Parts::default();
                parts.scheme = Some(self.target.scheme.clone());
                parts.authority = Some(self.target.authority.clone());
                parts.path_and_query = Some(path.clone());
                *request.version_mut() = http::Version::HTTP_2;
                *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
                request.headers_mut().remove(http::header::HOST);
                request.headers_mut().remove(http::header::CONNECTION);
            }
        }
    }

    fn kept(self: &Rc<Self>, upgrade: bool, fresh: bool) -> Option<Lease> {
        if !upgrade && let Some(shared) = self.shareable() {
            return Some(Lease::part(self, shared));
        }
        if fresh {
            return None;
        }
        let mut idle = self.idle.borrow_mut();
        let mut index = idle.len();
        while index > 0 {
            index -= 1;
            if idle[index].sender.is_closed() {
                idle.remove(index);
            } else if idle[index].sender.is_ready() {
                let sender = idle.remove(index)?.sender;
                return Some(Lease { upstream: Rc::clone(self), way: Way::Own(Some(sender)) });
            }
        }
        None
    }

    fn shareable(&self) -> Option<Rc<Shared>> {
        let mut shared = self.shared.borrow_mut();
        if shared.is_empty() {
            return None;
        }
        shared.retain(|connection| !connection.sender.is_closed());
        shared.iter().find(|connection| connection.streams.get() < STREAMS_PER_CONNECTION).cloned()
    }

    async fn connect(self: &Rc<Self>, upgrade: bool) -> Result<Lease, Fault> {
        if self.open.get() >= MAX_CONNECTIONS {
            return Err(Fault::Full);
        }
        let limit = Duration::from_millis(self.target.settings.connect_timeout_ms);
        let guard = connect::Open::new(&self.open);
        let made = timeout(limit, self.target.dial.connect(guard, &self.tasks, upgrade)).await;
        let made = made.map_err(|_| Fault::ConnectTimeout)?.map_err(|error| {
            tracing::debug!(upstream = self.target.name, %error, "connecting failed");
            Fault::Connect
        })?;
        self.connects.inc();
        Ok(match made {
            connect::Made::Http1(sender) => Lease { upstream: Rc::clone(self), way: Way::Own(Some(sender)) },
            connect::Made::Http2(sender) => {
                let connection =
                    Rc::new(Shared { sender, streams: Cell::new(0), last_used: Cell::new(Instant::now()) });
                self.shared.borrow_mut().push(Rc::clone(&connection));
                Lease::part(self, connection)
            }
        })
    }

    /// Closes what has been idle for too long. Called every second.
    pub(super) fn prune(&self) {
        let limit = Duration::from_millis(self.target.settings.idle_connection_ms);
        let old = |since: Instant| since.elapsed() >= limit;
        let mut idle = self.idle.borrow_mut();
        while idle.front().is_some_and(|oldest| old(oldest.since)) {
            idle.pop_front();
        }
        self.shared.borrow_mut().retain(|connection| {
            let unused = connection.streams.get() == 0 && old(connection.last_used.get());
            !connection.sender.is_closed() && !unused
        });
    }

    /// Closes every idle connection, at the end.
    pub(super) fn close(&self) {
        self.idle.borrow_mut().clear();
        self.shared.borrow_mut().clear();
    }

    fn keep(&self, sender: Sender1) {
        if sender.is_closed() || self.target.settings.max_idle_connections == 0 {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= self.target.settings.max_idle_connections {
            idle.pop_front();
        }
        idle.push_back(Idle { sender, since: Instant::now() });
    }
}

/// How long to wait for the head of an answer: measured from the last sign of life of the request's own body.
struct Wait {
    limit: Duration,
    progress: Option<Rc<super::body::Progress>>,
}

impl Wait {
    fn new(body: &ForwardBody, settings: &config::Upstream) -> Wait {
        let progress = match body {
            ForwardBody::Streamed(body) => Some(body.progress()),
            _ => None,
        };
        Wait { limit: Duration::from_millis(settings.first_byte_timeout_ms), progress }
    }

    async fn bound<F: Future>(&self, future: F) -> Result<F::Output, Fault> {
        let Some(progress) = &self.progress else {
            return timeout(self.limit, future).await.map_err(|_| Fault::FirstByteTimeout);
        };
        let mut future = std::pin::pin!(future);
        loop {
            let before = (progress.bytes(), progress.done());
            match timeout(self.limit, &mut future).await {
                Ok(output) => return Ok(output),
                Err(_) if before != (progress.bytes(), progress.done()) => {}
                Err(_) => return Err(Fault::FirstByteTimeout),
            }
        }
    }
}

type Unsent = Option<Box<Request<ForwardBody>>>;

impl Lease {
    fn part(upstream: &Rc<Upstream>, connection: Rc<Shared>) -> Lease {
        connection.streams.set(connection.streams.get() + 1);
        Lease { upstream: Rc::clone(upstream), way: Way::Part(connection) }
    }

    pub(super) fn upstream(&self) -> &Rc<Upstream> {
        &self.upstream
    }

    async fn exchange(mut self, request: Request<ForwardBody>, wait: &Wait) -> Result<Answered, (Fault, Unsent)> {
        let sent = match &mut self.way {
            Way::Own(Some(sender)) => wait.bound(sender.try_send_request(request)).await,
            Way::Own(None) => return Err((Fault::Closed, Some(Box::new(request)))),
            Way::Part(connection) => {
                let mut sender = connection.sender.clone();
                wait.bound(sender.try_send_request(request)).await
            }
        };
        match sent {
            Err(fault) => Err((fault, None)),
            Ok(Ok(response)) => Ok(Answered { response, lease: self }),
            Ok(Err(mut error)) => {
                let unsent = error.take_message().map(Box::new);
                let error = error.into_error();
                tracing::debug!(upstream = self.upstream.target.name, %error, "an attempt failed");
                let fault = if error.is_parse() { Fault::Garbled } else { Fault::Closed };
                Err((fault, unsent))
            }
        }
    }

    /// The answer was read to its end: the connection may carry another request.
    pub(super) fn done(mut self) {
        if let Way::Own(sender) = &mut self.way
            && let Some(sender) = sender.take()
        {
            self.upstream.keep(sender);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Way::Part(connection) = &self.way {
            connection.streams.set(connection.streams.get().saturating_sub(1));
            connection.last_used.set(Instant::now());
        }
    }
}
