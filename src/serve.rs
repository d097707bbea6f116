//! Builds everything, hands each room its parts, and takes it all down again in order.

mod ages;
pub mod backend;
pub mod data_dir;
mod demo;
mod demo_stripe;
mod greeting;
mod listener;
mod owner;
mod reload;
mod stage;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::backend::{Backend, BackendParts, Role};
use self::data_dir::DataDir;
use self::demo::Demo;
use self::greeting::Greeting;
use self::listener::AdminListener;
use self::reload::Reloader;
use self::stage::Stage;
use crate::config::{Config, Secret};
use crate::error::{Exit, Failure};
use crate::gateway::{Gateway, GatewayParts};
use crate::ledger::Micros;
use crate::limits::Proxies;
use crate::rollout::Current;
use crate::store::{self, SharedStore};
use crate::telemetry::{self, Metrics};

/// Threads of the background runtime: they write logs and answer operators; requests ride on the gateway's own.
const BACKGROUND_THREADS: usize = 2;
/// How long what blocks a background thread is waited for at the very end.
const RUNTIME_LIMIT: Duration = Duration::from_secs(2);
/// As a shell reports a process that was interrupted.
const INTERRUPTED: i32 = 130;

/// As [`run`], with a Stripe that is built in, in a folder that is gone afterwards.
pub fn run_with_stripe(mut config: Config) -> Result<(), Failure> {
    let folder = demo_stripe::prepare(&mut config)?;
    let served = run_as(config, Origin::Demo);
    if let Err(error) = std::fs::remove_dir_all(&folder) {
        tracing::warn!(folder = %folder.display(), %error, "the demo's folder could not be removed");
    }
    served
}

/// Serves until it is told to end, and drains. `file` is where the settings came from, to be read again.
pub fn run(config: Config, file: Option<PathBuf>) -> Result<(), Failure> {
    run_as(config, Origin::Settings { file })
}

/// Where the settings come from.
enum Origin {
    /// A file, where there is one, and the environment: they are read again when asked.
    Settings { file: Option<PathBuf> },
    /// The demo with Stripe, which made them up.
    Demo,
}

fn run_as(config: Config, origin: Origin) -> Result<(), Failure> {
    let log = telemetry::init(&config.log).map_err(Failure::while_doing(Exit::Internal, "logs"))?;
    let metrics = Metrics::new().map_err(Failure::while_doing(Exit::Internal, "metrics"))?;
    telemetry::catch_panics(&metrics);
    let directory = DataDir::open(&config.data_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(BACKGROUND_THREADS)
        .thread_name("faregate-background")
        .enable_all()
        .build()
        .map_err(Failure::while_doing(Exit::Internal, "the background runtime"))?;
    let served = runtime.block_on(serve(config, &directory, metrics, Again { origin, log }));
    runtime.shutdown_timeout(RUNTIME_LIMIT);
    served
}

/// What is needed to read the settings again.
struct Again {
    origin: Origin,
    log: telemetry::LogLevel,
}

async fn serve(mut config: Config, directory: &DataDir, mut metrics: Metrics, again: Again) -> Result<(), Failure> {
    let (stop, broken) = (CancellationToken::new(), CancellationToken::new());
    let helpers = Stage::new("helpers", &broken);
    helpers.spawn("signals", signals(stop.clone(), helpers.stop.clone())?);
    trace(&config, &mut metrics, &helpers)?;
    let hangup = signal(SignalKind::hangup()).map_err(Failure::while_doing(Exit::Internal, "signals"))?;
    let loaded = config.clone();
    let token = directory.admin_token(config.admin_token.as_ref())?;
    let store = open_store(&config, directory).await?;
    let demo = match Demo::wanted(&config, &store, directory).await? {
        Demo::No => None,
        Demo::Yes { key } => {
            demo::start_upstream(&mut config, &helpers).await?;
            Some(demo::ensure_user(&config, &store, directory, key).await?)
        }
    };
    let stripe = match again.origin {
        Origin::Demo => Some(demo_stripe::start(&mut config, &helpers).await?),
        Origin::Settings { .. } => None,
    };
    let config = Arc::new(config);
    let current = Current::new(config.clone());
    let backend = Backend::open(BackendParts {
        config: config.clone(),
        current: current.clone(),
        store: store.clone(),
        admin_token: token.clone(),
        metrics: metrics.clone(),
        broken: broken.clone(),
        role: Role::Gateway,
    })
    .await?;
    if let Origin::Settings { file } = again.origin {
        let reloader = Reloader {
            file,
            loaded,
            current: current.clone(),
            identity: backend.identity.clone(),
            store: store.clone(),
            log: again.log,
            metrics: metrics.clone(),
        };
        backend.faces().spawn("settings", reloader.run(hangup, backend.faces().stop.clone()));
    }
    let front = Front { config, current, store, directory, token, metrics, stripe, stop, broken };
    let served = front.serve(&backend, demo).await;
    let closed = backend.close().await;
    helpers.end(RUNTIME_LIMIT).await;
    tracing::info!("ended");
    served.and(closed)
}

/// Sends spans to the collector, where one is set.
fn trace(config: &Config, metrics: &mut Metrics, helpers: &Stage) -> Result<(), Failure> {
    if config.traces.endpoint.is_empty() {
        return Ok(());
    }
    let endpoint = config.traces.collector().map_err(Failure::while_doing(Exit::Settings, "traces.endpoint"))?;
    let (spans, queue) = telemetry::traces::Spans::new(config.traces.sample_percent, metrics.spans_dropped.clone());
    metrics.spans = spans;
    helpers.spawn("traces", telemetry::traces::run(queue, endpoint, helpers.stop.clone()));
    Ok(())
}

async fn open_store(config: &Config, directory: &DataDir) -> Result<SharedStore, Failure> {
    store::open(&config.store, directory.path()).await.map_err(|error| match error {
        store::StoreError::Schema(_) => Failure::new(Exit::Settings, error.to_string()),
        _ => Failure::new(Exit::Unavailable, error.to_string()),
    })
}

/// What faces the world.
struct Front<'a> {
    config: Arc<Config>,
    current: Current,
    store: SharedStore,
    directory: &'a DataDir,
    token: Secret,
    metrics: Metrics,
    /// The demo's.
    stripe: Option<demo_stripe::Built>,
    /// The first signal.
    stop: CancellationToken,
    broken: CancellationToken,
}

