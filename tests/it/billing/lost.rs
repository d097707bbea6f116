//! Webhooks that never came.

use std::sync::Arc;

use faregate::billing::inbox::now;
use faregate::billing::plans::Catalog;
use faregate::billing::process::{Done, Processor};
use faregate::billing::reconcile::Reconciler;
use faregate::billing::stripe::Client;
use faregate::config::Config;
use faregate::credits::Credits;
use faregate::ledger::AccountId;
use faregate::store::{self, NewUser};
use faregate::telemetry::Metrics;
use faregate_sim::stripe::PriceSpec;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{CARD, CONFIG};
use crate::support::Stripe;

const LEASE_US: u64 = 60_000_000;

/// The comparison takes in the events and, for what no event tells any more, the objects themselves.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_webhook_told_is_found() {
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
    let variables = [("FAREGATE_STRIPE_API_BASE".to_owned(), stripe.url().to_owned())];
    let config = Arc::new(Config::load(Some(&file), variables.into_iter()).unwrap());
    let store = store::open(&config.store, dir.path()).await.unwrap();
    let ann = AccountId::parse("ann").unwrap();
    let user = NewUser { id: ann.clone(), email: None, plan: "free".into(), signup_credits: Credits::ZERO };
    store.create_user(user).await.unwrap();
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let client = Client::new(&config.stripe, Metrics::new().unwrap(), tasks, stop.clone()).map(Arc::new).unwrap();
    let processor = Processor::new(store.clone(), client.clone(), Catalog::new(config.clone()), None, now);
    let processor = Arc::new(processor);
    let desk = faregate::billing::desk::Desk::new(
        &config,
        faregate::rollout::Current::new(config.clone()),
        store.clone(),
        client.clone(),
        processor.clone(),
        Default::default(),
    );
    let order = faregate::billing::desk::Order {
        what: faregate::billing::desk::What::Plan { name: "pro".into(), interval: faregate::config::Interval::Month },
        currency: None,
    };
    let page = desk.checkout(&ann, &order).await.unwrap();
    stripe.complete_checkout(&page.id, CARD).unwrap();
    let reconciler = Reconciler { store: store.clone(), client, processor: processor.clone(), interval_us: 1 };
    assert!(store.billing_account(&ann).await.unwrap().purchases.is_empty());
    // The objects alone are enough …
    assert_eq!(reconciler.users(0).await.unwrap(), 1);
    let found = store.billing_account(&ann).await.unwrap();
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
    let again = store.billing_account(&ann).await.unwrap();
    assert_eq!((again.purchases.len(), again.grants.len()), (1, 1));
    stop.cancel();
}
