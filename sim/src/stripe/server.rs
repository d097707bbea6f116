//! The listener, the shared state behind its one lock, and the way from a request to its part.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::api::{self, Call, Kept, Reply};
use super::control::Control;
use super::error::Failure;
use super::faults::{Fault, Faults};
use super::params::Params;
use super::world::World;
use super::{clock, delivery, pages, sim_api};

/// Largest request body that is read.
const BODY_MAX: usize = 1024 * 1024;
/// Most connections at a time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 1_024;
/// Requests remembered; older ones are forgotten.
const SEEN_MAX: usize = 10_000;
/// How long a call that gets no answer keeps its connection.
const SILENCE: Duration = Duration::from_secs(600);
const TICK: Duration = Duration::from_secs(1);

/// How a simulator starts.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Unix seconds; none: now.
    pub start_at: Option<i64>,
    /// Goes into every id, so that two simulators in the life of one database never make the same; none: from the time.
    pub tag: Option<String>,
    /// The clock also moves with the real one.
    pub follow: bool,
}

/// An API request, as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub method: String,
    pub path: String,
    /// Nested parameters as a tree.
    pub params: serde_json::Value,
    pub live: bool,
    pub idempotency_key: Option<String>,
    pub version: Option<String>,
    /// Of the answer, whether or not it was sent.
    pub status: u16,
    pub replayed: bool,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub world: World,
    pub kept: Kept,
    pub faults: Faults,
    pub seen: VecDeque<Seen>,
    /// From the real clock to the simulated one, when it follows.
    pub offset: Option<i64>,
}

pub(super) struct Shared {
    inner: Mutex<Inner>,
    wake: Notify,
    pub concurrency: AtomicUsize,
}

impl Shared {
    pub(super) fn inner<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        // A panic in here would be a test's; what it left is still worth a look.
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn with<T>(&self, work: impl FnOnce(&mut World) -> T) -> T {
        self.inner(|inner| work(&mut inner.world))
    }

    /// As [`Shared::inner`], and the sender looks at its outbox afterwards.
    pub(super) fn change<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        let result = self.inner(work);
        self.wake.notify_one();
        result
    }

    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    pub(super) fn concurrency(&self) -> usize {
        self.concurrency.load(Ordering::Relaxed).max(1)
    }

    /// Brings a clock that follows the real one up to date.
    fn tick(&self) {
        self.change(|inner| {
            if let Some(target) = inner.offset.map(|offset| wall() + offset).filter(|target| *target > inner.world.now)
            {
                // A full simulator stands still, and says so to whoever asks it for something.
                let _ = clock::advance(&mut inner.world, target);
            }
        });
    }
}

/// Unix seconds by the real clock.
pub(super) fn wall() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(0))
}

/// A bound simulator, not yet serving.
pub struct Simulator {
    listener: TcpListener,
    addr: SocketAddr,
    shared: Arc<Shared>,
}

/// Binds a simulator; port 0 takes any.
///
/// # Errors
/// When the address cannot be had.
pub async fn bind(addr: SocketAddr, options: Options) -> io::Result<Simulator> {
    let listener = TcpListener::bind(addr).await?;
    let addr = listener.local_addr()?;
    let now = options.start_at.unwrap_or_else(wall);
    let tag = options.tag.unwrap_or_else(|| format!("{:x}", wall()));
    let mut world = World::new(now, tag);
    world.base = format!("http://{addr}");
    let offset = options.follow.then(|| now - wall());
    let inner = Inner { world, kept: Kept::default(), faults: Faults::default(), seen: VecDeque::new(), offset };
    let shared = Shared { inner: Mutex::new(inner), wake: Notify::new(), concurrency: AtomicUsize::new(1) };
    Ok(Simulator { listener, addr, shared: Arc::new(shared) })
}

impl Simulator {
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The handle by which tests do what cardholders, banks and time do.
    pub fn control(&self) -> Control {
        Control::new(self.shared.clone())
    }

    /// Serves and delivers until `stop` is done, then drops every connection.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let mut connections = JoinSet::new();
        let mut stop = std::pin::pin!(stop);
        let mut deliveries = std::pin::pin!(delivery::run(&self.shared));
        let mut ticks = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS_MAX => if let Ok((connection, _)) = accepted {
                    connections.spawn(serve(connection, self.shared.clone()));
                },
                Some(_) = connections.join_next() => {}
                () = &mut deliveries => {}
                _ = ticks.tick() => self.shared.tick(),
                () = &mut stop => return,
            }
        }
    }
}

pub(super) type Page = Response<Full<Bytes>>;

/// Asks hyper to close the connection without an answer.
#[derive(Debug)]
struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("refused, as asked")
    }
}

impl std::error::Error for Refused {}

