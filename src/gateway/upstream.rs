//! How a request reaches an upstream and its answer's head comes back.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Uri, header, uri};
use prometheus::IntCounter;
use tokio::time::timeout;

use super::body::ForwardBody;
use super::connect::{self, Need};
use super::headers::{self, Forwarding};
use super::http1::{Broken, Fields, Line, Scratch};
use super::pool::{Answered, Lease, Plain, Pool, Way};
use super::target::Target;
use super::tasks::LocalTasks;
use crate::config;
use crate::telemetry::Metrics;

/// Open connections to one upstream, per worker.
const MAX_CONNECTIONS: usize = 16_384;
/// Connections that one request may find dead before it was sent; after the first they are fresh ones.
const MAX_STALE: usize = 2;

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
    pool: Rc<Pool>,
    open: Rc<Cell<usize>>,
    tasks: LocalTasks,
    scratch: Scratch,
    connects: IntCounter,
    errors: [IntCounter; 6],
}

/// An attempt without an answer, and its body where that was not touched.
pub(super) struct Failed {
    pub(super) fault: Fault,
    pub(super) unsent: Option<ForwardBody>,
}

/// One request as it shall be sent.
pub(super) struct Outbound<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a uri::PathAndQuery,
    pub(super) what: Forwarding<'a>,
    pub(super) body: ForwardBody,
}

