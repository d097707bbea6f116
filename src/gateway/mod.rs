//! The data plane: one request's way from the client to the upstream and back.
//!
//! Each worker is a thread with its own single-threaded runtime, listener, upstream connections and way to the ledger;
//! nothing that a request touches is shared but counters. The module `request` tells the story of a request; everything else is
//! what it asks on the way.

mod answer;
mod ask;
mod body;
mod breaker;
mod client_io;
mod common;
mod connect;
mod delivery;
mod fare;
mod forward;
mod gather;
mod headers;
mod http1;
mod http2;
mod id;
pub mod invariants;
mod memory;
pub mod meter;
mod outcome;
mod outgoing;
mod pool;
mod refusal;
mod request;
mod ride;
mod route;
mod shed;
mod target;
mod tasks;
mod upstream;
mod websocket;
mod worker;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub use connect::TlsError;
pub use target::TargetError;

use crate::config::Config;
use crate::identity::Identity;
use crate::ledger::Connect;
use crate::pricing::PriceError;
use crate::telemetry::Metrics;

/// What the gateway is made of.
pub struct GatewayParts {
    pub config: Arc<Config>,
    /// The settings as they are now.
    pub current: crate::rollout::Current,
    pub identity: Arc<Identity>,
    pub ledgers: Arc<dyn Connect>,
    pub metrics: Metrics,
    /// Answers everything under the API's prefix.
    pub api: axum::Router,
}

/// Why the settings make no gateway.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error("route `{route}` names `{what}`, which does not exist")]
    Unknown { route: String, what: String },
    #[error(transparent)]
    Price(#[from] PriceError),
    #[error(transparent)]
    Upstream(#[from] TargetError),
    #[error("tls: {0}")]
    Tls(#[from] TlsError),
}

/// The data plane of a replica: made, bound, run.
pub struct Gateway {
    shared: Arc<common::Shared>,
    listeners: Vec<TcpListener>,
}

impl Gateway {
    /// Checks routes, upstreams, prices and certificates.
    pub fn new(parts: GatewayParts) -> Result<Gateway, GatewayError> {
        Ok(Gateway { shared: Arc::new(common::Shared::new(parts)?), listeners: Vec::new() })
    }

    /// Opens a listener for each worker, all on one port. Answers the address, whose port was chosen if it was 0.
    pub fn bind(&mut self) -> io::Result<SocketAddr> {
        let mut address = self.shared.config.listen;
        self.listeners.clear();
        for _ in 0..self.shared.workers() {
            let listener = worker::listen(address)?;
            address = listener.local_addr()?;
            self.listeners.push(listener);
        }
        Ok(address)
    }

    /// Serves until `stop`, then drains: what is in flight may end within the drain deadline, what does not is settled
    /// as delivered. Returns when every worker has ended.
    pub async fn run(self, stop: CancellationToken) -> io::Result<()> {
        let mut threads = Vec::with_capacity(self.listeners.len());
        for (number, listener) in self.listeners.into_iter().enumerate() {
            let (ended, end) = tokio::sync::oneshot::channel();
            let (shared, stop) = (Arc::clone(&self.shared), stop.clone());
            let body = move || {
                let result = worker::run(&shared, listener, &stop);
                // A worker that cannot serve takes the replica down rather than leave its listener unserved.
                if result.is_err() {
                    stop.cancel();
                }
                // Nobody waits only where the caller was dropped.
                let _ = ended.send(result);
            };
            std::thread::Builder::new().name(format!("worker-{number}")).spawn(body)?;
            threads.push(end);
        }
        let mut result = Ok(());
        for end in threads {
            let ended = end.await.unwrap_or_else(|_| Err(io::Error::other("a worker thread died")));
            result = result.and(ended);
        }
        result
    }
}
