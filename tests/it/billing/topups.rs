//! Packs that are bought by themselves.

use faregate_sim::stripe::{Behaviour, Fault, FaultRule, Kind};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{SOON, Shop};
use crate::support::eventually;
use crate::support::http::request;

const PATH: &str = "/api/billing/auto-topup";

impl Shop {
    /// On the plan `basic`, with her card saved: 400 credits and the five of the sign-up.
    async fn with_card(self) -> Shop {
        self.buy(json!({"plan": "basic"}), 400).await;
        self
    }

    async fn set_topup(&self, monthly_cap: i64) -> Value {
        let body = json!({"threshold": 10, "pack": "small", "monthly_cap": monthly_cap});
        let set = self.api(Method::PUT, PATH, Some(body)).await;
        assert_eq!(set.status, StatusCode::OK, "{}", set.text());
        set.json()
    }

    async fn topup(&self) -> Value {
        self.api(Method::GET, PATH, None).await.json()
    }

    async fn spend(&self, amount: i64) {
        let spent = self.api(Method::POST, "/api/credits/deduct", Some(json!({"amount": amount}))).await;
        assert_eq!(spent.status, StatusCode::OK, "{}", spent.text());
    }

    /// What was paid, or tried to be, without the user.
    fn payments(&self) -> Vec<Value> {
        let ours = |intent: &Value| intent["metadata"]["faregate_topup"].is_string();
        self.stripe.objects(Kind::PaymentIntent).into_iter().filter(ours).collect()
    }

