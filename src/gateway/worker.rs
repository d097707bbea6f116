//! A worker: a thread, its listener, its connections, and what its requests have in common.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::task::LocalSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client_io::{Activity, ClientIo, Clocks, Place};
use super::common::{Counters, Peer, Shared, Worker};
use super::http1::Scratch;
use super::http2::{Executor, Streams};
use super::id::Ids;
use super::request;
use super::route::Routes;
use super::tasks::LocalTasks;
use super::upstream::Upstream;

/// Connections that the kernel keeps for us while we are busy.
const BACKLOG: i32 = 1_024;
/// How long to wait when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const PRUNE_INTERVAL: Duration = Duration::from_secs(1);
/// A quiet HTTP/2 client is asked for a sign of life so often, and given up when none comes.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// hyper's own default; naming it would move its buffers from the stack to the heap.
const DEFAULT_MAX_HEADERS: usize = 100;
/// How every HTTP/2 connection begins, and no HTTP/1 request.
const PREFACE: &[u8; 4] = b"PRI ";
/// Between two looks at a beginning that came in pieces.
const PEEK_PAUSE: Duration = Duration::from_millis(10);
/// hyper accepts no smaller buffer.
const MIN_HEADER_BYTES: usize = 8 * 1024;
/// After the drain deadline: how long what is left may take to settle.
const LAST_SETTLES: Duration = Duration::from_millis(250);
/// How long the ledger may take to carry out what was submitted before the drain ended: a little more than it allows
/// itself, so that it can still say what it could not do.
const LEDGER_DRAIN: Duration = Duration::from_secs(6);

/// Opens one worker's listener. All of them listen on one port, and the kernel spreads connections over them.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A worker's whole life, on the calling thread.
pub(super) fn run(shared: &Arc<Shared>, listener: TcpListener, stop: &CancellationToken) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    let result = local.block_on(&runtime, serve(shared, listener, stop));
    drop(local);
    runtime.shutdown_timeout(LAST_SETTLES);
    result
}

async fn serve(shared: &Arc<Shared>, listener: TcpListener, stop: &CancellationToken) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (ledger_tasks, ledger_stop) = (TaskTracker::new(), CancellationToken::new());
    let ledger = shared.ledgers.connect(&ledger_tasks, ledger_stop.clone());
    let wires = LocalTasks::default();
    let scratch = Scratch::new();
    let credits = |what: &str| shared.metrics.credits.with_label_values(&[what]);
    let worker = Rc::new(Worker {
        routes: RefCell::new(Rc::new(Routes::new(&shared.network, |target| {
            Upstream::new(Arc::clone(target), wires.clone(), scratch.clone(), &shared.metrics)
        }))),
        enforcement: Cell::new(shared.config.enforcement),
        lows: RefCell::default(),
        counters: Counters {
            estimated: credits("estimated"),
            uncharged: credits("uncharged"),
            waived: credits("waived"),
        },
        ids: Ids::new(),
        rides: LocalTasks::default(),
        closing: Cell::new(false),
        shared: Arc::clone(shared),
        ledger,
    });
    let connections = LocalTasks::default();
    let farewell = Rc::new(Farewell::default());
    tokio::select! {
        () = accept(&worker, &listener, &connections, &farewell, stop) => {}
        () = prune(&worker) => {}
        () = follow(&worker) => {}
    }
    farewell.say();
    drop(listener);
    drain(&worker, &connections).await;
    for upstream in worker.upstreams() {
        upstream.close();
    }
    wires.end().await;
    drop(worker);
    ledger_stop.cancel();
    ledger_tasks.close();
    if timeout(LEDGER_DRAIN, ledger_tasks.wait()).await.is_err() {
        tracing::warn!("the ledger did not take everything before the worker ended");
    }
    Ok(())
}