async fn serve(connection: TcpStream, shared: Arc<Shared>) {
    let _ = connection.set_nodelay(true);
    let service = service_fn(|request| answer(request, &shared));
    let mut server = hyper::server::conn::http1::Builder::new();
    // How a connection ends is the other side's business, or was asked for.
    let _ = server.timer(TokioTimer::new()).serve_connection(TokioIo::new(connection), service).await;
}

async fn answer(request: Request<Incoming>, shared: &Shared) -> Result<Page, Refused> {
    let (head, body) = request.into_parts();
    let Ok(body) = Limited::new(body, BODY_MAX).collect().await.map(http_body_util::Collected::to_bytes) else {
        return Ok(plain(StatusCode::PAYLOAD_TOO_LARGE, "The body is too large, or was cut off."));
    };
    shared.tick();
    let (method, path) = (head.method.as_str(), head.uri.path());
    let query = head.uri.query().unwrap_or_default();
    let form = if body.is_empty() { query.as_bytes() } else { &body };
    let params = match Params::parse(form) {
        Ok(params) => params,
        Err(failure) => return Ok(reply(&refusal(&failure), None)),
    };
    if !path.starts_with("/v1/") {
        return Ok(shared.change(|inner| match path.strip_prefix("/_sim") {
            Some(rest) => sim_api::answer(inner, method, rest, &params),
            None => pages::answer(&mut inner.world, method, path, &params),
        }));
    }
    let is_live = match mode(&head.headers) {
        Ok(is_live) => is_live,
        Err(failure) => return Ok(reply(&refusal(&failure), None)),
    };
    let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let call = Call {
        method: method.to_owned(),
        path: path.to_owned(),
        params,
        live: is_live,
        key: text("idempotency-key"),
        version: text("stripe-version"),
    };
    let (made, fault) = shared.change(|inner| call_api(inner, &call));
    match fault {
        Some(Fault::ResetBefore | Fault::ResetAfter) => return Err(Refused),
        Some(Fault::SilentAfter) => {
            tokio::time::sleep(SILENCE).await;
            return Err(Refused);
        }
        Some(Fault::Delay(by)) => tokio::time::sleep(by).await,
        _ => {}
    }
    Ok(reply(&made, Some(&call)))
}

fn call_api(inner: &mut Inner, call: &Call) -> (Reply, Option<Fault>) {
    let fault = inner.faults.take(&call.method, &call.path);
    let made = if fault == Some(Fault::ResetBefore) {
        refusal(&Failure::api())
    } else {
        api::answer(&mut inner.world, &mut inner.kept, call, fault)
    };
    if inner.seen.len() == SEEN_MAX {
        inner.seen.pop_front();
    }
    inner.seen.push_back(Seen {
        method: call.method.clone(),
        path: call.path.clone(),
        params: call.params.raw().clone(),
        live: call.live,
        idempotency_key: call.key.clone(),
        version: call.version.clone(),
        status: made.status.as_u16(),
        replayed: made.replayed,
    });
    (made, fault)
}

fn refusal(failure: &Failure) -> Reply {
    Reply { status: failure.status, body: failure.body(), replayed: false }
}

/// Whether the key is a live one.
fn mode(headers: &HeaderMap) -> Result<bool, Failure> {
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let basic = |coded: &str| {
        let decoded = base64::engine::general_purpose::STANDARD.decode(coded).ok()?;
        String::from_utf8(decoded).ok()?.split(':').next().map(str::to_owned)
    };
    let key = match given.split_once(' ') {
        Some(("Bearer", key)) => Some(key.to_owned()),
        Some(("Basic", coded)) => basic(coded),
        _ => None,
    };
    match key.as_deref() {
        None | Some("") => Err(Failure::unauthorized("You did not provide an API key.")),
        Some(key) if key.starts_with("sk_test_") || key.starts_with("rk_test_") => Ok(false),
        Some(key) if key.starts_with("sk_live_") || key.starts_with("rk_live_") => Ok(true),
        Some(_) => Err(Failure::unauthorized("Invalid API Key provided.")),
    }
}

fn reply(made: &Reply, call: Option<&Call>) -> Page {
    let mut response = json(made.status, &made.body);
    let headers = response.headers_mut();
    headers.insert("request-id", HeaderValue::from_static("req_simulated"));
    if made.replayed {
        headers.insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    let version = call.and_then(|call| call.version.as_deref()).unwrap_or(super::API_VERSION);
    let key = call.and_then(|call| call.key.as_deref()).unwrap_or_default();
    for (name, value) in [("stripe-version", version), ("idempotency-key", key)] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    response
}

pub(super) fn json(status: StatusCode, body: &serde_json::Value) -> Page {
    typed(status, "application/json", format!("{body:#}\n"))
}

pub(super) fn plain(status: StatusCode, text: &str) -> Page {
    typed(status, "text/plain; charset=utf-8", text.to_owned())
}

pub(super) fn typed(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Page {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
