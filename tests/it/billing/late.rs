//! What comes late: a snapshot that is older than what was written meanwhile, a user who is made after their payment, a
//! Stripe that cannot be asked for a while, an event in the shape of another version.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use faregate::billing::inbox::now;
use faregate::billing::lifecycle::route::Target;
use faregate::billing::plans::Catalog;
use faregate::billing::process::Processor;
use faregate::billing::stripe::fetch::Fetch;
use faregate::billing::stripe::form::Form;
use faregate::billing::stripe::objects::*;
use faregate::billing::stripe::{Client, StripeError};
use faregate_sim::stripe::{Act, Fault, FaultRule, Kind, Rule, Twist};
use http::{Method, StatusCode};
use serde_json::json;
use tokio::sync::Notify;

use super::lost::Office;
use super::{CARD, CONFIG, SOON, Shop};
use crate::support::{Options, Postgres, Redis, Stripe, eventually};

/// The subscription that is read for the decision is not handed out before it may be.
struct Slow {
    client: Arc<Client>,
    reads: AtomicUsize,
    read: Notify,
    go: Notify,
}

type Answer<T> = Result<T, StripeError>;

#[async_trait]
impl Fetch for Slow {
    async fn subscription(&self, id: &str) -> Answer<Subscription> {
        let found = self.client.subscription(id).await;
        // The first time only tells whose it is; then the account is read, and the subscription again.
        if self.reads.fetch_add(1, Ordering::SeqCst) == 1 {
            self.read.notify_one();
            self.go.notified().await;
        }
        found
    }

    async fn invoice(&self, id: &str) -> Answer<Invoice> {
        self.client.invoice(id).await
    }
    async fn checkout(&self, id: &str) -> Answer<CheckoutSession> {
        self.client.checkout(id).await
    }
    async fn payment(&self, id: &str) -> Answer<PaymentIntent> {
        self.client.payment(id).await
    }
    async fn charge(&self, id: &str) -> Answer<Charge> {
        self.client.charge(id).await
    }
    async fn refund(&self, id: &str) -> Answer<Refund> {
        self.client.refund(id).await
    }
    async fn dispute(&self, id: &str) -> Answer<Dispute> {
        self.client.dispute(id).await
    }
    async fn warning(&self, id: &str) -> Answer<EarlyFraudWarning> {
        self.client.warning(id).await
    }
    async fn disputes_of(&self, payment_intent: &str) -> Answer<Vec<Dispute>> {
        self.client.disputes_of(payment_intent).await
    }
    async fn invoice_of(&self, payment_intent: &str) -> Answer<Option<String>> {
        self.client.invoice_of(payment_intent).await
    }
    async fn checkout_of(&self, payment_intent: &str) -> Answer<Option<CheckoutSession>> {
        self.client.checkout_of(payment_intent).await
    }
    async fn subscriptions_of(&self, customer: &str) -> Answer<Vec<Subscription>> {
        self.client.subscriptions_of(customer).await
    }
    async fn invoices_of(&self, customer: &str, since: i64) -> Answer<Vec<Invoice>> {
        self.client.invoices_of(customer, since).await
    }
    async fn payments_of(&self, customer: &str, since: i64) -> Answer<Vec<PaymentIntent>> {
        self.client.payments_of(customer, since).await
    }
}

/// failures 33: whoever read the object first and writes last does not write what it read.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_snapshot_does_not_win() {
    for server in [None, Some(tokio::task::block_in_place(Postgres::start))] {
        let office = Office::open(server.as_ref().map(Postgres::url)).await;
        office.subscribe().await;
        let account = office.store.billing_account(&office.ann).await.unwrap();
        let subscription = account.subscriptions[0].id.clone();
        // What it will read is news: it has something to write.
        let ending = Form::new().with("cancel_at_period_end", true);
        let changed = format!("/v1/subscriptions/{subscription}");
        let _: serde_json::Value = office.client.post(&changed, &ending, "ending").await.unwrap();
        let (reads, read, go) = (AtomicUsize::new(0), Notify::new(), Notify::new());
        let slow = Arc::new(Slow { client: office.client.clone(), reads, read, go });
        let (store, catalog) = (office.store.clone(), Catalog::new(office.config.clone()));
        let late = Processor::new(store, slow.clone(), catalog, None, now);
        let target = Target::Subscription(subscription);
        let (ended, ()) = tokio::join!(late.object(&target, "late"), async {
            slow.read.notified().await;
            office.desk.cancel(&office.ann, faregate::billing::desk::When::Now).await.unwrap();
            slow.go.notify_one();
        });
        ended.unwrap();
        let account = office.store.billing_account(&office.ann).await.unwrap();
        assert_eq!((account.subscriptions[0].status.as_str(), account.user.plan.as_str()), ("canceled", "free"));
        office.stop.cancel();
    }
}

