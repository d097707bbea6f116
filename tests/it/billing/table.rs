//! The table of events and their effects, row by row, from Stripe's simulator to credits.

use faregate::billing::lifecycle::route::HANDLED;
use faregate_sim::stripe::{Behaviour, Kind, PriceSpec};
use http::{Method, StatusCode};
use serde_json::json;

use super::{CARD, CONFIG, SOON, Shop};
use crate::support::{Options, Postgres, Redis, Stripe, eventually};

const DAY: i64 = 86_400;
/// Events that change nothing here: stored, answered and left alone.
const RECORDED: [&str; 7] = [
    "invoice.created",
    "invoice.finalized",
    "invoice.upcoming",
    "payment_method.attached",
    "customer.updated",
    "customer.deleted",
    "invoice_payment.paid",
];
/// Other names of what the simulator tells by another event, and what it has no need of.
const NOT_MADE: [&str; 3] = ["charge.refund.updated", "charge.dispute.updated", "invoice.overpaid"];

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_table() {
    every_row(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_table_over_postgres_and_redis() {
    every_row(Some(tokio::task::block_in_place(|| (Postgres::start(), Redis::start())))).await;
}

async fn every_row(servers: Option<(Postgres, Redis)>) {
    let stripe = Stripe::start();
    stripe.price(&PriceSpec {
        id: Some("price_max".into()),
        product_name: "price_max".into(),
        unit_amount: 5_000,
        currency: "usd".into(),
        interval: Some("month".into()),
        live: false,
    });
    let max = "[[plans.max.prices]]\nid = \"price_max\"\ncurrency = \"usd\"\ninterval = \"month\"\namount = 5000\n";
    let trial = CONFIG.replace("credits = 400", "credits = 400\ntrial_credits = 50");
    let options = Options::new().config(&format!("{trial}\n[plans.max]\ncredits = 3000\n{max}"));
    let shop = tokio::task::block_in_place(|| Shop::of(stripe, options, servers, 1)).with_ann().await;
    trial_and_pause(&shop).await;
    changes_that_wait_for_a_payment(&shop).await;
    renewals(&shop).await;
    packs(&shop).await;
    what_goes_back(&shop).await;
    shop.at_stripe(Method::DELETE, &format!("/v1/customers/{}", shop.customer()), "").await;
    shop.quiet().await;

    let events = shop.events().await;
    let state = |state: &str, name: &str| events.iter().filter(|event| event.0 == name && event.1 == state).count();
    for (name, _) in HANDLED.iter().filter(|(name, _)| !NOT_MADE.contains(name) && !RECORDED.contains(name)) {
        assert!(state("processed", name) > 0, "{name}: {events:?}");
    }
    for name in RECORDED {
        assert!(state("ignored", name) > 0 && state("processed", name) == 0, "{name}: {events:?}");
    }
    assert!(events.iter().all(|(_, state, _)| state == "processed" || state == "ignored"), "{events:?}");
    shop.faregate.audit().unwrap();
}

/// customer.subscription.created, .trial_will_end, .updated, .paused, .resumed; invoice.paid of a subscription's first period;
/// payment_method.attached, customer.updated.
async fn trial_and_pause(shop: &Shop) {
    let portal = shop.api(Method::POST, "/api/billing/portal", Some(json!({}))).await;
    assert_eq!(portal.status, StatusCode::CREATED, "{}", portal.text());
    let form = format!(
        "customer={}&items[0][price]=price_basic&trial_period_days=14\
         &trial_settings[end_behavior][missing_payment_method]=pause",
        shop.customer()
    );
    shop.at_stripe(Method::POST, "/v1/subscriptions", &form).await;
    shop.has(50).await;
    shop.stripe.advance_by(12 * DAY).unwrap();
    shop.notified("trial_ending").await;
    // Without a card it is paused, and what the plan gave stands still.
    shop.stripe.advance_by(3 * DAY).unwrap();
    shop.eventually_subscription("it is paused", |shown| shown["subscription"]["status"] == "paused").await;
    shop.has(0).await;
    shop.stripe.change_card(&shop.customer(), CARD).unwrap();
    let resumed = shop.api(Method::POST, "/api/billing/subscription", Some(json!({"resume": true}))).await;
    assert_eq!(resumed.status, StatusCode::OK, "{}", resumed.text());
    // The trial is over with the first period.
    shop.has(400).await;
}

/// invoice.payment_action_required; customer.subscription.pending_update_applied, .pending_update_expired; invoice.paid of a
/// change; invoice.voided.
async fn changes_that_wait_for_a_payment(shop: &Shop) {
    let change = async |plan: &str| {
        shop.stripe.set_behaviour(&shop.customer(), Some(Behaviour::NeedsAction));
        let changed = shop.api(Method::POST, "/api/billing/subscription", Some(json!({ "plan": plan }))).await;
        assert_eq!(changed.status, StatusCode::OK, "{}", changed.text());
        shop.stripe.objects(Kind::PaymentIntent).last().unwrap()["id"].as_str().unwrap().to_owned()
    };
    let payment = change("pro").await;
    shop.notified("payment_action_required").await;
    shop.quiet().await;
    shop.has(400).await;
    shop.stripe.settle_payment(&payment, true);
    shop.has(1_000).await;
    shop.eventually_subscription("the change is paid", |shown| shown["plan"] == "pro").await;
    change("max").await;
    shop.stripe.advance_by(DAY).unwrap();
    shop.quiet().await;
    assert_eq!(shop.subscription().await["plan"], "pro");
    shop.has(1_000).await;
    shop.stripe.set_behaviour(&shop.customer(), None);
}

/// invoice.upcoming, .created, .finalized, .payment_failed, .paid and its alias, .marked_uncollectible;
/// customer.subscription.deleted.
async fn renewals(shop: &Shop) {
    let unpaid = async || {
        shop.stripe.set_behaviour(&shop.customer(), Some(Behaviour::Declines("card_declined".into())));
        shop.stripe.advance_by(31 * DAY + 7_200).unwrap();
        shop.eventually_subscription("a payment is due", |shown| shown["subscription"]["status"] == "past_due").await;
    };
    unpaid().await;
    shop.notified("payment_failed").await;
    shop.stripe.set_behaviour(&shop.customer(), None);
    shop.stripe.advance_by(4 * DAY).unwrap();
    shop.eventually_subscription("it is paid", |shown| shown["subscription"]["status"] == "active").await;
    shop.has(1_300).await;
    unpaid().await;
    let invoices = shop.stripe.objects(Kind::Invoice);
    let open = invoices.iter().rfind(|invoice| invoice["status"] == "open").unwrap()["id"].as_str().unwrap().to_owned();
    shop.at_stripe(Method::POST, &format!("/v1/invoices/{open}/mark_uncollectible"), "").await;
    shop.quiet().await;
    shop.has(1_300).await;
    shop.stripe.set_behaviour(&shop.customer(), None);
    let ended = shop.api(Method::DELETE, "/api/billing/subscription?at=now", None).await;
    assert_eq!((ended.status, &ended.json()["plan"]), (StatusCode::OK, &json!("free")), "{}", ended.text());
    shop.has(0).await;
}

/// checkout.session.completed, unpaid and paid, .async_payment_failed, .async_payment_succeeded, .expired;
/// payment_intent.succeeded. failures 38: an unpaid checkout brings nothing, its success later does.
async fn packs(shop: &Shop) {
    const SLOW: &str = "pm_usBankAccount_processing";
    for paid in [false, true] {
        let session = shop.checkout(json!({"pack": "small"})).await;
        shop.stripe.complete_checkout(&session, SLOW).unwrap();
        shop.quiet().await;
        shop.has(0).await;
        let payment = shop.stripe.object(&session)["payment_intent"].as_str().unwrap().to_owned();
        shop.stripe.settle_payment(&payment, paid);
        shop.quiet().await;
        shop.has(if paid { 100 } else { 0 }).await;
    }
    let session = shop.checkout(json!({"pack": "small"})).await;
    shop.stripe.expire_checkout(&session);
    shop.quiet().await;
    shop.buy(json!({"pack": "small"}), 200).await;
}

/// charge.refunded, refund.created, .updated, .failed; charge.dispute.created, .funds_withdrawn, .funds_reinstated, .closed;
/// radar.early_fraud_warning.created.
async fn what_goes_back(shop: &Shop) {
    let payments = shop.stripe.objects(Kind::PaymentIntent);
    let payment = payments.last().unwrap()["id"].as_str().unwrap().to_owned();
    let refund = shop.stripe.refund(&payment, Some(250)).unwrap();
    shop.has(150).await;
    shop.stripe.fail_refund(&refund).unwrap();
    shop.has(200).await;
    let dispute = shop.stripe.dispute(&payment, None).unwrap();
    shop.has(100).await;
    shop.stripe.close_dispute(&dispute, true).unwrap();
    shop.has(200).await;
    shop.quiet().await;
    shop.stripe.fraud_warning(&payment).unwrap();
    shop.has(0).await;
    let told = || async {
        let told = shop.api(Method::GET, "/api/notifications", None).await.json();
        told.to_string().contains("fraud_warning").then_some(())
    };
    eventually(SOON, "the user is told", told).await;
}
