//! Billing against the Stripe simulator: the real binary, webhooks over HTTP.

mod late;
mod lost;
mod money;
mod people;
mod renewal;
mod table;
mod topups;
mod webhooks;

use std::time::Duration;

use faregate_sim::stripe::{Kind, PriceSpec};
use http::{Method, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::support::http::request;
use crate::support::{Answer, Faregate, Options, Postgres, Redis, Stripe, eventually};

const SECRET: &str = "whsec_test";
const SOON: Duration = Duration::from_secs(20);
const CARD: &str = "pm_card_visa";

const CONFIG: &str = r#"
[plans.basic]
credits = 400
[[plans.basic.prices]]
id = "price_basic"
currency = "usd"
interval = "month"
amount = 1000

[plans.pro]
credits = 1000
rollover_cap = 300
[[plans.pro.prices]]
id = "price_pro"
currency = "usd"
interval = "month"
amount = 2000

[packs.small]
credits = 100
[[packs.small.prices]]
id = "price_small"
currency = "usd"
amount = 500

[stripe]
secret_key = "sk_test_of_the_tests"
webhook_secrets = ["whsec_test", "whsec_next"]
"#;

/// Runs tests over both pairs of ledger and store.
macro_rules! over_both {
    ($($test:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")] async fn $test() {
                super::$test(crate::billing::Shop::open().await).await;
            })*
        }
        mod distributed {
            $(#[tokio::test(flavor = "multi_thread")] async fn $test() {
                super::$test(crate::billing::Shop::open_replicated(1).await).await;
            })*
        }
    };
}
use over_both;

/// A gateway, a Stripe, and a user with a key.
struct Shop {
    stripe: Stripe,
    faregate: Faregate,
    /// Other replicas over the same Postgres and Redis.
    others: Vec<Faregate>,
    /// `None`: SQLite and the embedded ledger.
    servers: Option<(Postgres, Redis)>,
    key: String,
}

impl Shop {
    fn start() -> Shop {
        Shop::start_with(None, 1)
    }

    /// Over Postgres and Redis, with so many replicas; the first one takes the webhooks.
    fn replicated(replicas: usize) -> Shop {
        Shop::start_with(Some((Postgres::start(), Redis::start())), replicas)
    }

    fn start_with(servers: Option<(Postgres, Redis)>, replicas: usize) -> Shop {
        Shop::of(Stripe::start(), Options::new().config(CONFIG), servers, replicas)
    }

    /// With other settings than the usual ones.
    fn of(stripe: Stripe, options: Options, servers: Option<(Postgres, Redis)>, replicas: usize) -> Shop {
        for (id, amount, interval) in
            [("price_basic", 1_000, "month"), ("price_pro", 2_000, "month"), ("price_small", 500, "")]
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
        let options = options.env("FAREGATE_STRIPE_API_BASE", stripe.url());
        let options = match &servers {
            None => options,
            // The demo's upstream is for an empty store only; nobody calls this one.
            Some((postgres, redis)) => options.store(postgres.url()).ledger(redis.url()).upstream("http://127.0.0.1:9"),
        };
        let faregate = Faregate::start(options.clone());
        let others = (1..replicas).map(|_| Faregate::start(options.clone())).collect();
        stripe.endpoint(&faregate.url("/api/billing/webhook"), &[SECRET]);
        Shop { stripe, faregate, others, servers, key: String::new() }
    }

    /// With a user `ann` on no credits of her own.
    async fn open() -> Shop {
        Shop::start().with_ann().await
    }

    async fn open_replicated(replicas: usize) -> Shop {
        tokio::task::block_in_place(|| Shop::replicated(replicas)).with_ann().await
    }

    async fn with_ann(mut self) -> Shop {
        let made = self.admin(Method::POST, "/admin/v1/users", Some(json!({"id": "ann"}))).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
        let key = self.admin(Method::POST, "/admin/v1/users/ann/keys", Some(json!({"name": "test"}))).await.json();
        self.key = key["key"].as_str().unwrap().to_owned();
        self
    }

    async fn admin(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let url = format!("http://{}{path}", self.faregate.admin_addr());
        self.faregate.http.call(request(method, &url, self.faregate.admin_token(), body.as_ref())).await
    }

