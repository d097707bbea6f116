//! The faces without sockets: the real routers over a real store and a ledger.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use faregate::admin::{self, AdminParts};
use faregate::api::events::Describer;
use faregate::api::{self, ApiParts};
use faregate::billing::plans::Catalog;
use faregate::billing::{Billing, BillingParts};
use faregate::bridge::{self, Auditor, EventLog, Pusher, RedisEvents, StoreEpochs, StoreSource};
use faregate::config::{Config, Plan, Secret};
use faregate::fraud::Fraud;
use faregate::identity::Identity;
use faregate::ledger::embedded::EmbeddedLedger;
use faregate::ledger::redis::RedisLedger;
use faregate::ledger::{Connect, SharedLedger};
use faregate::notify::hub::{Hub, HubParts};
use faregate::rollout::Current;
use faregate::store::notifications::Thresholds;
use faregate::store::{self, SharedStore};
use faregate::telemetry::Metrics;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::model::ModelLedger;
use crate::support::http::Answer;
use crate::support::{Postgres, Redis};

pub(crate) const TOKEN: &str = "the-operators-token";

/// What replicas share.
pub(crate) struct Ground {
    pub(crate) store: SharedStore,
    pub(crate) config: Arc<Config>,
    /// What replicas have of their own; they take these in turn.
    own: Vec<(SharedStore, Ledgers)>,
    opened: AtomicUsize,
    stop: CancellationToken,
    tasks: TaskTracker,
    _servers: Box<dyn Any + Send + Sync>,
}

enum Ledgers {
    One(SharedLedger),
    Connect(Arc<dyn Connect>),
}

/// One replica's faces.
#[derive(Clone)]
pub(crate) struct Rig {
    pub(crate) store: SharedStore,
    pub(crate) fraud: Arc<Fraud>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) ledger: SharedLedger,
    pub(crate) metrics: Metrics,
    pub(crate) routes_ready: Arc<AtomicBool>,
    pub(crate) hub: Arc<Hub>,
    api: Router,
    admin: Router,
}

pub(crate) fn settings() -> Config {
    let mut config = Config::default();
    let tight = Plan { requests_per_minute: 3, concurrency: 2, ..Plan::default() };
    config.plans.insert("tight".into(), tight);
    config.plans.insert("none".into(), Plan::default());
    config.reports.heavy_messages_per_day = 1;
    super::fraud::strict(&mut config);
    super::insight::trial(&mut config);
    config.cors.origins = vec!["https://app.example".into()];
    config
}

impl Ground {
    /// SQLite, and the account model for a ledger.
    pub(crate) async fn model(config: Config) -> (Ground, Arc<ModelLedger>) {
        let dir = tempfile::tempdir().unwrap();
        let store = store::open(&config.store, dir.path()).await.unwrap();
        let ledger = ModelLedger::new(store.clone());
        let ground = Ground::over(config, vec![(store, Ledgers::One(ledger.clone()))], dir);
        (ground, ledger)
    }

    /// SQLite and the embedded ledger.
    pub(crate) async fn embedded(config: Config) -> Ground {
        let dir = tempfile::tempdir().unwrap();
        let store = store::open(&config.store, dir.path()).await.unwrap();
        let source = Arc::new(StoreSource::whole(store.clone()));
        let metrics = Metrics::new().unwrap();
        let ledger = EmbeddedLedger::new(&config.ledger, source, metrics.clone());
        let ground = Ground::over(config, vec![(store, Ledgers::Connect(ledger.clone()))], dir);
        ground.flush(ledger.outbox(), metrics);
        ground.tasks.spawn(ledger.run_sweeper(ground.stop.clone()));
        ground
    }