impl Upstream {
    pub(super) fn new(target: Arc<Target>, tasks: LocalTasks, scratch: Scratch, metrics: &Metrics) -> Rc<Upstream> {
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
            pool: Pool::new(Arc::clone(&target)),
            target,
            open: Rc::default(),
            tasks,
            scratch,
        })
    }

    /// Closes what has been idle for too long. Called every second.
    pub(super) fn prune(&self) {
        self.pool.prune();
    }

    /// Closes every idle connection, at the end.
    pub(super) fn close(&self) {
        self.pool.close();
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn send(&self, outbound: Outbound<'_>) -> Result<Answered, Failed> {
        let result = self.try_send(outbound).await;
        if let Err(failed) = &result {
            self.errors[failed.fault as usize].inc();
        }
        result
    }

    async fn try_send(&self, outbound: Outbound<'_>) -> Result<Answered, Failed> {
        let Outbound { method, path, what, body } = outbound;
        let Some(path) = self.target.path(path) else { return Err(Failed { fault: Fault::Garbled, unsent: None }) };
        let need = match &body {
            _ if what.upgrade.is_some() => Need::Upgrade,
            ForwardBody::Empty | ForwardBody::Full(_) => Need::Whole,
            ForwardBody::Streamed(_) => Need::Streamed,
        };
        let lease = match self.pool.take(need, false) {
            Some(lease) => lease,
            // Boxed: it is rare.
            None => match Box::pin(self.connect(need)).await {
                Ok(lease) => lease,
                Err(fault) => return Err(Failed { fault, unsent: Some(body) }),
            },
        };
        match lease {
            Lease { way: Way::Plain(connection), pool } => {
                let asked = match body {
                    ForwardBody::Full(Some(body)) => self.ask(connection, method, &path, &what, body).await,
                    _ => self.ask(connection, method, &path, &what, Bytes::new()).await,
                };
                let (head, connection) = asked.map_err(|fault| Failed { fault, unsent: None })?;
                Ok(Lease { way: Way::Plain(connection), pool }.answered(head, None))
            }
            // Boxed: most requests do not go this way.
            lease => Box::pin(self.hand_over(lease, need, method, &path, &what, body)).await,
        }
    }

    /// Writes the request here, and reads the head of its answer.
    async fn ask(
        &self,
        mut connection: Box<Plain>,
        method: &Method,
        path: &uri::PathAndQuery,
        what: &Forwarding<'_>,
        body: Bytes,
    ) -> Result<(http::response::Parts, Box<Plain>), Fault> {
        // RFC 9110 §8.6: a method that gives content a meaning names its length even where that is zero.
        let expected = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
        let named = !body.is_empty() || expected || what.client.contains_key(header::CONTENT_LENGTH);
        let line = Line { method, path, host: &self.target.host, length: named.then_some(body.len()) };
        let fields = |fields: &mut Fields<'_>| {
            headers::forward(what, &self.target, |name, value| {
                if *name != header::CONTENT_LENGTH {
                    fields.put(name, value);
                }
            });
        };
        connection.send(&line, fields, body);
        let limit = Duration::from_millis(self.target.settings.first_byte_timeout_ms);
        let head = std::future::poll_fn(|context| connection.poll_head(context, limit)).await;
        let head = head.map_err(|error| {
            tracing::debug!(upstream = self.target.name, %error, "an attempt failed");
            match error {
                Broken::Garbled(_) => Fault::Garbled,
                Broken::Io(_) | Broken::Closed => Fault::Closed,
                Broken::TimedOut => Fault::FirstByteTimeout,
            }
        })?;
        Ok((head, connection))
    }

    /// Has hyper send the request. A kept connection that turns out to be dead before it took the request costs nothing
    /// but another look.
    async fn hand_over(
        &self,
        mut lease: Lease,
        need: Need,
        method: &Method,
        path: &uri::PathAndQuery,
        what: &Forwarding<'_>,
        body: ForwardBody,
    ) -> Result<Answered, Failed> {
        let wait = Wait::new(&body, &self.target.settings);
        let mut request = Request::new(body);
        *request.method_mut() = method.clone();
        let fields = request.headers_mut();
        fields.reserve(what.client.len() + 8);
        headers::forward(what, &self.target, |name, value| {
            fields.append(name.clone(), value.clone());
        });
        for attempt in 0..=MAX_STALE {
            self.address(&mut request, &lease, path);
            match self.exchange(lease, request, &wait).await {
                Ok(answered) => return Ok(answered),
                Err((fault, Some(unsent))) if attempt < MAX_STALE => {
                    tracing::trace!(upstream = self.target.name, %fault, "a kept connection was dead");
                    request = *unsent;
                }
                Err((fault, unsent)) => {
                    return Err(Failed { fault, unsent: unsent.map(|request| request.into_body()) });
                }
            }
            // A request that was to be shared goes on shared or driven: hyper has its body by now.
            let need = if need == Need::Whole { Need::Streamed } else { need };
            lease = match self.pool.take(need, true) {
                Some(lease) => lease,
                None => match self.connect(need).await {
                    Ok(lease) => lease,
                    Err(fault) => return Err(Failed { fault, unsent: Some(request.into_body()) }),
                },
            };
        }
        Err(Failed { fault: Fault::Closed, unsent: Some(request.into_body()) })
    }

    /// HTTP/1 asks by path and names the host; HTTP/2 asks by the whole URL.
    fn address(&self, request: &mut Request<ForwardBody>, lease: &Lease, path: &uri::PathAndQuery) {
        if let Way::Part(_) = lease.way {
            let mut parts = uri::Parts::default();
            parts.scheme = Some(self.target.scheme.clone());
            parts.authority = Some(self.target.authority.clone());
            parts.path_and_query = Some(path.clone());
            *request.version_mut() = http::Version::HTTP_2;
            *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
            request.headers_mut().remove(header::HOST);
            request.headers_mut().remove(header::CONNECTION);
        } else {
            *request.version_mut() = http::Version::HTTP_11;
            *request.uri_mut() = Uri::from(path.clone());
            request.headers_mut().insert(header::HOST, self.target.host.clone());
        }
    }

    async fn exchange(
        &self,
        mut lease: Lease,
        request: Request<ForwardBody>,
        wait: &Wait,
    ) -> Result<Answered, (Fault, Unsent)> {
        let sent = match &mut lease.way {
            Way::Driven(sender) => wait.bound(sender.try_send_request(request)).await,
            Way::Part(part) => {
                let mut sender = part.sender();
                wait.bound(sender.try_send_request(request)).await
            }
            Way::Plain(_) => return Err((Fault::Closed, Some(Box::new(request)))),
        };
        match sent {
            Err(fault) => Err((fault, None)),
            Ok(Ok(response)) => {
                let (head, body) = response.into_parts();
                Ok(lease.answered(head, Some(body)))
            }
            Ok(Err(mut error)) => {
                let unsent = error.take_message().map(Box::new);
                let error = error.into_error();
                tracing::debug!(upstream = self.target.name, %error, "an attempt failed");
                let fault = if error.is_parse() { Fault::Garbled } else { Fault::Closed };
                Err((fault, unsent))
            }
        }
    }

    async fn connect(&self, need: Need) -> Result<Lease, Fault> {
        if self.open.get() >= MAX_CONNECTIONS {
            return Err(Fault::Full);
        }
        let limit = Duration::from_millis(self.target.settings.connect_timeout_ms);
        let guard = connect::Open::new(&self.open);
        let made = timeout(limit, self.target.dial.connect(guard, &self.tasks, &self.scratch, need)).await;
        let made = made.map_err(|_| Fault::ConnectTimeout)?.map_err(|error| {
            tracing::debug!(upstream = self.target.name, %error, "connecting failed");
            Fault::Connect
        })?;
        self.connects.inc();
        Ok(match made {
            connect::Made::Plain(connection) => self.pool.lease(Way::Plain(Box::new(connection))),
            connect::Made::Driven(sender) => self.pool.lease(Way::Driven(sender)),
            connect::Made::Http2(sender) => self.pool.share(sender),
        })
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
