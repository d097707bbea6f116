//! Everything behind the listeners: the store, the ledger, the two logs between them, identity, and the routers of the
//! control plane. The gateway stands on it, and so do commands while no gateway runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use tokio_util::sync::CancellationToken;

use super::owner;
use super::stage::Stage;
use crate::admin::{self, AdminParts};
use crate::api::events::Describer;
use crate::api::{self, ApiParts};
use crate::billing::inbox::Inbox;
use crate::billing::plans::Catalog;
use crate::billing::reconcile::Reconciler;
use crate::billing::topup::Buyer;
use crate::billing::{Billing, BillingParts};
use crate::bridge::spenders::{Spenders, Watched};
use crate::bridge::{
    self, Auditor, EventLog, Pusher, RedisEvents, RedisShards, Shards, StoreEpochs, StoreSource, flush, fold,
};
use crate::config::{Config, Secret};
use crate::error::{Exit, Failure};
use crate::fraud::Fraud;
use crate::identity::Identity;
use crate::ledger::embedded::EmbeddedLedger;
use crate::ledger::redis::RedisLedger;
use crate::ledger::{AccountSource, Connect, SharedLedger};
use crate::notify::hub::{Hub, HubParts};
use crate::notify::outbox::Outbox;
use crate::notify::webhook::Sender;
use crate::page::{self, PageParts};
use crate::rollout::Current;
use crate::store::notifications::Thresholds;
use crate::store::upkeep::Pruned;
use crate::store::{Retention, SharedStore};
use crate::telemetry::Metrics;

/// How long each step of the shutdown may take; the flusher has its own, longer one.
const STEP_LIMIT: Duration = Duration::from_secs(10);
/// Beyond what the flusher allows itself.
const FLUSH_LIMIT: Duration =
    flush::DRAIN_LIMIT.saturating_add(fold::DRAIN_LIMIT).saturating_add(Duration::from_secs(5));
/// How often the store is looked after.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(600);

/// What it is made of.
pub struct BackendParts {
    pub config: Arc<Config>,
    /// The settings as they are now.
    pub current: Current,
    pub store: SharedStore,
    /// Of the operator's API.
    pub admin_token: Secret,
    pub metrics: Metrics,
    /// Cancelled when a task ended that should have gone on.
    pub broken: CancellationToken,
    pub role: Role,
}

/// For whom the backend works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The gateway: everything runs.
    Gateway,
    /// One command while no gateway runs: it calls nobody outside, so billing's workers stay off.
    Command,
}

pub struct Backend {
    pub identity: Arc<Identity>,
    pub pusher: Arc<Pusher>,
    /// Where each worker gets its own way to the ledger.
    pub ledgers: Arc<dyn Connect>,
    api: Router,
    admin: Router,
    hub: Arc<Hub>,
    routes_ready: Arc<AtomicBool>,
    store: SharedStore,
    /// In the order in which they end.
    faces: Stage,
    sessions: Stage,
    flusher: Stage,
    owner: Stage,
}

impl Backend {
    /// Opens the ledger that the settings name, and starts what runs in the background, on the current runtime.
    ///
    /// # Errors
    /// [`Exit::Unavailable`] when the ledger is out of reach or is not ours to use.
    pub async fn open(parts: BackendParts) -> Result<Backend, Failure> {
        let BackendParts { config, current, store, admin_token, metrics, broken, role } = parts;
        let (sessions, flusher) = (Stage::new("ledger", &broken), Stage::new("flusher", &broken));
        let (faces, owner) = (Stage::new("control plane", &broken), Stage::new("owner", &broken));
        let spenders = Arc::new(Spenders::default());
        let opened = Opening {
            config: &config,
            store: &store,
            metrics: &metrics,
            sessions: &sessions,
            flusher: &flusher,
            owner: &owner,
            spenders: &spenders,
            role,
        };
        let (ledgers, shards) = opened.ledger().await?;
        let ledger = ledgers.connect(&sessions.tasks, sessions.stop.clone());
        let pusher = Pusher::new(store.clone(), ledger.clone(), metrics.clone());
        let identity = Identity::new(store.clone(), &config, metrics.clone(), Some(pusher.clone()));
        faces.spawn("pusher", pusher.clone().run(faces.stop.clone()));
        faces.spawn("identity", identity.clone().run(faces.stop.clone()));
        faces.spawn("upkeep", keep(store.clone(), Retention::of(&config.store), faces.stop.clone()));
        faces.spawn("usage sums", bridge::usage_sums::run(store.clone(), faces.stop.clone()));
        let billing = match role {
            Role::Gateway => open_billing(&config, &current, &store, &pusher, &spenders, &metrics, &faces),
            Role::Command => None,
        };
        store.set_thresholds(Thresholds::of(&config.plans));
        if role == Role::Gateway {
            open_outbox(&config, &store, &metrics, &faces).await?;
        }
        let hub = open_hub(&config, &store, &ledger, &billing, &metrics);
        faces.spawn("event streams", hub.clone().follow(faces.stop.clone()));
        faces.spawn("callers of event streams", hub.clone().watch_callers(faces.stop.clone()));
        let fraud = Fraud::new(store.clone(), pusher.clone(), current.clone(), metrics.clone());
        identity.attach_judge(fraud.clone());
        if role == Role::Gateway {
            faces.spawn("fraud", fraud.clone().run(faces.stop.clone()));
        }
        let users_api = api::router(ApiParts {
            store: store.clone(),
            ledger: ledger.clone(),
            identity: identity.clone(),
            config: config.clone(),
            current: current.clone(),
            metrics: metrics.clone(),
            billing,
            hub: hub.clone(),
            tasks: faces.tasks.clone(),
        });
        let api = page::router(
            PageParts {
                store: store.clone(),
                identity: identity.clone(),
                config: config.clone(),
                metrics: metrics.clone(),
            },
            users_api,
        );
        let auditor = Auditor::new(store.clone(), ledger.clone(), shards);
        if role == Role::Gateway {
            let interval = Duration::from_millis(config.audit.interval_ms);
            let watch = bridge::audit::watch(auditor.clone(), interval, metrics.clone(), faces.stop.clone());
            faces.spawn("audit", watch);
        }
        let routes_ready = Arc::new(AtomicBool::new(false));
        let ready = routes_ready.clone();
        let admin = admin::router(AdminParts {
            auditor,
            store: store.clone(),
            ledger,
            pusher: pusher.clone(),
            fraud,
            identity: identity.clone(),
            config,
            current,
            metrics,
            token: admin_token,
            routes_ready: Arc::new(move || ready.load(Ordering::Acquire)),
            tasks: faces.tasks.clone(),
        });
        Ok(Backend { identity, pusher, ledgers, api, admin, hub, routes_ready, store, faces, sessions, flusher, owner })
    }

