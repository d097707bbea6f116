//! What users see of a change at Stripe, and what Stripe sees of a change of the user.

use std::time::Instant;

use bytes::Bytes;
use faregate_sim::stack_auth::{Message, Person, sign};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use super::{CONFIG, SOON, Shop, over_both};
use crate::support::http::request;
use crate::support::stack_auth::WEBHOOK_SECRET;
use crate::support::{Options, StackAuth, Stripe, eventually};

over_both!(a_change_at_stripe_is_on_the_event_stream);

/// The plan is changed in Stripe's portal; whoever listens hears of it, with the credits that it brought.
async fn a_change_at_stripe_is_on_the_event_stream(shop: Shop) {
    shop.buy(json!({"plan": "basic"}), 400).await;
    shop.quiet().await;
    let ask = request(Method::GET, &shop.faregate.url("/api/events"), &shop.key, None);
    let response = shop.faregate.http.send(ask).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut stream = crate::support::http::Stream::of(response);
    let mut heard = String::new();
    let mut until = async |what: &str| {
        let reading = async {
            while !heard.contains(what) {
                heard.push_str(std::str::from_utf8(&stream.chunk().await.unwrap().unwrap()).unwrap());
            }
        };
        tokio::time::timeout(SOON, reading).await.unwrap_or_else(|_| panic!("{what} is not told"));
        heard.clear();
    };
    until("snapshot").await;
    let subscription = shop.stripe.objects(faregate_sim::stripe::Kind::Subscription)[0].clone();
    let (id, item) = (subscription["id"].as_str().unwrap(), subscription["items"]["data"][0]["id"].as_str().unwrap());
    let form = format!("items[0][id]={item}&items[0][price]=price_pro&proration_behavior=always_invoice");
    let begun = Instant::now();
    shop.at_stripe(Method::POST, &format!("/v1/subscriptions/{id}"), &form).await;
    until("subscription_changed").await;
    println!("a plan change at Stripe was on the event stream after {} ms", begun.elapsed().as_millis());
    shop.has(1_000).await;
}

async fn tell(shop: &Shop, message: &Message) {
    let at = jiff::Timestamp::now().as_second();
    let told = Request::builder()
        .method(Method::POST)
        .uri(shop.faregate.url("/api/auth/webhook"))
        .header("content-type", "application/json")
        .header("svix-id", &message.id)
        .header("svix-timestamp", at.to_string())
        .header("svix-signature", sign(WEBHOOK_SECRET, &message.id, at, &message.body))
        .body(Full::new(Bytes::from(message.body.clone())))
        .unwrap();
    let answer = shop.faregate.http.call(told).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
}

/// The customer at Stripe is called as the user is; who leaves pays no more, and has no page left to pay on.
#[tokio::test(flavor = "multi_thread")]
async fn stripe_follows_whom_the_issuer_renames_and_deletes() {
    let issuer = StackAuth::start();
    let options = Options::new().config(CONFIG);
    let options =
        options.env("FAREGATE_STACK_PROJECT_ID", issuer.project()).env("FAREGATE_STACK_BASE_URL", issuer.url());
    let options = options.env("FAREGATE_STACK_WEBHOOK_SECRET", WEBHOOK_SECRET);
    let mut shop = Shop::of(Stripe::start(), options, None, 1);
    let id = "3b2f6d9e-0001-4000-8000-00000000000b";
    let person = Person { name: Some("Bob".into()), ..Person::new(id, "bob@example.com") };
    let created = issuer.message("user.created", &person);
    let second = jiff::Timestamp::now().as_second();
    tell(&shop, &created).await;
    let keys = format!("/admin/v1/users/{id}/keys");
    let key = eventually(SOON, "the user is there", || async {
        let made = shop.admin(Method::POST, &keys, Some(json!({"name": "test"}))).await;
        (made.status == StatusCode::CREATED).then(|| made.json()["key"].as_str().unwrap().to_owned())
    })
    .await;
    shop.key = key;
    let session = shop.checkout(json!({"plan": "pro"})).await;
    shop.stripe.complete_checkout(&session, super::CARD).unwrap();
    shop.eventually_subscription("it is paid", |shown| shown["plan"] == "pro").await;
    let customer = || shop.stripe.object(&shop.customer());
    assert_eq!((&customer()["name"], &customer()["email"]), (&json!("Bob"), &json!("bob@example.com")));

    // Of what is told in one second the first stands: the issuer's ids say no more.
    let next = || async { (jiff::Timestamp::now().as_second() > second).then_some(()) };
    eventually(SOON, "the next second", next).await;
    let renamed = Person { name: Some("Robert".into()), email: Some("robert@example.com".into()), ..person.clone() };
    tell(&shop, &issuer.message("user.updated", &renamed)).await;
    eventually(SOON, "the customer has the new name", || async {
        let found = customer();
        (found["name"] == "Robert" && found["email"] == "robert@example.com").then_some(())
    })
    .await;

    let page = shop.checkout(json!({"pack": "small"})).await;
    tell(&shop, &issuer.message("user.deleted", &renamed)).await;
    let subscription = shop.stripe.objects(faregate_sim::stripe::Kind::Subscription)[0]["id"].clone();
    let status = |id: &Value| shop.stripe.object(id.as_str().unwrap())["status"].clone();
    eventually(SOON, "the subscription is ended at Stripe", || async {
        (status(&subscription) == "canceled" && status(&json!(page)) == "expired").then_some(())
    })
    .await;
    eventually(SOON, "the user is out", || async {
        let check = shop.api(Method::GET, "/api/credits/check", None).await;
        (check.status == StatusCode::UNAUTHORIZED || check.status == StatusCode::FORBIDDEN).then_some(())
    })
    .await;
    let user = shop.admin(Method::GET, &format!("/admin/v1/users/{id}"), None).await.json();
    assert_eq!(user["status"], "closed", "{user}");
}
