//! Insight and fraud with real payments: the whole way through Stripe's simulator, with the real program.

use std::collections::BTreeMap;
use std::time::Duration;

use faregate_sim::stripe::{Kind, PriceSpec};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Answer, Faregate, Options, Stripe, eventually};

const SOON: Duration = Duration::from_secs(30);
const SECRET: &str = "whsec_test";

const CONFIG: &str = r#"
[plans.pro]
credits = 1000
[[plans.pro.prices]]
id = "price_own"
currency = "usd"
interval = "month"
amount = 2000

[packs.small]
credits = 100
[[packs.small.prices]]
id = "price_small"
currency = "usd"
amount = 500

[experiments.pro_price]
plan = "pro"
[[experiments.pro_price.variants]]
name = "control"
[[experiments.pro_price.variants]]
name = "cheaper"
credits = 800
[[experiments.pro_price.variants.prices]]
id = "price_less"
currency = "usd"
interval = "month"
amount = 1500

[fraud]
card_accounts = 2
interval_ms = 200

[stripe]
secret_key = "sk_test_of_the_tests"
webhook_secrets = ["whsec_test"]
"#;

struct Shop {
    stripe: Stripe,
    faregate: Faregate,
}

impl Shop {
    fn open() -> Shop {
        let stripe = Stripe::start();
        for (id, amount, interval) in
            [("price_own", 2_000, "month"), ("price_less", 1_500, "month"), ("price_small", 500, "")]
        {
            stripe.price(&PriceSpec {
                id: Some(id.into()),
                product_name: id.into(),
                unit_amount: amount,
                currency: "usd".into(),
                interval: Some(interval.to_owned()).filter(|interval| !interval.is_empty()),
                live: false,
            });
        }
        let faregate = Faregate::start(Options::new().config(CONFIG).env("FAREGATE_STRIPE_API_BASE", stripe.url()));
        stripe.endpoint(&faregate.url("/api/billing/webhook"), &[SECRET]);
        Shop { stripe, faregate }
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.faregate.admin(Method::GET, path, None).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        answer.json()
    }

    async fn post(&self, path: &str, key: &str, body: Value) -> Answer {
        self.faregate.http.post(&self.faregate.url(path), key, &body).await
    }

    /// Pays, and waits for the credits that this brings beside the five of the sign-up. Answers the payment.
    async fn buy(&self, user: &str, key: &str, what: Value, card: &str, credits: i64) -> String {
        // The simulator's clock stands still, and a payment from before the user saw the price is no conversion.
        self.stripe.advance(jiff::Timestamp::now().as_second() + 1).unwrap();
        let known: Vec<Value> = self.stripe.objects(Kind::PaymentIntent);
        let page = self.post("/api/billing/checkout", key, what).await;
        assert_eq!(page.status, StatusCode::CREATED, "{}", page.text());
        self.stripe.complete_checkout(page.json()["id"].as_str().unwrap(), card).unwrap();
        eventually(SOON, "what was paid for", || async {
            let shown = self.faregate.show(user).await;
            (shown["credits"]["available"] == json!(credits + 5)).then_some(())
        })
        .await;
        let all = self.stripe.objects(Kind::PaymentIntent);
        let fresh = all.iter().find(|intent| known.iter().all(|other| other["id"] != intent["id"]));
        fresh.expect("a payment")["id"].as_str().unwrap().to_owned()
    }
}