impl Front<'_> {
    /// Listens, says so, and serves until it is told to end and the gateway has drained.
    async fn serve(&self, backend: &Backend, demo: Option<demo::Caller>) -> Result<(), Failure> {
        if let Some(demo) = &demo {
            let pushed = backend.pusher.push(&demo.user).await;
            pushed.map_err(Failure::while_doing(Exit::Unavailable, "the demo user's credits"))?;
        }
        let empty = self.store.is_empty().await.map_err(Failure::while_doing(Exit::Unavailable, "the store"))?;
        let listening = |address| Failure::while_doing(Exit::Unavailable, format!("cannot listen on {address}"));
        let bound = AdminListener::bind(self.config.admin_listen).await;
        let admin = bound.map_err(listening(self.config.admin_listen))?;
        let admin_address = admin.address();
        let mut gateway = Gateway::new(GatewayParts {
            config: self.config.clone(),
            current: self.current.clone(),
            identity: backend.identity.clone(),
            ledgers: backend.ledgers.clone(),
            metrics: self.metrics.clone(),
            api: backend.api(),
        })
        .map_err(Failure::while_doing(Exit::Settings, "the gateway"))?;
        let listener = gateway.bind().map_err(listening(self.config.listen))?;
        let faces = backend.faces();
        faces
            .spawn("admin listener", admin.run(backend.admin(), Proxies::new(&self.config.server), faces.stop.clone()));
        self.directory.announce(admin_address, &self.token)?;
        let token_file: Option<PathBuf> = self.config.admin_token.is_none().then(|| self.directory.admin_token_path());
        ages::note(&self.metrics, &self.config, token_file.as_deref());
        let greeting = Greeting {
            config: &self.config,
            listener,
            admin: admin_address,
            token_file: token_file.as_deref(),
            demo_key: demo.as_ref().map(|demo| demo.key.reveal()),
            empty,
            stripe: self.stripe.as_ref(),
        };
        if let Some(stripe) = &self.stripe {
            stripe.tell(&greeting.base(), &self.config.api.prefix);
        }
        let served = self.until_stopped(backend, gateway, &greeting).await;
        self.directory.retract();
        served
    }

    async fn until_stopped(&self, backend: &Backend, gateway: Gateway, greeting: &Greeting<'_>) -> Result<(), Failure> {
        let drain = CancellationToken::new();
        let running = gateway.run(drain.clone());
        tokio::pin!(running);
        backend.set_routes_ready(true);
        // Whoever started it may not be reading.
        let _ = std::io::Write::write_all(&mut std::io::stdout(), greeting.text().as_bytes());
        tracing::info!(listen = %greeting.listener, admin = %greeting.admin, "serving");
        let ended_by_itself = tokio::select! {
            () = self.stop.cancelled() => false,
            () = self.broken.cancelled() => true,
            ended = &mut running => {
                backend.set_routes_ready(false);
                ended.map_err(Failure::while_doing(Exit::Unavailable, "the gateway ended"))?;
                return Err(Failure::new(Exit::Internal, "the gateway ended by itself"));
            }
        };
        backend.drain();
        tracing::info!(limit_ms = self.config.server.drain_timeout_ms, "draining");
        drain.cancel();
        running.await.map_err(Failure::while_doing(Exit::Unavailable, "the gateway ended"))?;
        if ended_by_itself {
            return Err(Failure::new(Exit::Internal, "a task ended that should go on; the log says which"));
        }
        Ok(())
    }
}

/// The first SIGTERM or SIGINT drains, the second ends the process at once.
fn signals(stop: CancellationToken, end: CancellationToken) -> Result<impl Future<Output = ()>, Failure> {
    let failed = || Failure::while_doing(Exit::Internal, "signals");
    let mut terminate = signal(SignalKind::terminate()).map_err(failed())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                () = end.cancelled() => return,
            }
            if stop.is_cancelled() {
                tracing::warn!("ended at once by a second signal");
                std::process::exit(INTERRUPTED);
            }
            stop.cancel();
        }
    })
}

fn now_us() -> Micros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Micros::try_from(since.as_micros()).unwrap_or(Micros::MAX)
}
