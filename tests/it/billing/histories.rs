//! Random histories at one Stripe, with two gateways: one is told everything at once, in order and once, the other at the
//! end, shuffled and twice. They end with the same credits.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use faregate_sim::stripe::{Kind, signature_header};
use futures_util::StreamExt;
use http::{Method, StatusCode};
use http_body_util::Full;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::{CARD, CONFIG, SECRET, SOON, Shop};
use crate::support::http::request;
use crate::support::{Faregate, Options, eventually};

const DAY: i64 = 86_400;
const SEED: u64 = 0x5eed;
const ACTS: usize = 40;
const USERS: [&str; 4] = ["u1", "u2", "u3", "u4"];
/// Deliveries under way at once.
const AT_ONCE: usize = 16;

/// Each user's key, at the gateway that is told in order.
type Keys = BTreeMap<&'static str, String>;

#[tokio::test(flavor = "multi_thread")]
async fn shuffled_and_twice_over_postgres_and_redis_ends_as_in_order_and_once() {
    let ordered = Shop::start();
    let servers = tokio::task::block_in_place(|| (crate::support::Postgres::start(), crate::support::Redis::start()));
    let options = Options::new().config(CONFIG).env("FAREGATE_STRIPE_API_BASE", ordered.stripe.url());
    let options = options.store(servers.0.url()).ledger(servers.1.url()).upstream("http://127.0.0.1:9");
    let shuffled = tokio::task::block_in_place(|| [Faregate::start(options.clone()), Faregate::start(options)]);
    let mut keys = Keys::new();
    for user in USERS {
        for gate in [&ordered.faregate, &shuffled[0]] {
            let made = admin(gate, Method::POST, "/admin/v1/users", Some(json!({ "id": user }))).await;
            assert_eq!(made["id"], user, "{made}");
        }
        let path = format!("/admin/v1/users/{user}/keys");
        let made = admin(&ordered.faregate, Method::POST, &path, Some(json!({"name": "test"}))).await;
        keys.insert(user, made["key"].as_str().unwrap().to_owned());
    }
    let random = &mut StdRng::seed_from_u64(SEED);
    for number in 0..ACTS {
        if number % 14 == 13 {
            ordered.stripe.advance_by(31 * DAY + 7_200).unwrap();
        } else {
            let user = *USERS.choose(random).unwrap();
            act(&ordered, random, user, &keys).await;
        }
        ordered.quiet().await;
    }

    let mut events = ordered.stripe.events("*");
    events.extend(events.clone());
    events.shuffle(random);
    let sent = events.iter().enumerate().map(|(index, event)| deliver(&shuffled[index % 2], event.to_string()));
    let sent: Vec<StatusCode> = futures_util::stream::iter(sent).buffer_unordered(AT_ONCE).collect().await;
    assert!(sent.iter().all(|status| *status == StatusCode::OK), "{sent:?}");
    eventually(SOON * 2, "nothing is left pending", || async {
        let left = admin(&shuffled[0], Method::GET, "/admin/v1/events?state=pending", None).await;
        (left["data"] == json!([])).then_some(())
    })
    .await;
    for user in USERS {
        let expected = outcome(&ordered.faregate, user).await;
        for gate in &shuffled {
            eventually(SOON, &format!("{user} has {expected}"), || async {
                (outcome(gate, user).await == expected).then_some(())
            })
            .await;
        }
    }
    let parked = admin(&shuffled[0], Method::GET, "/admin/v1/events?state=parked", None).await;
    assert_eq!(parked["data"], json!([]));
    shuffled[0].audit().unwrap();
}

async fn admin(gate: &Faregate, method: Method, path: &str, body: Option<Value>) -> Value {
    let url = format!("http://{}{path}", gate.admin_addr());
    gate.http.call(request(method, &url, gate.admin_token(), body.as_ref())).await.json()
}

async fn outcome(gate: &Faregate, user: &str) -> Value {
    let shown = admin(gate, Method::GET, &format!("/admin/v1/users/{user}"), None).await;
    json!([shown["credits"], shown["plan"], shown["status"]])
}

async fn deliver(gate: &Faregate, payload: String) -> StatusCode {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let request = http::Request::post(gate.url("/api/billing/webhook"))
        .header("stripe-signature", signature_header(&[SECRET.to_owned()], at, payload.as_bytes()))
        .body(Full::from(payload))
        .unwrap();
    gate.http.call(request).await.status
}

/// One thing that a user, a bank or Stripe does.
async fn act(shop: &Shop, random: &mut StdRng, user: &str, keys: &Keys) {
    let call = async |method: Method, path: &str, body: Value| {
        let url = shop.faregate.url(path);
        shop.faregate.http.call(request(method, &url, &keys[user], Some(&body))).await
    };
    let buy = async |order: Value| {
        let page = call(Method::POST, "/api/billing/checkout", order).await;
        // Whoever has a plan cannot buy another one.
        if page.status == StatusCode::CREATED {
            shop.stripe.complete_checkout(page.json()["id"].as_str().unwrap(), CARD).unwrap();
        }
    };
    let payment = payment_of(shop, random, user);
    match (random.random_range(0..8), payment) {
        (0 | 1, _) => buy(json!({"plan": (["basic", "pro"].choose(random).unwrap())})).await,
        (2, _) => buy(json!({"pack": "small"})).await,
        (3, _) => {
            call(Method::POST, "/api/billing/subscription", json!({"plan": "pro"})).await;
        }
        (4, _) if random.random_bool(0.3) => {
            call(Method::DELETE, "/api/billing/subscription?at=now", json!({})).await;
        }
        (5, Some(payment)) => {
            let amount = payment["amount"].as_i64().unwrap() / random.random_range(1..4);
            let refund = shop.stripe.refund(payment["id"].as_str().unwrap(), Some(amount));
            if let (Ok(refund), true) = (refund, random.random_bool(0.3)) {
                shop.stripe.fail_refund(&refund).unwrap();
            }
        }
        (6 | 7, Some(payment)) => {
            let Ok(dispute) = shop.stripe.dispute(payment["id"].as_str().unwrap(), None) else { return };
            shop.quiet().await;
            // What is given back after its month lives on for a while; that depends on when it was taken, and should.
            shop.stripe.close_dispute(&dispute, random.random_bool(0.5)).unwrap();
        }
        _ => {}
    }
}

/// A payment of the user's that nobody disputed.
fn payment_of(shop: &Shop, random: &mut StdRng, user: &str) -> Option<Value> {
    let customers = shop.stripe.objects(Kind::Customer);
    let customer = customers.iter().find(|customer| customer["metadata"]["faregate_user"] == user)?["id"].clone();
    let disputes = shop.stripe.objects(Kind::Dispute);
    let fits = |payment: &Value| {
        let disputed = disputes.iter().any(|dispute| dispute["payment_intent"] == payment["id"]);
        payment["customer"] == customer && payment["status"] == "succeeded" && !disputed
    };
    let payments: Vec<Value> = shop.stripe.objects(Kind::PaymentIntent).into_iter().filter(fits).collect();
    payments.choose(random).cloned()
}
