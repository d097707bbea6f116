//! What requests have in common: on one worker, and on all of a replica.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;

use prometheus::IntCounter;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use uuid::Uuid;

use super::connect;
use super::id::Ids;
use super::memory::BodyMemory;
use super::outcome::Outcome;
use super::route::{Network, Route, Routes};
use super::shed::Shed;
use super::tasks::LocalTasks;
use super::upstream::Upstream;
use super::{GatewayError, GatewayParts};
use crate::config::{Config, Enforcement};
use crate::cors::Origins;
use crate::credits::Credits;
use crate::identity::Identity;
use crate::ledger::{Connect, SharedLedger};
use crate::limits::Proxies;
use crate::rollout::Current;
use crate::telemetry::Metrics;

/// What all workers of a replica share.
pub(super) struct Shared {
    /// As of the start; what may change while the process runs is in `current`.
    pub(super) config: Arc<Config>,
    pub(super) current: Current,
    pub(super) identity: Arc<Identity>,
    pub(super) metrics: Metrics,
    pub(super) shed: Shed,
    pub(super) proxies: Proxies,
    /// `None`: no browser may call from elsewhere.
    pub(super) origins: Option<Origins>,
    pub(super) api: axum::Router,
    pub(super) ledgers: Arc<dyn Connect>,
    pub(super) network: Network,
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) connections: Arc<Semaphore>,
    pub(super) bodies: BodyMemory,
}

impl Shared {
    pub(super) fn new(parts: GatewayParts) -> Result<Shared, GatewayError> {
        let GatewayParts { config, current, identity, ledgers, metrics, api } = parts;
        Ok(Shared {
            network: Network::new(&config, &metrics)?,
            tls: connect::server_config(&config.tls)?.map(TlsAcceptor::from),
            shed: Shed::new(&config),
            proxies: Proxies::new(&config.server),
            origins: Some(Origins::new(&config.cors)).filter(|origins| !origins.is_empty()),
            connections: Arc::new(Semaphore::new(config.server.max_connections.clamp(1, Semaphore::MAX_PERMITS))),
            bodies: BodyMemory::new(config.server.body_memory_bytes),
            config,
            current,
            identity,
            metrics,
            api,
            ledgers,
        })
    }

    pub(super) fn workers(&self) -> usize {
        match self.config.workers {
            0 => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            workers => workers,
        }
    }
}

/// What only the gateway knows of credits; the ledger counts what it moves.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) estimated: IntCounter,
    pub(super) uncharged: IntCounter,
    pub(super) waived: IntCounter,
}

/// What a worker's requests have in common.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) ledger: SharedLedger,
    /// Replaced as a whole when prices change; requests under way keep theirs.
    pub(super) routes: RefCell<Rc<Routes>>,
    pub(super) enforcement: Cell<Enforcement>,
    /// Below which balance a plan's users are low.
    pub(super) lows: RefCell<HashMap<String, Credits>>,
    pub(super) ids: Ids,
    pub(super) counters: Counters,
    /// What goes on without a client: answers read to their end, tunnels, late charges.
    pub(super) rides: LocalTasks,
    pub(super) closing: Cell<bool>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Worker")
    }
}

impl Worker {
    /// The route of a path.
    pub(super) fn route(&self, path: &str) -> Option<Rc<Route>> {
        self.routes.borrow().find(path).map(Rc::clone)
    }

    pub(super) fn upstreams(&self) -> Vec<Rc<Upstream>> {
        self.routes.borrow().upstreams().to_vec()
    }

    /// Takes over what may change while the process runs.
    pub(super) fn adopt(&self, config: &Config) {
        self.enforcement.set(config.enforcement);
        let low = |(name, plan): (&String, &crate::config::Plan)| (name.clone(), plan.low_below());
        self.lows.replace(config.plans.iter().map(low).collect());
        let repriced = self.routes.borrow().repriced(config);
        match repriced {
            Ok(routes) => drop(self.routes.replace(Rc::new(routes))),
            Err(error) => tracing::error!(%error, "the new prices are not used"),
        }
    }

    /// Counts and logs what would have been refused were payment enforced.
    pub(super) fn would_refuse(&self, request: Uuid, route: &Route, reason: &str, why: &dyn Display) {
        self.shared.metrics.shadow_refusals.with_label_values(&[route.name.as_str(), reason]).inc();
        tracing::info!(request_id = %request, route = route.name, outcome = reason, reason = %why, "would have been refused");
    }

    /// Past the drain deadline: nothing new is begun on anyone's behalf.
    pub(super) fn closing(&self) -> bool {
        self.closing.get()
    }

    /// Why a request is dropped.
    pub(super) fn abandoned(&self) -> Outcome {
        if self.closing() { Outcome::Drained } else { Outcome::ClientGone }
    }
}

/// Whose request it is, as far as the network knows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) https: bool,
}