/// Lets what is in flight end, until the deadline; then settles it as it stands.
async fn drain(worker: &Rc<Worker>, connections: &LocalTasks) {
    let deadline = Duration::from_millis(worker.shared.config.server.drain_timeout_ms);
    let everything = async {
        connections.wait().await;
        worker.rides.wait().await;
    };
    if timeout(deadline, everything).await.is_ok() {
        return;
    }
    tracing::warn!("the drain deadline has passed: settling what is left as it was delivered");
    worker.closing.set(true);
    connections.end().await;
    // A hold that was being extended comes back first.
    if timeout(LAST_SETTLES, worker.rides.wait()).await.is_err() {
        worker.rides.end().await;
    }
}

/// Takes every change of the settings over, between two requests: they read it without a lock.
async fn follow(worker: &Worker) {
    let mut changes = worker.shared.current.subscribe();
    // What changed before this worker looked is a change too.
    changes.mark_changed();
    while changes.changed().await.is_ok() {
        let config = changes.borrow_and_update().clone();
        worker.adopt(&config);
    }
    std::future::pending().await
}

async fn prune(worker: &Worker) {
    let mut interval = tokio::time::interval(PRUNE_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        for upstream in worker.upstreams() {
            upstream.prune();
        }
    }
}

async fn accept(
    worker: &Rc<Worker>,
    listener: &tokio::net::TcpListener,
    connections: &LocalTasks,
    farewell: &Rc<Farewell>,
    stop: &CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "no connection could be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Beyond the limit one connection waits here, and the others in the kernel.
        let permit = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            permit = Arc::clone(&worker.shared.connections).acquire_owned() => permit,
        };
        let Ok(permit) = permit else { return };
        let seat = Seat::new(worker, connections, farewell, stop, permit);
        connections.spawn(seat.connection(stream, address));
    }
}

/// That the worker takes no new requests. Connections look at this each time they are polled, which the stop's own token
/// is too dear for.
#[derive(Debug, Default)]
struct Farewell {
    said: Cell<bool>,
    heard: Notify,
}

impl Farewell {
    fn say(&self) {
        self.said.set(true);
        self.heard.notify_waiters();
    }
}

/// One client's connection.
struct Seat {
    worker: Rc<Worker>,
    connections: LocalTasks,
    farewell: Rc<Farewell>,
    stop: CancellationToken,
    place: Arc<Place>,
}

impl Seat {
    fn new(
        worker: &Rc<Worker>,
        connections: &LocalTasks,
        farewell: &Rc<Farewell>,
        stop: &CancellationToken,
        permit: OwnedSemaphorePermit,
    ) -> Seat {
        let place = Place::new(&worker.shared.metrics.client_connections, permit);
        let (worker, farewell) = (Rc::clone(worker), Rc::clone(farewell));
        Seat { worker, connections: connections.clone(), farewell, stop: stop.clone(), place }
    }

    async fn connection(self, stream: TcpStream, address: SocketAddr) {
        // A socket that does not take the option is served all the same.
        let _ = stream.set_nodelay(true);
        let limit = Duration::from_millis(self.worker.shared.config.server.header_timeout_ms);
        match self.worker.shared.tls.clone() {
            None => match self.first_bytes(&stream, limit).await {
                Some(true) => Box::pin(self.serve_http2(stream, Peer { address, https: false })).await,
                Some(false) => self.serve_http1(stream, Peer { address, https: false }).await,
                None => {}
            },
            // Boxed, so that a connection without TLS does not carry its weight.
            Some(acceptor) => Box::pin(self.secured(acceptor, stream, address, limit)).await,
        }
    }

    /// Whether a client without TLS begins as HTTP/2 does; `None` when it begins in no way.
    async fn first_bytes(&self, stream: &TcpStream, limit: Duration) -> Option<bool> {
        let mut start = [0; PREFACE.len()];
        let peek = async {
            loop {
                let count = stream.peek(&mut start).await.ok().filter(|count| *count > 0)?;
                let same = start[..count] == PREFACE[..count];
                if !same || count == PREFACE.len() {
                    return Some(same);
                }
                tokio::time::sleep(PEEK_PAUSE).await;
            }
        };
        tokio::select! {
            biased;
            begun = timeout(limit, peek) => begun.ok().flatten(),
            () = self.stop.cancelled() => None,
        }
    }

