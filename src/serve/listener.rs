//! The admin listener: a handful of connections from operators and Prometheus, on the background runtime.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::limits::{ClientAddress, Proxies};

/// Connections at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 256;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after the stop a call that is under way may go on.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// After an accept that failed (no file descriptors left, most likely) it is tried again.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

pub(super) struct AdminListener {
    listener: TcpListener,
    address: SocketAddr,
}

impl AdminListener {
    pub(super) async fn bind(address: SocketAddr) -> io::Result<AdminListener> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(AdminListener { listener, address })
    }

    /// With the port that was given where port 0 was asked for.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`, then lets what is under way finish.
    pub(super) async fn run(self, router: Router, proxies: Proxies, stop: CancellationToken) {
        let connections = TaskTracker::new();
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { break };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let (router, stop) = (router.clone(), stop.clone());
                    let from = From { peer: peer.ip(), proxies: proxies.clone() };
                    connections.spawn(async move {
                        serve(stream, from, router, stop).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin listener could not accept");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
        connections.close();
        if tokio::time::timeout(DRAIN_LIMIT, connections.wait()).await.is_err() {
            tracing::warn!(left = connections.len(), "calls to the admin listener were cut off");
        }
    }
}

/// Where a connection comes from, and who may say otherwise.
struct From {
    peer: IpAddr,
    proxies: Proxies,
}

async fn serve(stream: TcpStream, from: From, router: Router, stop: CancellationToken) {
    // An answer goes out when it is there.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let address = from.proxies.client(from.peer, request.headers());
        request.extensions_mut().insert(ClientAddress(address));
        router.clone().oneshot(request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // How a connection ends is the other side's business.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}