    /// Postgres and Redis, with two replicas' connections to them.
    pub(crate) async fn distributed(mut config: Config) -> Ground {
        let (postgres, redis) = (Postgres::start(), Redis::start());
        (config.store.url, config.ledger.url) = (postgres.url(), redis.url());
        config.store.max_connections = 3;
        let (mut own, mut opened) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let store = store::open(&config.store, Path::new("unused")).await.unwrap();
            let (source, epochs) = (Arc::new(StoreSource::new(store.clone())), StoreEpochs::new(store.clone()));
            let metrics = Metrics::new().unwrap();
            let ledger = RedisLedger::open(&config.ledger, source, epochs, metrics.clone()).await.unwrap();
            own.push((store, Ledgers::Connect(ledger.clone())));
            opened.push((ledger, metrics));
        }
        let ground = Ground::over(config, own, (postgres, redis));
        for (ledger, metrics) in opened {
            ground.flush(RedisEvents::new(&ledger, ground.store.clone()), metrics);
            ground.tasks.spawn(ledger.run_sweeper(ground.stop.clone()));
        }
        ground
    }

    fn over(config: Config, own: Vec<(SharedStore, Ledgers)>, servers: impl Any + Send + Sync) -> Ground {
        Ground {
            store: own[0].0.clone(),
            config: Arc::new(config),
            own,
            opened: AtomicUsize::new(0),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            _servers: Box::new(servers),
        }
    }

    fn flush(&self, log: impl EventLog, metrics: Metrics) {
        let (config, store, stop) = (self.config.clone(), self.store.clone(), self.stop.clone());
        self.tasks.spawn(async move { bridge::flush::run(log, store, &config.store, metrics, stop).await });
    }

    fn own(&self) -> (SharedStore, SharedLedger) {
        let (store, ledgers) = &self.own[self.opened.fetch_add(1, Ordering::Relaxed) % self.own.len()];
        let ledger = match ledgers {
            Ledgers::One(ledger) => ledger.clone(),
            Ledgers::Connect(ledgers) => ledgers.connect(&self.tasks, self.stop.clone()),
        };
        (store.clone(), ledger)
    }

    pub(crate) fn replica(&self) -> Rig {
        let (metrics, (store, ledger)) = (Metrics::new().unwrap(), self.own());
        let pusher = Pusher::new(store.clone(), ledger.clone(), metrics.clone());
        let identity = Identity::new(store.clone(), &self.config, metrics.clone(), Some(pusher.clone()));
        self.tasks.spawn(identity.clone().run(self.stop.clone()));
        let routes_ready = Arc::new(AtomicBool::new(true));
        let ready = routes_ready.clone();
        let current = Current::new(self.config.clone());
        let billing = Billing::new(BillingParts {
            config: self.config.clone(),
            current: current.clone(),
            store: store.clone(),
            pusher: pusher.clone(),
            spenders: Default::default(),
            metrics: metrics.clone(),
            tasks: self.tasks.clone(),
            stop: self.stop.clone(),
        });
        store.set_thresholds(Thresholds::of(&self.config.plans));
        let catalog = Catalog::new(self.config.clone());
        let describer = Describer { store: store.clone(), catalog, billing: billing.clone() };
        let hub = Hub::new(HubParts {
            store: store.clone(),
            ledger: ledger.clone(),
            settings: self.config.notify.clone(),
            embedded: self.config.ledger.url.is_empty(),
            describe: Arc::new(describer),
            metrics: metrics.clone(),
        });
        self.tasks.spawn(hub.clone().follow(self.stop.clone()));
        self.tasks.spawn(hub.clone().watch_callers(self.stop.clone()));
        let api = api::router(ApiParts {
            store: store.clone(),
            ledger: ledger.clone(),
            identity: identity.clone(),
            config: self.config.clone(),
            current: current.clone(),
            metrics: metrics.clone(),
            billing: billing.clone(),
            hub: hub.clone(),
            tasks: self.tasks.clone(),
        });
        let fraud = Fraud::new(store.clone(), pusher.clone(), current.clone(), metrics.clone());
        identity.attach_judge(fraud.clone());
        let admin = admin::router(AdminParts {
            auditor: Auditor::new(store.clone(), ledger.clone(), None),
            store: store.clone(),
            ledger: ledger.clone(),
            fraud: fraud.clone(),
            pusher,
            identity: identity.clone(),
            config: self.config.clone(),
            current: current.clone(),
            metrics: metrics.clone(),
            token: Secret::new(TOKEN),
            routes_ready: Arc::new(move || ready.load(Ordering::SeqCst)),
            tasks: self.tasks.clone(),
        });
        Rig { store, fraud, identity, ledger, metrics, routes_ready, hub, api, admin }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A request in the making.
pub(crate) struct Ask<'a> {
    rig: &'a Rig,
    admin: bool,
    request: http::request::Builder,
    body: Bytes,
}