/// Issue 5, points 6 and 7: users see the variant that is theirs, pay its price and get its credits; the report tells
/// conversion and revenue by variant, and what the command line prints is what was paid.
#[tokio::test(flavor = "multi_thread")]
async fn price_experiments_go_from_the_plans_to_the_report() {
    let shop = Shop::open();
    // By price: users, those who paid, and what came of it.
    let mut seen: BTreeMap<i64, (usize, usize)> = BTreeMap::from([(2_000, (0, 0)), (1_500, (0, 0))]);
    let mut cheap_payment = None;
    for number in 0..8 {
        let user = format!("user{number}");
        let key = shop.faregate.user(&user, "5").await;
        let plans = shop.faregate.http.get(&shop.faregate.url("/api/plans"), &key).await.json();
        let pro = plans["plans"].as_array().unwrap().iter().find(|plan| plan["name"] == "pro").unwrap().clone();
        let (amount, credits) = (pro["prices"][0]["amount"].as_i64().unwrap(), pro["credits"].as_i64().unwrap());
        let (users, paid) = seen.get_mut(&amount).expect("a price of the experiment");
        *users += 1;
        assert_eq!(credits, if amount == 1_500 { 800 } else { 1_000 });
        // The first two of each pay.
        if *paid < 2 {
            *paid += 1;
            // Each by a card of their own.
            let card = format!("41111111111110{number:02}");
            let payment = shop.buy(&user, &key, json!({"plan": "pro"}), &card, credits).await;
            let charged = shop.stripe.object(&payment);
            assert_eq!(charged["amount"], json!(amount), "what was shown is what is paid");
            if amount == 1_500 {
                cheap_payment = Some(payment);
            }
        }
    }
    assert!(seen.values().all(|(users, paid)| *users > 0 && *paid > 0), "both variants were drawn: {seen:?}");
    shop.stripe.refund(&cheap_payment.unwrap(), Some(600)).unwrap();

    let revenue = |amount: i64, refunded: i64| {
        let paid = seen[&amount].1;
        let sum = amount * i64::try_from(paid).unwrap();
        json!([{"currency": "usd", "purchases": paid, "amount": sum, "refunded": refunded, "net": sum - refunded}])
    };
    let reported = async || {
        let report = shop.get("/admin/v1/experiments").await;
        let variants = report["data"][0]["variants"].as_array()?.clone();
        let right = [("control", 2_000, 0), ("cheaper", 1_500, 600)].iter().all(|(name, amount, refunded)| {
            let variant = variants.iter().find(|variant| variant["name"] == *name).unwrap();
            let (users, paid) = seen[amount];
            variant["users"] == json!(users)
                && variant["converted"] == json!(paid)
                && variant["revenue"] == revenue(*amount, *refunded)
        });
        right.then_some(())
    };
    eventually(SOON, "the report by variant", reported).await;

    // The same money in the report of revenue, in JSON, as a table and as CSV.
    let all: i64 = seen.iter().map(|(amount, (_, paid))| amount * i64::try_from(*paid).unwrap()).sum();
    let subscriptions: usize = seen.values().map(|(_, paid)| paid).sum();
    let report = shop.get("/admin/v1/reports/revenue").await;
    let total =
        json!([{"currency": "usd", "purchases": subscriptions, "amount": all, "refunded": 600, "net": all - 600}]);
    assert_eq!(report["totals"], total, "{report}");
    let monthly: i64 = report["mrr"].as_array().unwrap().iter().map(|row| row["amount"].as_i64().unwrap()).sum();
    assert_eq!(monthly, all, "each subscription by its own price: {report}");
    let (table, problems, fine) = shop.faregate.command(&["report", "revenue"]);
    assert!(fine && table.contains(&(all - 600).to_string()), "{table}{problems}");
    let (csv, problems, fine) = shop.faregate.command(&["report", "revenue", "--csv", "months"]);
    assert!(fine, "{problems}");
    let mut lines = csv.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let header = lines.next().unwrap();
    let column = header.iter().position(|name| *name == "net").unwrap_or_else(|| panic!("{csv}"));
    let net: i64 = lines.map(|line| line[column].parse::<i64>().unwrap()).sum();
    assert_eq!(net, all - 600, "{csv}");
}

/// Issue 5, point 4: accounts that pay with one card are caught by its fingerprint, and what Stripe warns of counts against
/// who paid; two with a card of their own are spared, and so is who paid like the one that was warned of.
#[tokio::test(flavor = "multi_thread")]
async fn cards_and_warnings_of_stripe_are_signals() {
    let shop = Shop::open();
    let cards = [("thief0", "4242424242424242"), ("thief1", "4242424242424242"), ("thief2", "4242424242424242")];
    let others = [("ann", "5555555555554444"), ("bob", "5555555555554444"), ("warned", "4111111111111111")];
    let mut payments = BTreeMap::new();
    for (user, card) in cards.into_iter().chain(others) {
        let key = shop.faregate.user(user, "5").await;
        payments.insert(user, shop.buy(user, &key, json!({"pack": "small"}), card, 100).await);
    }
    shop.stripe.fraud_warning(&payments["warned"]).unwrap();
    let signals = async |user: &str| {
        let rows = shop.get(&format!("/admin/v1/fraud?user={user}")).await;
        rows["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["signal"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    // What came within the last ten seconds is looked at later.
    for (user, signal) in [
        ("thief0", "shared_card"),
        ("thief1", "shared_card"),
        ("thief2", "shared_card"),
        ("warned", "early_fraud_warning"),
    ] {
        let raised = async || (signals(user).await == [signal]).then_some(());
        eventually(SOON, &format!("{signal} against {user}"), raised).await;
    }
    for user in ["ann", "bob"] {
        assert_eq!(signals(user).await, [""; 0], "{user}");
    }
    // What was bought stays usable; what was given for nothing is held back.
    let held = async || (shop.faregate.available("thief0").await == 100.0).then_some(());
    eventually(SOON, "the free credits are held back", held).await;
    assert_eq!(shop.faregate.available("ann").await, 105.0);
}