    async fn eventually_topup(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        eventually(SOON, what, || async {
            let shown = self.topup().await;
            holds(&shown).then_some(shown)
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_is_bought_when_little_is_left_up_to_the_months_cap() {
    let shop = Shop::open().await;
    assert_eq!(shop.topup().await["state"], "off");
    let body = json!({"threshold": 10, "pack": "small", "monthly_cap": 1_000});
    let without_card = shop.api(Method::PUT, PATH, Some(body)).await;
    assert_eq!(without_card.status, StatusCode::CONFLICT, "{}", without_card.text());
    let shop = shop.with_card().await;
    for wrong in [
        json!({"threshold": 10, "pack": "none", "monthly_cap": 1_000}),
        json!({"threshold": 10, "pack": "small", "monthly_cap": 499}),
        json!({"threshold": 100, "pack": "small", "monthly_cap": 1_000}),
        json!({"threshold": 0, "pack": "small", "monthly_cap": 1_000}),
    ] {
        assert_eq!(shop.api(Method::PUT, PATH, Some(wrong)).await.status, StatusCode::BAD_REQUEST);
    }
    let set = shop.set_topup(1_000).await;
    assert_eq!((&set["state"], &set["amount"], &set["spent_this_month"]), (&json!("ready"), &json!(500), &json!(0)));
    shop.spend(395).await;
    assert!(shop.payments().is_empty(), "ten are left, which is not below ten");
    shop.spend(1).await;
    // The nine that are left, and the pack's hundred.
    shop.has(104).await;
    assert_eq!(shop.topup().await["spent_this_month"], 500);
    shop.spend(100).await;
    shop.has(104).await;
    assert_eq!(shop.topup().await["spent_this_month"], 1_000);
    shop.spend(100).await;
    let capped = shop.eventually_topup("the cap is reached", |shown| shown["state"] == "capped").await;
    assert!(capped["next_attempt_at"].is_string(), "{capped}");
    shop.has(4).await;
    assert_eq!(shop.payments().len(), 2);
    let history = shop.invoice(0).await;
    assert_eq!((&history["kind"], &history["amount"]), (&json!("pack"), &json!(500)));
    assert_eq!(shop.api(Method::DELETE, PATH, None).await.status, StatusCode::NO_CONTENT);
    assert_eq!(shop.topup().await["state"], "off");
    shop.faregate.audit().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decline_is_told_and_not_repeated_at_once() {
    let shop = Shop::open().await.with_card().await;
    shop.set_topup(5_000).await;
    shop.stripe.set_behaviour(&shop.customer(), Some(Behaviour::Declines("insufficient_funds".into())));
    shop.spend(400).await;
    let waiting = shop.eventually_topup("it waits", |shown| shown["state"] == "waiting").await;
    assert_eq!((&waiting["error"], &waiting["spent_this_month"]), (&json!("card_declined"), &json!(0)));
    let told = shop.notified("payment_failed").await;
    assert_eq!((&told["data"]["source"], &told["data"]["code"]), (&json!("auto_topup"), &json!("card_declined")));
    shop.spend(1).await;
    shop.has(-1).await;
    assert_eq!(shop.payments().len(), 1);
    // The user has another card and says so.
    shop.stripe.set_behaviour(&shop.customer(), None);
    assert_eq!(shop.set_topup(5_000).await["state"], "ready");
    shop.has(99).await;
    assert_eq!(shop.payments().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_that_asks_for_its_owner_stops_it() {
    let shop = Shop::open().await.with_card().await;
    shop.set_topup(5_000).await;
    shop.stripe.set_behaviour(&shop.customer(), Some(Behaviour::NeedsAction));
    shop.spend(400).await;
    let stopped = shop.eventually_topup("it is stopped", |shown| shown["state"] == "stopped").await;
    assert_eq!(stopped["error"], "authentication_required");
    let told = shop.notified("payment_action_required").await;
    assert_eq!(told["data"]["pack"], "small");
    shop.has(0).await;
    assert_eq!(shop.payments().len(), 1);
}

/// Whichever replica sees it first: one payment.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_replicas_at_once_one_buys() {
    let shop = Shop::open_replicated(2).await.with_card().await;
    shop.set_topup(50_000).await;
    let spend = |faregate: &crate::support::Faregate| {
        let (http, url) = (faregate.http.clone(), faregate.url("/api/credits/deduct"));
        let request = request(Method::POST, &url, &shop.key, Some(&json!({"amount": 20})));
        async move { assert_eq!(http.call(request).await.status, StatusCode::OK) }
    };
    // 405 less 400: spent from both sides at the same time.
    let all = (0..10).flat_map(|_| [spend(&shop.faregate), spend(&shop.others[0])]);
    futures_util::future::join_all(all).await;
    shop.has(100).await;
    assert!(shop.stripe.delivered(SOON).await);
    shop.eventually_topup("it is paid", |shown| shown["spent_this_month"] == 500).await;
    assert_eq!(shop.payments().len(), 1);
    shop.has(100).await;
    shop.faregate.audit().unwrap();
}

/// The answer is lost, the payment happened: it is found, and not made again, whoever looks after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_payment_whose_answer_was_lost_is_found() {
    for fault in [Fault::ErrorAfter, Fault::SilentAfter] {
        let mut shop = Shop::open_replicated(1).await.with_card().await;
        shop.set_topup(5_000).await;
        // Nor does an event tell of it.
        shop.stripe.hold_webhooks();
        shop.stripe.fault(FaultRule { method: "POST".into(), path: "/v1/payment_intents".into(), fault, times: 9 });
        shop.spend(400).await;
        eventually(SOON, "it is paid at Stripe", || async { (shop.payments().len() == 1).then_some(()) }).await;
        if fault == Fault::SilentAfter {
            shop.faregate.kill9();
            shop.faregate.restart();
        }
        assert_eq!(shop.credits().await, (5, 0));
        let servers = shop.servers.as_ref().unwrap();
        servers.0.query("UPDATE topups SET look_at = now()");
        shop.has(100).await;
        assert_eq!(shop.payments().len(), 1);
        assert_eq!(shop.topup().await["spent_this_month"], 500);
    }
}

/// Stripe fails, and under the same key only says so again: no second payment is begun while it may have been made.
#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_never_came_about_is_given_up() {
    let shop = Shop::open_replicated(1).await.with_card().await;
    shop.set_topup(5_000).await;
    let rule = FaultRule { method: "POST".into(), path: "/v1/payment_intents".into(), fault: Fault::Error, times: 1 };
    shop.stripe.fault(rule);
    shop.spend(400).await;
    let (postgres, _) = shop.servers.as_ref().unwrap();
    eventually(SOON, "it was sent", || async {
        let sent = postgres.query("SELECT count(*) FROM topups WHERE payment_method IS NOT NULL");
        (sent == ["1"]).then_some(())
    })
    .await;
    // Sent again it is the same call: Stripe repeats its answer.
    postgres.query("UPDATE topups SET look_at = now()");
    eventually(SOON, "it is looked after", || async {
        (postgres.query("SELECT looks FROM topups") == ["1"]).then_some(())
    })
    .await;
    assert!(shop.payments().is_empty());
    let waiting = eventually(SOON, "it is given up", || async {
        // The look before writes when the next is due: whichever comes last.
        postgres.query("UPDATE topups SET look_at = now(), looks = 5 WHERE state = 'running'");
        Some(shop.topup().await).filter(|shown| shown["state"] == "waiting")
    })
    .await;
    assert_eq!(waiting["error"], "no_answer");
    assert!(shop.payments().is_empty());
    shop.has(0).await;
}

/// What was begun and left before Stripe was asked is paid only where it still may and need be: a card is not charged for
/// what was bought meanwhile, nor for somebody who was frozen or has left.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_is_paid_only_where_it_is_still_wanted() {
    let shop = Shop::open_replicated(1).await.with_card().await;
    shop.set_topup(5_000).await;
    let made = shop.admin(Method::POST, "/admin/v1/users", Some(json!({"id": "bob"}))).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    assert_eq!(shop.admin(Method::POST, "/admin/v1/users/bob/freeze", None).await.status, StatusCode::OK);
    let (postgres, _) = shop.servers.as_ref().unwrap();
    postgres.query("INSERT INTO billing_accounts (user_id) VALUES ('bob')");
    postgres.query(
        "INSERT INTO auto_topups (user_id, enabled, threshold, pack, currency, monthly_cap, next_at, updated_at)
        VALUES ('bob', true, 1, 'small', 'usd', 5000, now(), now())",
    );
    let left = |id: u32, user: &str, method: &str| {
        postgres.query(&format!(
            "INSERT INTO topups (id, user_id, customer_id, pack, price_id, currency, amount, payment_method, state, look_at,
                created_at) VALUES ('00000000-0000-7000-8000-00000000000{id}', '{user}', '{}', 'small', 'price_small',
                'usd', 500, {method}, 'running', now(), now())",
            shop.customer()
        ));
    };
    // She has enough; Stripe was not asked.
    left(1, "ann", "NULL");
    // It was sent, and Stripe knows nothing of it.
    left(2, "bob", "'pm_card_visa'");
    let states = || postgres.query("SELECT user_id || ' ' || state || ' ' || coalesce(error, '') FROM topups");
    eventually(SOON, "both are looked after", || async { (states() == ["bob failed not_allowed"]).then_some(()) })
        .await;
    assert!(shop.payments().is_empty());
    shop.has(400).await;
}