    async fn api(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let url = self.faregate.url(path);
        self.faregate.http.call(request(method, &url, &self.key, body.as_ref())).await
    }

    /// A checkout's session.
    async fn checkout(&self, body: Value) -> String {
        let page = self.api(Method::POST, "/api/billing/checkout", Some(body)).await;
        assert_eq!(page.status, StatusCode::CREATED, "{}", page.text());
        assert!(page.json()["url"].as_str().unwrap().starts_with(self.stripe.url()));
        page.json()["id"].as_str().unwrap().to_owned()
    }

    /// Buys, and waits for what it brings: `credits` in all.
    async fn buy(&self, body: Value, credits: i64) {
        let session = self.checkout(body).await;
        self.stripe.complete_checkout(&session, CARD).unwrap();
        self.has(credits).await;
    }

    /// A call to Stripe's API by somebody else, such as from its dashboard.
    async fn at_stripe(&self, method: Method, path: &str, form: &str) -> Value {
        let request = http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.stripe.url()))
            .header("authorization", "Bearer sk_test_of_the_tests")
            .header("content-type", "application/x-www-form-urlencoded");
        let answer = self.faregate.http.call(request.body(Full::from(form.to_owned())).unwrap()).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text());
        answer.json()
    }

    fn customer(&self) -> String {
        self.stripe.objects(Kind::Customer)[0]["id"].as_str().unwrap().to_owned()
    }

    /// Every event here: its type, its state, and what it failed with.
    async fn events(&self) -> Vec<(String, String, String)> {
        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.admin(Method::GET, &format!("/admin/v1/events?limit=500{cursor}"), None).await.json();
            let text = |event: &Value, name: &str| event[name].as_str().unwrap_or_default().to_owned();
            let events = page["data"].as_array().unwrap();
            found.extend(
                events.iter().map(|event| (text(event, "event_type"), text(event, "state"), text(event, "error"))),
            );
            let Some(next) = page["next"].as_str() else { return found };
            cursor = format!("&cursor={}", next.replace(' ', "%20"));
        }
    }

    /// Waits until every event was worked off.
    async fn quiet(&self) {
        assert!(self.stripe.delivered(SOON).await);
        eventually(SOON, "nothing is left pending", || async {
            self.events().await.iter().all(|(_, state, _)| state != "pending").then_some(())
        })
        .await;
    }

    async fn credits(&self) -> (i64, i64) {
        let user = self.admin(Method::GET, "/admin/v1/users/ann", None).await.json();
        (user["credits"]["available"].as_i64().unwrap_or(-1), user["credits"]["debt"].as_i64().unwrap_or(-1))
    }

    /// Waits until so much is available, beyond the five of the sign-up.
    async fn has(&self, credits: i64) {
        let wanted = (credits + 5, 0);
        let mut last = (0, 0);
        let deadline = std::time::Instant::now() + SOON;
        while last != wanted {
            assert!(
                std::time::Instant::now() < deadline,
                "{last:?} is not {wanted:?}: {}\n{}",
                self.admin(Method::GET, "/admin/v1/events?limit=50", None).await.text(),
                self.faregate.output()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
            last = self.credits().await;
        }
    }

    async fn subscription(&self) -> Value {
        let shown = self.api(Method::GET, "/api/billing/subscription", None).await;
        assert_eq!(shown.status, StatusCode::OK, "{}", shown.text());
        shown.json()
    }

    /// The invoice of the history that is so many from the newest.
    async fn invoice(&self, index: usize) -> Value {
        let history = self.api(Method::GET, "/api/billing/history", None).await.json();
        history["data"][index].clone()
    }

    async fn notified(&self, kind: &str) -> Value {
        eventually(SOON, kind, || async {
            let told = self.api(Method::GET, "/api/notifications", None).await.json();
            told["data"].as_array()?.iter().find(|notification| notification["kind"] == kind).cloned()
        })
        .await
    }

    async fn eventually_subscription(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        eventually(SOON, what, || async {
            let shown = self.subscription().await;
            holds(&shown).then_some(shown)
        })
        .await
    }
}
