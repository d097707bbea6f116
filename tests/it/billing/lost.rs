//! Webhooks that never came.

use std::sync::Arc;

use faregate::billing::desk::{Desk, Order, What};
use faregate::billing::inbox::now;
use faregate::billing::lifecycle::route::Target;
use faregate::billing::plans::Catalog;
use faregate::billing::process::{Done, Processor};
use faregate::billing::reconcile::Reconciler;
use faregate::billing::stripe::Client;
use faregate::config::Config;
use faregate::credits::Credits;
use faregate::ledger::AccountId;
use faregate::store::{self, NewUser, SharedStore};
use faregate::telemetry::Metrics;
use faregate_sim::stripe::PriceSpec;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{CARD, CONFIG};
use crate::support::Stripe;

const LEASE_US: u64 = 60_000_000;

/// Billing without a server around it.
pub(super) struct Office {
    pub stripe: Stripe,
    pub config: Arc<Config>,
    pub store: SharedStore,
    pub client: Arc<Client>,
    pub processor: Arc<Processor>,
    pub desk: Desk,
    pub ann: AccountId,
    pub stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Office {
    /// With a user `ann`, over SQLite or the Postgres at `url`.
    pub(super) async fn open(url: Option<String>) -> Office {
        let stripe = Stripe::start();
        stripe.price(&PriceSpec {
            id: Some("price_pro".into()),
            product_name: "pro".into(),
            unit_amount: 2_000,
            currency: "usd".into(),
            interval: Some("month".into()),
            live: false,
        });
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("faregate.toml");
        std::fs::write(&file, CONFIG).unwrap();
        let mut variables = vec![("FAREGATE_STRIPE_API_BASE".to_owned(), stripe.url().to_owned())];
        variables.extend(url.map(|url| ("FAREGATE_STORE_URL".to_owned(), url)));
        let config = Arc::new(Config::load(Some(&file), variables.into_iter()).unwrap());
        let store = store::open(&config.store, dir.path()).await.unwrap();
        let ann = AccountId::parse("ann").unwrap();
        let user = NewUser { id: ann.clone(), email: None, plan: "free".into(), signup_credits: Credits::ZERO };
        store.create_user(user).await.unwrap();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let client = Client::new(&config.stripe, Metrics::new().unwrap(), tasks, stop.clone()).map(Arc::new).unwrap();
        let processor = Processor::new(store.clone(), client.clone(), Catalog::new(config.clone()), None, now);
        let processor = Arc::new(processor);
        let current = faregate::rollout::Current::new(config.clone());
        let desk = Desk::new(&config, current, store.clone(), client.clone(), processor.clone(), Default::default());
        Office { stripe, config, store, client, processor, desk, ann, stop, _dir: dir }
    }

    /// Pays for `pro` at Stripe, which tells nobody. Answers the session.
    pub(super) async fn pay(&self) -> String {
        let what = What::Plan { name: "pro".into(), interval: faregate::config::Interval::Month };
        let page = self.desk.checkout(&self.ann, &Order { what, currency: None }).await.unwrap();
        self.stripe.complete_checkout(&page.id, CARD).unwrap();
        page.id
    }

    /// And it is known here.
    pub(super) async fn subscribe(&self) {
        let session = self.pay().await;
        self.processor.object(&Target::Checkout(session), "test").await.unwrap();
    }
}

/// The comparison takes in the events and, for what no event tells any more, the objects themselves.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_webhook_told_is_found() {
    let office = Office::open(None).await;
    office.pay().await;
    let Office { store, client, processor, ann, stop, .. } = &office;
    let (store_of, client, processor_of) = (store.clone(), client.clone(), processor.clone());
    let reconciler = Reconciler { store: store_of, client, processor: processor_of, interval_us: 1 };
    assert!(store.billing_account(ann).await.unwrap().purchases.is_empty());
    // The objects alone are enough …
    assert_eq!(reconciler.users(0).await.unwrap(), 1);
    let found = store.billing_account(ann).await.unwrap();
    let amounts: Vec<i64> = found.purchases.iter().map(|purchase| purchase.amount).collect();
    assert_eq!((amounts, found.user.plan.as_str(), found.grants.len()), (vec![2_000], "pro", 1));
    // … and so are the events, which change nothing more.
    assert!(reconciler.events(0).await.unwrap() > 0);
    assert_eq!(reconciler.events(0).await.unwrap(), 0);
    let mut processed = 0;
    for event in store.claim_events(100, LEASE_US).await.unwrap() {
        assert!(serde_json::from_str::<Value>(&event.payload).is_ok());
        processed += usize::from(matches!(processor.event(&event).await.unwrap(), Done::Processed(_)));
    }
    assert!(processed > 0);
    let again = store.billing_account(ann).await.unwrap();
    assert_eq!((again.purchases.len(), again.grants.len()), (1, 1));
    stop.cancel();
}