impl Rig {
    /// To the operator's API, with the token.
    pub(crate) fn admin(&self, method: Method, path: &str) -> Ask<'_> {
        let request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {TOKEN}"));
        Ask { rig: self, admin: true, request, body: Bytes::new() }
    }

    /// To the operator's listener, without the token.
    pub(crate) fn open(&self, method: Method, path: &str) -> Ask<'_> {
        Ask { rig: self, admin: true, request: Request::builder().method(method).uri(path), body: Bytes::new() }
    }

    /// To the users' API; `key` may be empty.
    pub(crate) fn api(&self, method: Method, path: &str, key: &str) -> Ask<'_> {
        let mut request = Request::builder().method(method).uri(path);
        if !key.is_empty() {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        Ask { rig: self, admin: false, request, body: Bytes::new() }
    }

    pub(crate) async fn post(&self, path: &str, key: &str, body: Value) -> Answer {
        self.api(Method::POST, path, key).json(&body).send().await
    }

    /// A user on the plan `none` with so many credits, and a key.
    pub(crate) async fn user(&self, id: &str, credits: &str) -> String {
        let made = self.admin(Method::POST, "/admin/v1/users").json(&json!({"id": id, "plan": "none"})).send().await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
        if credits != "0" {
            let body = format!("{{\"amount\": {credits}}}");
            let path = format!("/admin/v1/users/{id}/grants");
            let granted = self.admin(Method::POST, &path).body("application/json", body).send().await;
            assert_eq!(granted.status, StatusCode::CREATED, "{}", granted.text());
        }
        self.key(id).await.0
    }

    /// A key's text and id.
    pub(crate) async fn key(&self, user: &str) -> (String, String) {
        let path = format!("/admin/v1/users/{user}/keys");
        let made = self.admin(Method::POST, &path).json(&json!({"name": "test"})).send().await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
        let made = made.json();
        (made["key"].as_str().unwrap().to_owned(), made["id"].as_str().unwrap().to_owned())
    }

    pub(crate) async fn service_key(&self) -> (String, String) {
        let made = self.admin(Method::POST, "/admin/v1/keys").json(&json!({"name": "app"})).send().await.json();
        (made["key"].as_str().unwrap().to_owned(), made["id"].as_str().unwrap().to_owned())
    }

    /// `available`, `held`, `debt` as the operator sees them, as texts of JSON numbers.
    pub(crate) async fn credits(&self, user: &str) -> (String, String, String) {
        let shown = self.admin(Method::GET, &format!("/admin/v1/users/{user}")).send().await;
        assert_eq!(shown.status, StatusCode::OK, "{}", shown.text());
        let credits = shown.json()["credits"].clone();
        (credits["available"].to_string(), credits["held"].to_string(), credits["debt"].to_string())
    }

    pub(crate) fn look_ups(&self, result: &str) -> u64 {
        self.metrics.key_lookups.with_label_values(&[result]).get()
    }
}

impl Ask<'_> {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        self.body("application/json", body.to_string())
    }

    pub(crate) fn body(mut self, kind: &str, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self.header("content-type", kind)
    }

    /// The answer as it begins: its body may go on for hours.
    pub(crate) async fn begin(self) -> http::Response<Body> {
        let router = if self.admin { &self.rig.admin } else { &self.rig.api };
        router.clone().oneshot(self.request.body(Body::from(self.body)).unwrap()).await.unwrap()
    }

    pub(crate) async fn send(self) -> Answer {
        let router = if self.admin { &self.rig.admin } else { &self.rig.api };
        let request = self.request.body(Body::from(self.body)).unwrap();
        let (head, body) = router.clone().oneshot(request).await.unwrap().into_parts();
        Answer { status: head.status, headers: head.headers, body: body.collect().await.unwrap().to_bytes() }
    }
}

pub(crate) fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
}

pub(crate) fn bearer(key: &str) -> HeaderMap {
    headers(&[("authorization", &format!("Bearer {key}"))])
}
