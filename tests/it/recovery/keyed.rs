//! Charges with an Idempotency-Key and holds made through the API outlive the ledger that has them.

use hyper::Method;
use serde_json::{Value, json};

use super::{HEALED, Scene, rounds};
use crate::faults::Books;
use crate::support::http::{Answer, request};
use crate::support::{Faregate, Redis, eventually};

/// One user's calls to the credits API.
struct User<'a> {
    gate: &'a Faregate,
    key: String,
}

impl User<'_> {
    /// As a client does that may send again: until the ledger is there.
    async fn post(&self, path: &str, idempotency_key: &str, body: &Value) -> Answer {
        eventually(HEALED, &format!("{path} is answered"), || async {
            let mut request = request(Method::POST, &self.gate.url(path), &self.key, Some(body));
            if !idempotency_key.is_empty() {
                request.headers_mut().insert("idempotency-key", idempotency_key.parse().unwrap());
            }
            let answer = self.gate.http.call(request).await;
            (answer.status != 503).then_some(answer)
        })
        .await
    }

    async fn deduct(&self, key: &str, amount: u32) -> Answer {
        self.post("/api/credits/deduct", key, &json!({ "amount": amount })).await
    }

    async fn reserve(&self, key: &str, amount: u32) -> Answer {
        self.post("/api/credits/reserve", key, &json!({ "amount": amount, "expires_in": 3600 })).await
    }

    async fn settle(&self, hold: &Value, amount: u32) -> Answer {
        self.post("/api/credits/settle", "", &json!({ "id": hold["id"], "amount": amount })).await
    }

    async fn release(&self, hold: &Value) -> Answer {
        self.post("/api/credits/release", "", &json!({ "id": hold["id"] })).await
    }
}

fn same(first: &Answer, again: &Answer) {
    assert_eq!((again.status, again.text()), (first.status, first.text()));
    assert_eq!(again.header("idempotent-replayed"), "true");
}

/// Everything once before a loss, then everything again after it.
async fn outlives(scene: &mut Scene, name: &str, flushed: bool, lose: impl AsyncFnOnce(&mut Scene)) {
    let key = scene.gate.user(name, "100").await;
    let user = User { gate: &scene.gate, key: key.clone() };
    let charged = user.deduct("d", 3).await;
    assert_eq!(charged.status, 200, "{}", charged.text());
    let kept = user.reserve("r", 5).await;
    assert_eq!(kept.status, 201, "{}", kept.text());
    let [open, released, settled, late] = [7, 11, 13, 17].map(|amount| user.reserve("", amount));
    let (open, released) = (open.await.json(), released.await.json());
    let (settled, late) = (settled.await.json(), late.await.json());
    assert_eq!(user.release(&released).await.status, 200);
    assert_eq!(user.settle(&settled, 2).await.status, 200);
    if flushed {
        let count =
            format!("SELECT count(*), count(*) FILTER (WHERE held) FROM ledger_records WHERE user_id = '{name}'");
        eventually(HEALED, "all is in the store", || async { (scene.postgres.query(&count) == ["6|3"]).then_some(()) })
            .await;
    }
    lose(scene).await;
    let user = User { gate: &scene.gate, key };
    // The same again: the same answers, and nothing is charged.
    same(&charged, &user.deduct("d", 3).await);
    assert_eq!(user.deduct("d", 4).await.status, 422);
    same(&kept, &user.reserve("r", 5).await);
    // Each hold ends once.
    let settle = user.settle(&open, 4).await;
    assert_eq!((settle.status.as_u16(), settle.json()["charged"].to_string()), (200, "4".to_owned()));
    assert_eq!(user.settle(&open, 4).await.status, 409);
    assert_eq!(user.release(&open).await.status, 409);
    assert_eq!(user.settle(&released, 1).await.status, 409);
    assert_eq!(user.settle(&settled, 2).await.status, 409);
    assert_eq!(user.release(&kept.json()).await.status, 200);
    assert_eq!(user.settle(&kept.json(), 1).await.status, 409);
    assert_eq!(user.release(&late).await.status, 200);
    let books = eventually(HEALED, "the books balance", || async {
        let books = Books::read(&scene.gate, name).await;
        (books.balance() && books.usage.len() == 3).then_some(books)
    })
    .await;
    assert_eq!((books.charged, books.held, books.debt), (9_000_000, 0, 0));
    assert_eq!(books.available, 91_000_000);
}

/// failures 16, 23, 46: Redis is emptied. What was answered under a key is answered again and charged once, and open holds
/// can be settled: from the store where it has them, else from what the gateway remembers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_holds_outlive_an_emptied_redis() {
    let mut scene = Scene::start(Redis::durable());
    for round in 0..rounds() {
        let lose = async |scene: &mut Scene| assert_eq!(scene.redis.command(&["FLUSHALL"]), "OK");
        outlives(&mut scene, &format!("emptied-{round}"), round % 2 == 0, lose).await;
    }
    assert!(scene.gate.metric("faregate_ledger_reopenings_total").await >= rounds() as f64);
}

/// The gateway goes as well: what the store has is enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_holds_outlive_gateway_and_redis() {
    let mut scene = Scene::start(Redis::durable());
    let lose = async |scene: &mut Scene| {
        scene.gate.kill9();
        assert_eq!(scene.redis.command(&["FLUSHALL"]), "OK");
        scene.gate.restart();
    };
    outlives(&mut scene, "both", true, lose).await;
}

/// A hold that nobody remembers any more expires like any other: what it holds goes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holds_that_came_back_expire() {
    let mut scene = Scene::start(Redis::durable());
    let user = User { key: scene.gate.user("ann", "10").await, gate: &scene.gate };
    let body = json!({ "amount": 4, "expires_in": 3 });
    assert_eq!(user.post("/api/credits/reserve", "", &body).await.status, 201);
    eventually(HEALED, "it is in the store", || async {
        (scene.postgres.query("SELECT count(*) FROM ledger_records WHERE held") == ["1"]).then_some(())
    })
    .await;
    scene.gate.kill9();
    assert_eq!(scene.redis.command(&["FLUSHALL"]), "OK");
    scene.gate.restart();
    // Whoever looks loads the account.
    eventually(HEALED, "what was held is back", || async { (scene.gate.available("ann").await == 10.0).then_some(()) })
        .await;
    assert_eq!(scene.gate.held("ann").await, 0.0);
}