    /// The control plane on the main listener.
    pub fn api(&self) -> Router {
        self.api.clone()
    }

    /// The operator's API, metrics and health.
    pub fn admin(&self) -> Router {
        self.admin.clone()
    }

    /// The tasks of the control plane, which end before the ledger's.
    pub fn faces(&self) -> &Stage {
        &self.faces
    }

    /// Whether the gateway takes requests, for readiness.
    pub fn set_routes_ready(&self, ready: bool) {
        self.routes_ready.store(ready, Ordering::Release);
    }

    /// From now on nothing new begins, and event streams end: their clients go on with another replica.
    pub fn drain(&self) {
        self.set_routes_ready(false);
        self.hub.drain();
    }

    /// Ends in order: who asks, then the ledger's sessions, then what writes their events down, then the store.
    ///
    /// # Errors
    /// When something did not end in time: then events may not be in the store.
    pub async fn close(self) -> Result<(), Failure> {
        let faces = self.faces.end(STEP_LIMIT).await;
        let sessions = self.sessions.end(STEP_LIMIT).await;
        let flusher = self.flusher.end(FLUSH_LIMIT).await;
        // Not before the last event is written: whoever takes the store over cuts the flusher off.
        let owner = self.owner.end(STEP_LIMIT).await;
        let store = tokio::time::timeout(STEP_LIMIT, self.store.close()).await.is_ok();
        if faces && sessions && flusher && owner && store {
            return Ok(());
        }
        Err(Failure::new(Exit::Unavailable, "not everything ended in time; the log says what did not"))
    }
}

/// Starts sending notifications to the product's backend, where the settings name one.
async fn open_outbox(
    config: &Arc<Config>,
    store: &SharedStore,
    metrics: &Metrics,
    faces: &Stage,
) -> Result<(), Failure> {
    let settings = config.notify.webhook.clone();
    let sender = Sender::new(&settings, faces.tasks.clone(), faces.stop.clone());
    let opened = store.open_outlet(sender.is_some()).await;
    opened.map_err(Failure::while_doing(Exit::Unavailable, "the notifications"))?;
    if let Some(sender) = sender {
        let (store, metrics) = (store.clone(), metrics.clone());
        let outbox = Arc::new(Outbox { store, sender, settings, metrics, clock: super::now_us });
        faces.spawn("webhooks", outbox.run(faces.stop.clone()));
    }
    Ok(())
}

fn open_hub(
    config: &Arc<Config>,
    store: &SharedStore,
    ledger: &SharedLedger,
    billing: &Option<Arc<Billing>>,
    metrics: &Metrics,
) -> Arc<Hub> {
    let describer = Describer { store: store.clone(), catalog: Catalog::new(config.clone()), billing: billing.clone() };
    Hub::new(HubParts {
        store: store.clone(),
        ledger: ledger.clone(),
        settings: config.notify.clone(),
        embedded: config.ledger.url.is_empty(),
        describe: Arc::new(describer),
        metrics: metrics.clone(),
    })
}

struct Opening<'a> {
    config: &'a Arc<Config>,
    store: &'a SharedStore,
    metrics: &'a Metrics,
    sessions: &'a Stage,
    flusher: &'a Stage,
    owner: &'a Stage,
    spenders: &'a Arc<Spenders>,
    role: Role,
}

