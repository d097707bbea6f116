//! Credits follow money.

use http::{Method, StatusCode};
use serde_json::json;

use super::{CARD, SOON, Shop, over_both};
use crate::support::{Faregate, Options, eventually};

const DAY: i64 = 86_400;

over_both!(
    an_upgrade_is_paid_at_once_and_a_downgrade_waits,
    what_goes_back_to_the_payer_is_claimed_and_given_again,
    one_checkout_is_open_at_a_time,
    an_unpaid_renewal_is_told_and_recovers,
);

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_bought_renewed_and_ended() {
    a_plans_life(Shop::open().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_bought_renewed_and_ended_over_postgres_and_redis() {
    a_plans_life(Shop::open_replicated(2).await).await;
}

async fn a_plans_life(shop: Shop) {
    assert_eq!(shop.subscription().await, json!({"plan": "free", "subscription": null}));
    shop.buy(json!({"plan": "pro"}), 1_000).await;
    let standing = shop.subscription().await;
    assert_eq!((&standing["plan"], &standing["subscription"]["status"]), (&json!("pro"), &json!("active")));
    let invoice = shop.invoice(0).await;
    assert_eq!(
        (&invoice["status"], &invoice["amount"], &invoice["currency"]),
        (&json!("paid"), &json!(2_000), &json!("usd"))
    );
    // One subscription a user.
    let again = shop.api(Method::POST, "/api/billing/checkout", Some(json!({"plan": "pro"}))).await;
    assert_eq!(again.status, StatusCode::CONFLICT);
    let spent = shop.api(Method::POST, "/api/credits/deduct", Some(json!({"amount": 100}))).await;
    assert_eq!(spent.status, StatusCode::OK, "{}", spent.text());
    // Of 900 that are left 300 move on.
    shop.stripe.advance_by(31 * DAY + 7_200).unwrap();
    shop.has(1_300).await;
    let ended = shop.api(Method::DELETE, "/api/billing/subscription?at=period_end", None).await;
    assert_eq!((ended.status, &ended.json()["subscription"]["cancel_at_period_end"]), (StatusCode::OK, &json!(true)));
    let kept = shop.api(Method::POST, "/api/billing/subscription", Some(json!({"resume": true}))).await;
    assert_eq!((kept.status, &kept.json()["subscription"]["cancel_at_period_end"]), (StatusCode::OK, &json!(false)));
    let ended = shop.api(Method::DELETE, "/api/billing/subscription?at=now", None).await;
    assert_eq!((ended.status, &ended.json()["plan"]), (StatusCode::OK, &json!("free")));
    shop.has(0).await;
}

async fn an_upgrade_is_paid_at_once_and_a_downgrade_waits(shop: Shop) {
    shop.buy(json!({"plan": "basic"}), 400).await;
    let change = |body| shop.api(Method::POST, "/api/billing/subscription", Some(body));
    let preview = change(json!({"plan": "pro", "preview": true})).await;
    assert_eq!(
        preview.json(),
        json!({"takes_effect": "now", "amount_due": 1_000, "currency": "usd"}),
        "{}",
        preview.text()
    );
    let upgraded = change(json!({"plan": "pro"})).await;
    assert_eq!((upgraded.status, &upgraded.json()["plan"]), (StatusCode::OK, &json!("pro")), "{}", upgraded.text());
    shop.has(1_000).await;
    let preview = change(json!({"plan": "basic", "preview": true})).await;
    assert_eq!(preview.json(), json!({"takes_effect": "period_end", "amount_due": 0, "currency": "usd"}));
    let downgraded = change(json!({"plan": "basic"})).await;
    let next = &downgraded.json()["subscription"]["next_plan"];
    assert_eq!((&downgraded.json()["plan"], next), (&json!("pro"), &json!("basic")), "{}", downgraded.text());
    shop.stripe.advance_by(31 * DAY + 7_200).unwrap();
    shop.eventually_subscription("the cheaper plan", |shown| shown["plan"] == "basic").await;
    // The upgrade's own 600, of which 300 move on.
    shop.has(700).await;
}

/// failures 40, over HTTP.
async fn what_goes_back_to_the_payer_is_claimed_and_given_again(shop: Shop) {
    shop.buy(json!({"pack": "small"}), 100).await;
    let session = shop.stripe.objects(faregate_sim::stripe::Kind::PaymentIntent);
    let payment = session[0]["id"].as_str().unwrap().to_owned();
    let refund = shop.stripe.refund(&payment, Some(250)).unwrap();
    shop.has(50).await;
    shop.stripe.fail_refund(&refund).unwrap();
    shop.has(100).await;
    let dispute = shop.stripe.dispute(&payment, None).unwrap();
    shop.has(0).await;
    shop.notified("account_frozen").await;
    shop.stripe.close_dispute(&dispute, true).unwrap();
    shop.has(100).await;
    shop.notified("account_unfrozen").await;
    let history = shop.invoice(0).await;
    assert_eq!(
        (&history["kind"], &history["amount"], &history["status"]),
        (&json!("pack"), &json!(500), &json!("paid"))
    );
}

/// failures 39: two tabs get one page; another order closes it.
async fn one_checkout_is_open_at_a_time(shop: Shop) {
    let both = tokio::join!(shop.checkout(json!({"plan": "pro"})), shop.checkout(json!({"plan": "pro"})));
    assert_eq!(both.0, both.1);
    let pack = shop.checkout(json!({"pack": "small"})).await;
    assert!(shop.stripe.complete_checkout(&both.0, CARD).is_err(), "the first page is closed");
    shop.stripe.complete_checkout(&pack, CARD).unwrap();
    shop.has(100).await;
    assert_eq!(shop.stripe.objects(faregate_sim::stripe::Kind::Customer).len(), 1);
    shop.buy(json!({"plan": "pro"}), 1_100).await;
    assert_eq!(shop.stripe.objects(faregate_sim::stripe::Kind::Customer).len(), 1);
}

async fn an_unpaid_renewal_is_told_and_recovers(shop: Shop) {
    use faregate_sim::stripe::Behaviour;
    shop.buy(json!({"plan": "pro"}), 1_000).await;
    let customer = shop.stripe.objects(faregate_sim::stripe::Kind::Customer)[0]["id"].as_str().unwrap().to_owned();
    shop.stripe.set_behaviour(&customer, Some(Behaviour::Declines("card_declined".into())));
    shop.stripe.advance_by(31 * DAY + 7_200).unwrap();
    let shown =
        shop.eventually_subscription("a payment is due", |shown| shown["subscription"]["status"] == "past_due").await;
    assert!(
        shown["subscription"]["pay_url"].is_string() && shown["subscription"]["grace_ends_at"].is_string(),
        "{shown}"
    );
    let told = shop.notified("payment_failed").await;
    assert_eq!((&told["data"]["source"], &told["data"]["amount"]), (&json!("invoice"), &json!(2_000)), "{told}");
    shop.notified("subscription_changed").await;
    shop.has(1_000).await;
    shop.stripe.set_behaviour(&customer, None);
    // Stripe tries again after three days, an hour later in the day than the period's end.
    shop.stripe.advance_by(4 * DAY).unwrap();
    shop.eventually_subscription("it is paid", |shown| shown["subscription"]["status"] == "active").await;
    shop.has(1_300).await;
    let portal = shop.api(Method::POST, "/api/billing/portal", Some(json!({"flow": "payment_method"}))).await;
    assert_eq!(portal.status, StatusCode::CREATED, "{}", portal.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn offers_are_open_to_everybody() {
    let shop = Shop::start();
    let offers = shop.faregate.http.get(&shop.faregate.url("/api/plans"), "").await.json();
    let names: Vec<&str> =
        offers["plans"].as_array().unwrap().iter().filter_map(|plan| plan["name"].as_str()).collect();
    assert_eq!(names, ["basic", "free", "pro"]);
    assert_eq!(offers["packs"][0]["prices"], json!([{"currency": "usd", "amount": 500}]));
    let (told, errors, done) = shop.faregate.command(&["check", "--online"]);
    assert!(done && told.contains("price_pro: as at Stripe"), "{told}{errors}");
}

/// As a newcomer walks it: by the lines that the start prints.
#[tokio::test(flavor = "multi_thread")]
async fn the_demo_leads_from_a_checkout_to_credits() {
    let faregate = Faregate::start(Options::new().command(&["demo", "--stripe"]));
    let greeting = eventually(SOON, "it greets", || async {
        Some(faregate.output()).filter(|output| output.contains("/_sim/advance"))
    })
    .await;
    // A shell runs what was printed; curl's own words do not matter.
    let shell = async |line: String| {
        let ran = tokio::task::spawn_blocking(move || {
            std::process::Command::new("sh").arg("-c").arg(format!("{line} --silent --show-error")).output().unwrap()
        });
        let ran = ran.await.unwrap();
        let (told, errors) = (String::from_utf8(ran.stdout).unwrap(), String::from_utf8(ran.stderr).unwrap());
        assert!(ran.status.success(), "{told}{errors}");
        told
    };
    let printed = async |what: &str| {
        let line = greeting.lines().find(|line| line.trim_start().starts_with("curl ") && line.contains(what));
        shell(line.unwrap_or_else(|| panic!("no line with {what}")).trim().to_owned()).await
    };
    let json_of = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
    let has = async |credits: i64| {
        eventually(SOON, "the credits are there", || async {
            let check = json_of(printed("/credits/check").await);
            (check["available"] == credits && check["plan"] == "pro").then_some(())
        })
        .await;
    };
    for order in ["\"plan\"", "\"pack\""] {
        let page = json_of(printed(order).await);
        let url = page["url"].as_str().unwrap();
        let shown = shell(format!("curl --fail '{url}'")).await;
        assert!(shown.contains("<form"), "{shown}");
        shell(format!("curl --fail -d card=pm_card_visa '{url}'")).await;
        has(if order.contains("plan") { 1_005 } else { 1_105 }).await;
    }
    let subscription = json_of(printed("/billing/subscription").await);
    assert_eq!((&subscription["plan"], &subscription["subscription"]["status"]), (&json!("pro"), &json!("active")));
    // Of the thousand that are left three hundred move on.
    printed("/_sim/advance").await;
    has(5 + 100 + 1_000 + 300).await;
}
