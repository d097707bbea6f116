//! The data plane in the process: the real gateway over the embedded ledger and SQLite, in front of upstreams of the
//! test's own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use faregate::bridge::{Pusher, StoreSource, flush};
use faregate::config::{Config, ModelPrice, Price, Route, RouteKind, UnknownModel, Upstream};
use faregate::credits::Credits;
use faregate::gateway::{Gateway, GatewayParts};
use faregate::identity::Identity;
use faregate::identity::keys::{NewKey, new_key_id};
use faregate::ledger::embedded::EmbeddedLedger;
use faregate::ledger::{AccountId, Act, Answer, Balance, Connect, Limits, Op, SharedLedger};
use faregate::rollout::Current;
use faregate::store::{KeyKind, NewUser, PageRequest, SharedStore, UsageRow};
use faregate::telemetry::Metrics;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::support::{Http, eventually};

pub(crate) const SOON: Duration = Duration::from_secs(10);
pub(crate) const UPSTREAM_KEY: &str = "the-upstreams-own-key";

pub(crate) struct Rig {
    pub(crate) addr: SocketAddr,
    pub(crate) http: Http,
    pub(crate) metrics: Metrics,
    pub(crate) store: SharedStore,
    ledger: SharedLedger,
    pusher: Arc<Pusher>,
    stop: CancellationToken,
    later: CancellationToken,
    gateway: Option<JoinHandle<std::io::Result<()>>>,
    runtime: Option<Runtime>,
    _dir: tempfile::TempDir,
}

/// Settings for one upstream: two workers, a port of its own, kinds openai, anthropic and (under `/echo`) http, a flat
/// price of one credit.
pub(crate) fn settings(upstream: &str) -> Config {
    let mut config = Config { workers: 2, listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..Config::default() };
    config.upstream = self::upstream(upstream);
    let app = Route { prefix: "/echo".into(), kind: RouteKind::Http, ..Route::default() };
    config.routes.insert("app".into(), app);
    config
}

pub(crate) fn upstream(url: &str) -> Upstream {
    let api_key = Some(faregate::config::Secret::new(UPSTREAM_KEY));
    Upstream { url: url.into(), api_key, ..Upstream::default() }
}

/// The same, priced by token: two credits per million in, eight out, in units that make small answers show.
pub(crate) fn by_token(config: &mut Config) {
    let model = ModelPrice {
        model: "*".into(),
        input_per_million: Credits::whole(20_000),
        output_per_million: Credits::whole(100_000),
        max_output_tokens: 1_000,
        ..ModelPrice::default()
    };
    let price = Price { per_request: Credits::ZERO, models: vec![model], unknown_model: UnknownModel::Refuse };
    config.prices.insert("message".into(), price);
}

impl Rig {
    pub(crate) async fn start(config: Config) -> Rig {
        Rig::with_ledger(config, |ledger| ledger).await
    }

    /// With something between the workers and the ledger.
    pub(crate) async fn with_ledger(config: Config, between: impl Fn(Arc<dyn Connect>) -> Arc<dyn Connect>) -> Rig {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let config = Arc::new(config);
        let metrics = Metrics::new().unwrap();
        let (stop, later) = (CancellationToken::new(), CancellationToken::new());
        let store = faregate::store::open(&config.store, dir.path()).await.unwrap();
        let source = Arc::new(StoreSource::whole(store.clone()));
        let embedded = EmbeddedLedger::new(&config.ledger, source, metrics.clone());
        let (log, into, flushed, until) = (embedded.outbox(), store.clone(), metrics.clone(), later.clone());
        let flusher = config.clone();
        runtime.spawn(async move { flush::run(log, into, &flusher.store, flushed, until).await });
        let ledger = {
            let _entered = runtime.enter();
            embedded.connect(&TaskTracker::new(), later.clone())
        };
        let pusher = Pusher::new(store.clone(), ledger.clone(), metrics.clone());
        let identity = Identity::new(store.clone(), &config, metrics.clone(), Some(pusher.clone()));
        runtime.spawn(identity.clone().run(later.clone()));
        let api = axum::Router::new().route("/api/ping", axum::routing::get(|| async { "pong" }));
        let ledgers = between(embedded);
        let current = Current::new(config.clone());
        let parts = GatewayParts { config, current, identity, ledgers, metrics: metrics.clone(), api };
        let mut gateway = Gateway::new(parts).unwrap();
        let addr = gateway.bind().unwrap();
        let gateway = Some(runtime.spawn(gateway.run(stop.clone())));
        let runtime = Some(runtime);
        Rig { addr, http: Http::new(), metrics, store, ledger, pusher, stop, later, gateway, runtime, _dir: dir }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// A user with so many credits, and a key.
    pub(crate) async fn user(&self, id: &str, credits: &str) -> String {
        self.user_on(id, credits, "free").await
    }

    pub(crate) async fn user_on(&self, id: &str, credits: &str, plan: &str) -> String {
        let user = AccountId::parse(id).unwrap();
        let signup_credits = credits.parse().unwrap();
        let new = NewUser { id: user.clone(), email: None, plan: plan.into(), signup_credits };
        self.store.create_user(new).await.unwrap();
        self.pusher.push(&user).await.unwrap();
        let key = NewKey::generate(KeyKind::Live).unwrap();
        self.store.create_key(key.row(new_key_id(), Some(user), "test".into(), 0)).await.unwrap();
        key.text.reveal().to_owned()
    }

    pub(crate) async fn balance(&self, user: &str) -> Balance {
        let account = AccountId::parse(user).unwrap();
        match self.ledger.submit(Op { account, act: Act::Balance }).await {
            Ok(Answer::Balance(balance)) => balance,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn available(&self, user: &str) -> String {
        self.balance(user).await.available.to_string()
    }

    /// Holds a user's credits outside any request.
    pub(crate) async fn hold(&self, user: &str, credits: &str) {
        let amount: Credits = credits.parse().unwrap();
        let act = Act::Reserve { amount, floor: amount, tokens: 0, limits: Limits::default() };
        let reply = self.ledger.submit(Op { account: AccountId::parse(user).unwrap(), act }).await;
        assert!(matches!(reply, Ok(Answer::Reserved(_))), "{reply:?}");
    }

    /// The usage rows of a user, newest first, once there are so many.
    pub(crate) async fn usage(&self, user: &str, count: usize) -> Vec<UsageRow> {
        let user = AccountId::parse(user).unwrap();
        let rows = eventually(SOON, "the usage rows", || async {
            let page = self.store.usage(&user, PageRequest { limit: 100, cursor: None }).await.unwrap();
            (page.data.len() >= count).then_some(page.data)
        })
        .await;
        assert_eq!(rows.len(), count, "{rows:?}");
        rows
    }

    /// Until nothing of a user's is held.
    pub(crate) async fn idle(&self, user: &str) -> Balance {
        eventually(SOON, "nothing is held", || async {
            let balance = self.balance(user).await;
            balance.held.is_zero().then_some(balance)
        })
        .await
    }

    pub(crate) fn requests(&self, route: &str, outcome: &str) -> u64 {
        self.metrics.requests.with_label_values(&[route, outcome]).get()
    }

    /// Begins to drain; the workers end when it is done.
    pub(crate) fn stop(&mut self) -> JoinHandle<std::io::Result<()>> {
        self.stop.cancel();
        self.gateway.take().unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
        self.later.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
