//! A TCP proxy that misbehaves on demand, between the gateway and Redis (or an upstream).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// On a thread of its own: it stays alive whatever the test's runtime does. Ends when dropped.
pub struct ChaosProxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    target: Mutex<SocketAddr>,
    refuse: AtomicBool,
    swallow: AtomicBool,
    /// Connections are closed after so many more bytes of replies; `u64::MAX`: never.
    cut_after: AtomicU64,
    delay_us: AtomicU64,
    /// Raised to cut every connection there is.
    generation: watch::Sender<u64>,
    accepted: AtomicU64,
}

impl ChaosProxy {
    /// Forwards to `target` faithfully until told otherwise.
    pub fn start(target: SocketAddr) -> ChaosProxy {
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            refuse: AtomicBool::new(false),
            swallow: AtomicBool::new(false),
            cut_after: AtomicU64::new(u64::MAX),
            delay_us: AtomicU64::new(0),
            generation: watch::Sender::new(0),
            accepted: AtomicU64::new(0),
        });
        let stop = CancellationToken::new();
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let (shared_there, stop_there) = (shared.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                stop_there.run_until_cancelled(accept(listener, shared_there)).await;
            });
        });
        ChaosProxy { addr, shared, stop, thread: Some(thread) }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn redis_url(&self) -> String {
        format!("redis://{}/", self.addr)
    }

    /// New connections go here.
    pub fn aim(&self, target: SocketAddr) {
        *self.shared.target.lock().unwrap() = target;
    }

    /// Every piece, in both directions, is held back for so long.
    pub fn delay(&self, delay: Duration) {
        self.shared.delay_us.store(u64::try_from(delay.as_micros()).unwrap(), Ordering::Relaxed);
    }

    /// Requests pass; replies vanish. What was asked is done, and nobody learns of it.
    pub fn swallow_replies(&self, on: bool) {
        self.shared.swallow.store(on, Ordering::Relaxed);
    }

    /// Closes every connection, in the middle of whatever it is doing.
    pub fn cut(&self) {
        self.shared.generation.send_modify(|generation| *generation += 1);
    }

    /// Closes a connection in the middle of a reply, once `bytes` more have passed; then forwards faithfully again.
    pub fn cut_after(&self, bytes: u64) {
        self.shared.cut_after.store(bytes, Ordering::Relaxed);
    }

    /// New connections are closed at once; with `cut`, the other side looks dead.
    pub fn refuse(&self, on: bool) {
        self.shared.refuse.store(on, Ordering::Relaxed);
        if on {
            self.cut();
        }
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for ChaosProxy {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        if !shared.refuse.load(Ordering::Relaxed) {
            connections.spawn(forward(client, shared.clone()));
        }
    }
}

async fn forward(client: TcpStream, shared: Arc<Shared>) {
    let mut generation = shared.generation.subscribe();
    generation.mark_unchanged();
    let target = *shared.target.lock().unwrap();
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    tokio::select! {
        () = pump(client_in, server_out, &shared, false) => {}
        () = pump(server_in, client_out, &shared, true) => {}
        _ = generation.changed() => {}
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    shared: &Shared,
    replies: bool,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let delay = shared.delay_us.load(Ordering::Relaxed);
        if delay > 0 {
            tokio::time::sleep(Duration::from_micros(delay)).await;
        }
        if replies && shared.swallow.load(Ordering::Relaxed) {
            continue;
        }
        let mut passes = count;
        if replies {
            let left = shared.cut_after.load(Ordering::Relaxed);
            if left != u64::MAX {
                passes = count.min(usize::try_from(left).unwrap_or(count));
                let rest = if passes < count { u64::MAX } else { left - passes as u64 };
                shared.cut_after.store(rest, Ordering::Relaxed);
            }
        }
        if to.write_all(&buffer[..passes]).await.is_err() || passes < count {
            return;
        }
    }
}