impl Opening<'_> {
    /// The ledger, and where its logs stand if they are outside this process.
    async fn ledger(&self) -> Result<(Arc<dyn Connect>, Option<Arc<dyn Shards>>), Failure> {
        if self.config.ledger.url.is_empty() {
            // SQLite lies in the data directory, which is locked.
            if !self.config.store.url.is_empty() {
                let name = owner::name(&self.config.data_dir)?;
                owner::own(self.store, name, self.role == Role::Command).await?;
                self.owner.spawn("owner", owner::keep(self.store.clone(), name, self.owner.stop.clone()));
            }
            let taken = flush::take_over(self.store).await;
            taken.map_err(Failure::while_doing(Exit::Unavailable, "taking the store over"))?;
            let source: Arc<dyn AccountSource> = Arc::new(StoreSource::whole(self.store.clone()));
            let ledger = EmbeddedLedger::new(&self.config.ledger, source, self.metrics.clone());
            self.flush(ledger.outbox());
            self.sessions.spawn("sweeper", ledger.clone().run_sweeper(self.sessions.stop.clone()));
            return Ok((ledger, None));
        }
        let source: Arc<dyn AccountSource> = Arc::new(StoreSource::new(self.store.clone()));
        let epochs = StoreEpochs::new(self.store.clone());
        let opened = RedisLedger::open(&self.config.ledger, source, epochs, self.metrics.clone()).await;
        let ledger = opened.map_err(|error| Failure::new(Exit::Unavailable, error.to_string()))?;
        self.flush(RedisEvents::new(&ledger, self.store.clone()));
        self.sessions.spawn("sweeper", ledger.clone().run_sweeper(self.sessions.stop.clone()));
        let shards: Arc<dyn Shards> = Arc::new(RedisShards::new(&ledger));
        Ok((ledger, Some(shards)))
    }

    fn flush(&self, log: impl EventLog) {
        let (config, store, metrics) = (self.config.clone(), self.store.clone(), self.metrics.clone());
        let stop = self.flusher.stop.clone();
        let log = Watched { log, spenders: self.spenders.clone() };
        self.flusher
            .spawn("flusher", async move { bridge::flush::run(log, store, &config.store, metrics, stop).await });
    }
}

/// Billing and its workers, where there is a key of Stripe's.
fn open_billing(
    config: &Arc<Config>,
    current: &Current,
    store: &SharedStore,
    pusher: &Arc<Pusher>,
    spenders: &Arc<Spenders>,
    metrics: &Metrics,
    faces: &Stage,
) -> Option<Arc<Billing>> {
    let billing = Billing::new(BillingParts {
        config: config.clone(),
        current: current.clone(),
        store: store.clone(),
        pusher: pusher.clone(),
        spenders: spenders.clone(),
        metrics: metrics.clone(),
        tasks: faces.tasks.clone(),
        stop: faces.stop.clone(),
    })?;
    let inbox = Arc::new(Inbox {
        store: store.clone(),
        billing: billing.clone(),
        processor: billing.processor.clone(),
        max_attempts: config.stripe.max_attempts,
        metrics: metrics.clone(),
    });
    faces.spawn("billing inbox", inbox.clone().run(faces.stop.clone()));
    faces.spawn("billing clock", inbox.run_clock(faces.stop.clone()));
    let reconciler = Arc::new(Reconciler {
        store: store.clone(),
        client: billing.client.clone(),
        processor: billing.processor.clone(),
        interval_us: config.stripe.reconcile_interval_ms.saturating_mul(1_000),
    });
    faces.spawn("billing reconciliation", reconciler.run(faces.stop.clone()));
    let buyer = Arc::new(Buyer {
        store: store.clone(),
        pusher: pusher.clone(),
        client: billing.client.clone(),
        processor: billing.processor.clone(),
        catalog: Catalog::new(config.clone()),
        spenders: spenders.clone(),
        metrics: metrics.clone(),
    });
    faces.spawn("automatic top-ups", buyer.run(faces.stop.clone()));
    Some(billing)
}

/// At start and now and then: partitions ahead of time, and away with what is past its time.
async fn keep(store: SharedStore, retention: Retention, stop: CancellationToken) {
    let rounds = async {
        loop {
            // Rows go once they are in the sums by day.
            if retention.usage_months > 0
                && let Err(error) = bridge::usage_sums::catch_up(&store, None, UPKEEP_INTERVAL).await
            {
                tracing::warn!(%error, "usage could not be added up by day before the upkeep");
            }
            match store.keep(retention).await {
                Ok(pruned) if pruned == Pruned::default() => {}
                Ok(Pruned { usage_rows, dead_letters, notifications }) => {
                    tracing::info!(usage_rows, dead_letters, notifications, "pruned the store");
                }
                Err(error) => tracing::warn!(%error, "the store's upkeep failed; it is tried again"),
            }
            if let Err(error) = store.prune().await {
                tracing::warn!(%error, "what the store keeps for a time only could not be cleared away");
            }
            tokio::time::sleep(UPKEEP_INTERVAL).await;
        }
    };
    // Whatever is under way is whole or not at all, and goes on at the next start.
    tokio::select! {
        () = rounds => {}
        () = stop.cancelled() => {}
    }
}