    async fn secured(self, acceptor: TlsAcceptor, stream: TcpStream, address: SocketAddr, limit: Duration) {
        let handshake = timeout(limit, acceptor.accept(stream));
        let stream = tokio::select! {
            biased;
            done = handshake => done,
            () = self.stop.cancelled() => return,
        };
        let peer = Peer { address, https: true };
        match stream {
            Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                self.serve_http2(stream, peer).await;
            }
            Ok(Ok(stream)) => self.serve_http1(stream, peer).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn serve_http1<S: Stream>(self, stream: S, peer: Peer) {
        let settings = &self.worker.shared.config.server;
        let activity = Activity::new();
        let io = ClientIo::new(stream, Arc::clone(&activity), Clocks::new(settings), Arc::clone(&self.place));
        let mut builder = http1::Builder::new();
        builder
            .max_buf_size(settings.max_header_bytes.max(MIN_HEADER_BYTES))
            // The connection has its own clock, which costs less than a timer a request.
            .header_read_timeout(None);
        if settings.max_headers != DEFAULT_MAX_HEADERS {
            builder.max_headers(settings.max_headers);
        }
        let worker = Rc::clone(&self.worker);
        let service = service_fn(move |request: Request<Incoming>| {
            request::answer(Rc::clone(&worker), peer, Arc::clone(&activity), None, request)
        });
        // Pinned here: a future that is handed on by value is kept at each station.
        let connection = std::pin::pin!(builder.serve_connection(io, service).with_upgrades());
        self.drive(connection, |connection| connection.graceful_shutdown()).await;
    }

    async fn serve_http2<S: Stream>(self, stream: S, peer: Peer) {
        let settings = &self.worker.shared.config.server;
        let activity = Activity::new();
        let io = ClientIo::new(stream, Arc::clone(&activity), Clocks::new(settings), Arc::clone(&self.place));
        let streams = Streams::default();
        let limit = Duration::from_millis(settings.write_timeout_ms);
        let tasks = self.connections.clone();
        let mut builder = http2::Builder::new(Executor { tasks, streams: streams.clone(), limit });
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(settings.http2_max_streams)
            .max_header_list_size(u32::try_from(settings.max_header_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(PING_INTERVAL);
        let worker = Rc::clone(&self.worker);
        let service = service_fn(move |request: Request<Incoming>| {
            request::answer(Rc::clone(&worker), peer, Arc::clone(&activity), Some(streams.clone()), request)
        });
        let connection = std::pin::pin!(builder.serve_connection(io, service));
        self.drive(connection, |connection| connection.graceful_shutdown()).await;
    }

    /// Until the connection ends; from the stop on it takes no new requests.
    async fn drive<C>(&self, mut connection: Pin<&mut C>, wind_down: impl Fn(Pin<&mut C>))
    where
        C: Future<Output = hyper::Result<()>>,
    {
        let mut heard = std::pin::pin!(self.farewell.heard.notified());
        let (mut listening, mut stopping) = (false, false);
        let driven = std::future::poll_fn(|context| {
            if let Poll::Ready(result) = connection.as_mut().poll(context) {
                return Poll::Ready(result);
            }
            // Once is enough: it is the same task that is woken.
            if !listening {
                listening = true;
                let _ = heard.as_mut().poll(context);
            }
            if !stopping && self.farewell.said.get() {
                stopping = true;
                wind_down(connection.as_mut());
                return connection.as_mut().poll(context);
            }
            Poll::Pending
        });
        // A panic in a body ends its own connection; the hook has counted it, dropping has settled it.
        if let Ok(Err(error)) = AssertUnwindSafe(driven).catch_unwind().await {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}

/// What can be served: TCP, with TLS or without.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}