/// failures 34: the payment is told of before the user is there, and counts once they are.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_paid_before_the_user_was_there_is_credited() {
    let shop = tokio::task::block_in_place(|| Shop::replicated(1));
    let customer = shop.at_stripe(Method::POST, "/v1/customers", "metadata[faregate_user]=bob").await;
    let customer = customer["id"].as_str().unwrap();
    shop.stripe.change_card(customer, CARD).unwrap();
    let form = format!("customer={customer}&items[0][price]=price_basic&metadata[faregate_user]=bob");
    shop.at_stripe(Method::POST, "/v1/subscriptions", &form).await;
    eventually(SOON, "nobody is known", || async {
        let events = shop.events().await;
        let waits = |name: &str| {
            events.iter().any(|(kind, state, error)| kind == name && state == "pending" && error.contains("no user"))
        };
        (waits("invoice.paid") && waits("customer.subscription.created")).then_some(())
    })
    .await;
    let made = shop.admin(Method::POST, "/admin/v1/users", Some(json!({"id": "bob"}))).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    eventually(SOON, "it is credited", || async {
        let bob = shop.admin(Method::GET, "/admin/v1/users/bob", None).await.json();
        (bob["credits"]["available"] == 405 && bob["plan"] == "basic").then_some(())
    })
    .await;
}

/// failures 30, the other way round: an event whose effect fails is not done with. It is tried again, parked after its last
/// attempt, seen, and worked off when it is replayed.
#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_tried_again_parked_and_replayed() {
    let options = Options::new().config(CONFIG).env("FAREGATE_STRIPE__MAX_ATTEMPTS", 2);
    let options = options.env("FAREGATE_STRIPE__MAX_RETRIES", 0);
    let servers = tokio::task::block_in_place(|| (Postgres::start(), Redis::start()));
    let shop = tokio::task::block_in_place(|| Shop::of(Stripe::start(), options, Some(servers), 1)).with_ann().await;
    let session = shop.checkout(json!({"pack": "small"})).await;
    for path in ["/v1/checkout", "/v1/payment_intents", "/v1/charges", "/v1/invoice_payments"] {
        let rule = FaultRule { method: "GET".into(), path: path.into(), fault: Fault::Error, times: 1_000 };
        shop.stripe.fault(rule);
    }
    shop.stripe.complete_checkout(&session, CARD).unwrap();
    shop.quiet().await;
    assert_eq!(shop.credits().await, (5, 0));
    let (parked, errors, done) = shop.faregate.command(&["events", "list", "--state", "parked"]);
    assert!(done && parked.contains("payment_intent.succeeded"), "{parked}{errors}");
    shop.stripe.clear_faults();
    let listed = shop.admin(Method::GET, "/admin/v1/events?state=parked", None).await.json();
    for event in listed["data"].as_array().unwrap() {
        assert!(event["error"].as_str().unwrap().contains("500"), "{event}");
        assert_eq!(event["attempts"], 2, "{event}");
        let id = event["id"].as_str().unwrap();
        let (shown, errors, done) = shop.faregate.command(&["events", "show", id]);
        assert!(done && shown.contains(id), "{shown}{errors}");
        let (told, errors, done) = shop.faregate.command(&["events", "replay", id]);
        assert!(done, "{told}{errors}");
    }
    shop.has(100).await;
    shop.quiet().await;
    assert!(shop.events().await.iter().all(|(_, state, _)| state == "processed" || state == "ignored"));
    shop.has(100).await;
}

/// failures 41: an event of another version's shape, and one that only names its object, count as any other; what is read
/// again is read at the pinned version. What says that it is of the other mode is parked, and brings nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_shape_of_an_event_does_not_matter() {
    let shop = Shop::open().await;
    let twist = |twist| {
        shop.stripe.clear_rules();
        shop.stripe.rule(Rule { event: "*".into(), act: Act::Twist(twist), times: 1_000 });
    };
    twist(Twist { old_shape: true, ..Twist::default() });
    shop.buy(json!({"plan": "pro"}), 1_000).await;
    let invoice = shop.stripe.objects(Kind::Invoice)[0]["id"].as_str().unwrap().to_owned();
    shop.stripe.refund(&invoice, Some(1_000)).unwrap();
    shop.has(500).await;
    twist(Twist { thin: true, ..Twist::default() });
    shop.buy(json!({"pack": "small"}), 600).await;
    twist(Twist { wrong_livemode: true, ..Twist::default() });
    let session = shop.checkout(json!({"pack": "small"})).await;
    shop.stripe.complete_checkout(&session, CARD).unwrap();
    shop.quiet().await;
    let parked = shop.events().await.into_iter().filter(|(_, state, _)| state == "parked");
    assert!(parked.map(|(kind, ..)| kind).any(|kind| kind == "payment_intent.succeeded"));
    shop.has(600).await;
    let pinned = faregate::config::Stripe::default().api_version;
    assert!(shop.stripe.requests().iter().all(|request| request.version.as_deref() == Some(pinned.as_str())));
}
