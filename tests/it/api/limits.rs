//! How often the API may be called, and by whom; what browsers of other origins may do. Over the real program: where a
//! connection comes from is known there only.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::rig::headers;
use crate::support::http::{Answer, request};
use crate::support::{Faregate, Options, Sim, eventually};

/// Longer than any of the limits below takes to allow one more.
const SOON: Duration = Duration::from_secs(20);
const CHECK: &str = "/api/credits/check";
const CHAT: &str = "/v1/chat/completions";

struct Gate {
    _sim: Sim,
    faregate: Faregate,
}

impl Gate {
    /// Behind one proxy, which is the test.
    fn start() -> Gate {
        Gate::with(Options::new().set("server.trusted_proxies", 1))
    }

    fn with(options: Options) -> Gate {
        let sim = Sim::start();
        let options = options.upstream(sim.url()).set("api.user_requests_per_minute", 60);
        let options = options.set("api.address_requests_per_minute", 120).set("api.failures_per_minute", 30);
        Gate { _sim: sim, faregate: Faregate::start(options) }
    }

    /// A call as the proxy passes it on.
    async fn call(&self, method: Method, path: &str, key: &str, forwarded: &str, body: Option<&Value>) -> Answer {
        self.send(&self.faregate.url(path), method, key, &[("x-forwarded-for", forwarded)], body).await
    }

    async fn get(&self, path: &str, key: &str, forwarded: &str) -> Answer {
        self.call(Method::GET, path, key, forwarded, None).await
    }

    async fn chat(&self, key: &str, forwarded: &str) -> Answer {
        let body = json!({"model": "demo", "messages": [{"role": "user", "content": "hi"}]});
        self.call(Method::POST, CHAT, key, forwarded, Some(&body)).await
    }

    async fn operator(&self, token: &str, forwarded: &str) -> Answer {
        let url = format!("http://{}/admin/v1/users", self.faregate.admin_addr());
        self.send(&url, Method::GET, token, &[("x-forwarded-for", forwarded)], None).await
    }

    async fn send(
        &self,
        url: &str,
        method: Method,
        key: &str,
        more: &[(&'static str, &str)],
        body: Option<&Value>,
    ) -> Answer {
        let mut request = request(method, url, key, body);
        request.headers_mut().extend(headers(more));
        self.faregate.http.call(request).await
    }

    /// Calls until one is refused: how many were not, and the refusal.
    async fn until_refused(&self, path: &str, key: &str, forwarded: &str) -> (usize, Answer) {
        for number in 0..300 {
            let answer = self.get(path, key, forwarded).await;
            if answer.status == StatusCode::TOO_MANY_REQUESTS {
                return (number, answer);
            }
            assert!(answer.status.is_success(), "{}", answer.text());
        }
        panic!("300 calls were let through");
    }
}

fn is_limited(answer: &Answer) -> bool {
    let wait = answer.header("retry-after").parse::<u64>().is_ok_and(|wait| (1..=60).contains(&wait));
    answer.status == StatusCode::TOO_MANY_REQUESTS && wait && !answer.headers.contains_key("x-should-retry")
}

/// failures 12, 13: a user is limited by who was authenticated, over all keys and addresses and whatever else a call
/// says; a refused call does nothing; the limit passes; nobody else is held up.
#[tokio::test]
async fn a_user_is_limited_whatever_they_call_themselves() {
    let gate = Gate::start();
    let (ann, bob) = (gate.faregate.user("ann", "50").await, gate.faregate.user("bob", "50").await);
    let (calls, refused) = gate.until_refused(CHECK, &ann, "203.0.113.1").await;
    assert!((60..70).contains(&calls) && is_limited(&refused), "{calls}: {}", refused.text());
    assert_eq!(refused.json()["type"], "urn:faregate:problem:rate-limited");
    let other = gate.faregate.key("ann").await;
    let body = json!({"amount": 1});
    let more = [("x-forwarded-for", "198.51.100.9"), ("x-faregate-user", "somebody"), ("x-request-id", "another")];
    let url = gate.faregate.url("/api/credits/deduct");
    let mut refusals = 0;
    for _ in 0..5 {
        let answer = gate.send(&url, Method::POST, &other, &more, Some(&body)).await;
        refusals += usize::from(is_limited(&answer));
    }
    assert!(refusals >= 3, "another key and another address are the same user");
    let charged = 50.0 - gate.faregate.available("ann").await;
    assert_eq!(charged, f64::from(5 - u32::try_from(refusals).unwrap()), "a refused call costs nothing");
    assert_eq!(gate.get(CHECK, &bob, "203.0.113.1").await.status, StatusCode::OK);
    assert_eq!(gate.chat(&ann, "203.0.113.1").await.status, StatusCode::OK, "the proxy has the plan's limits");
    let again = async || gate.get(CHECK, &ann, "203.0.113.1").await.status.is_success().then_some(());
    eventually(SOON, "the limit passes", again).await;
    // The product's backend makes everybody's calls.
    let made = gate.faregate.admin(Method::POST, "/admin/v1/keys", Some(json!({"name": "app"}))).await.json();
    let service = made["key"].as_str().unwrap();
    for _ in 0..130 {
        let more = [("x-forwarded-for", "203.0.113.1"), ("x-faregate-user", "bob")];
        let answer = gate.send(&gate.faregate.url(CHECK), Method::GET, service, &more, None).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    }
}

/// failures 13: an address is where the last of our proxies was called from, and a block of IPv6 is one.
#[tokio::test]
async fn an_address_is_limited_by_its_prefix_and_no_header_helps() {
    let gate = Gate::start();
    let (calls, refused) = gate.until_refused("/api/plans", "", "2001:db8::1").await;
    assert!((120..135).contains(&calls) && is_limited(&refused), "{calls}: {}", refused.text());
    let limited = async |forwarded: &str| {
        let mut refused = 0;
        for _ in 0..5 {
            refused += usize::from(is_limited(&gate.get("/api/plans", "", forwarded).await));
        }
        refused >= 2
    };
    assert!(limited("2001:db8::2").await, "of the same /64");
    assert!(limited("9.9.9.9, 2001:db8::3").await, "what the client wrote stands further left");
    assert!(limited("2001:db8::4, [2001:db8::5]:443").await);
    assert!(!limited("2001:db8:0:1::1").await, "another /64");
    assert!(!limited("203.0.113.9").await);
    let ann = gate.faregate.user("ann", "5").await;
    let mut refused = 0;
    for _ in 0..5 {
        refused += usize::from(is_limited(&gate.get(CHECK, &ann, "2001:db8::6").await));
    }
    assert!(refused >= 2, "known users of the address, too");
    let body = json!({});
    for webhook in ["/api/billing/webhook", "/api/auth/webhook"] {
        let answer = gate.call(Method::POST, webhook, "", "2001:db8::1", Some(&body)).await;
        assert_ne!(answer.status, StatusCode::TOO_MANY_REQUESTS, "who signs is not counted");
    }
    let again = async || gate.get("/api/plans", "", "2001:db8::1").await.status.is_success().then_some(());
    eventually(SOON, "the limit passes", again).await;
}

/// Wrong keys from one address, on the proxy and on the API, are refused before anybody is asked; keys in use go on.
#[tokio::test]
async fn wrong_keys_from_one_address_have_to_wait() {
    let gate = Gate::start();
    let (ann, bob) = (gate.faregate.user("ann", "50").await, gate.faregate.user("bob", "50").await);
    assert_eq!(gate.chat(&ann, "203.0.113.1").await.status, StatusCode::OK);
    let wrong = |number: usize| format!("fg_live_{number:024}");
    let mut refusals = Vec::new();
    for number in 0..40 {
        let answer = match number % 2 {
            0 => gate.chat(&wrong(number), "203.0.113.1").await,
            _ => gate.get(CHECK, &wrong(number), "203.0.113.1").await,
        };
        assert!([401, 429].contains(&answer.status.as_u16()), "{}", answer.text());
        refusals.push(answer);
    }
    let told = refusals.iter().filter(|answer| answer.status == StatusCode::UNAUTHORIZED).count();
    assert!((30..36).contains(&told), "{told} were told that the key is wrong");
    assert!(refusals.iter().skip(30).filter(|answer| is_limited(answer)).count() >= 4);
    // A key that is right, but was not in use here: its owner comes back a moment later.
    let new = async || gate.chat(&bob, "203.0.113.1").await.status;
    let mut statuses = Vec::new();
    for number in 0..5 {
        gate.chat(&wrong(100 + number), "203.0.113.1").await;
        statuses.push(new().await);
    }
    assert_eq!(statuses[0], StatusCode::TOO_MANY_REQUESTS, "{statuses:?}");
    assert_eq!(gate.chat(&ann, "203.0.113.1").await.status, StatusCode::OK, "who is known goes on");
    let cy = gate.faregate.user("cy", "50").await;
    assert_eq!(gate.chat(&cy, "203.0.113.2").await.status, StatusCode::OK, "another address");
    let later = async || (new().await == StatusCode::OK).then_some(());
    eventually(SOON, "the wait is over", later).await;
    assert_eq!(gate.faregate.usage_of("bob", 1).await.len(), 1, "a refused request is no usage");
}

/// The operator's token cannot be guessed at speed: beyond some wrong ones not even the right one is looked at.
#[tokio::test]
async fn wrong_admin_tokens_have_to_wait() {
    let gate = Gate::start();
    let (token, from) = (gate.faregate.admin_token(), "2001:db8::1");
    assert_eq!(gate.operator(token, from).await.status, StatusCode::OK);
    let mut last = None;
    for number in 0..45 {
        last = Some(gate.operator(&format!("guess-{number}"), from).await);
    }
    let last = last.unwrap();
    assert!(is_limited(&last), "{} {}", last.status, last.text());
    assert_eq!(gate.operator(token, "2001:db8::2").await.status, StatusCode::TOO_MANY_REQUESTS, "of the same /64");
    assert_eq!(gate.operator(token, "203.0.113.1").await.status, StatusCode::OK);
    let again = async || gate.operator(token, from).await.status.is_success().then_some(());
    eventually(SOON, "the wait is over", again).await;
}

/// failures 13: without proxies of ours nobody's X-Forwarded-For is believed.
#[tokio::test]
async fn a_forged_address_is_no_way_out() {
    let gate = Gate::with(Options::new());
    let mut refused = 0;
    for number in 0..60 {
        let answer = gate.get(CHECK, &format!("fg_live_{number}"), &format!("203.0.113.{number}")).await;
        refused += usize::from(is_limited(&answer));
    }
    assert!(refused >= 20, "{refused} of 60 were refused");
}

/// Browsers of named origins may use the proxy as they may the API: preflights are answered without the upstream, and
/// what the answer says of credits can be read.
#[tokio::test]
async fn browsers_of_named_origins_may_use_the_proxy() {
    let sim = Sim::start();
    let options = Options::new().upstream(sim.url()).config("[cors]\norigins = [\"https://app.example\"]\n");
    let faregate = Faregate::start(options);
    let key = faregate.user("ann", "5").await;
    let body = json!({"model": "demo", "messages": [{"role": "user", "content": "hi"}]});
    let send = async |method: Method, path: &str, key: &str, more: &[(&'static str, &str)]| {
        let body = Some(&body).filter(|_| method == Method::POST);
        let mut request = request(method, &faregate.url(path), key, body);
        request.headers_mut().extend(headers(more));
        faregate.http.call(request).await
    };
    let app = ("origin", "https://app.example");
    let asks = ("access-control-request-method", "POST");
    let names = ("access-control-request-headers", "authorization,x-stainless-lang,x-faregate-user");
    for path in [CHAT, "/v1/messages"] {
        let told = send(Method::OPTIONS, path, "", &[app, asks, names]).await;
        assert_eq!(told.status, StatusCode::NO_CONTENT, "{}", told.text());
        assert_eq!(told.header("access-control-allow-origin"), app.1);
        assert_eq!(told.header("access-control-allow-headers"), "authorization, x-stainless-lang");
        assert!(told.header("access-control-allow-methods").contains("POST"));
        assert!(!told.headers.contains_key("access-control-allow-credentials"));
        let stranger = send(Method::OPTIONS, path, "", &[("origin", "https://evil.example"), asks, names]).await;
        assert!(!stranger.headers.contains_key("access-control-allow-origin"));
        assert_eq!(stranger.header("vary"), "origin");
    }
    assert!(sim.stats().last().is_none(), "no preflight reaches the upstream");
    let answer = send(Method::POST, CHAT, &key, &[app]).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (StatusCode::OK, app.1));
    for exposed in ["x-credits-remaining", "x-credits-cost", "x-request-id", "retry-after"] {
        assert!(answer.header("access-control-expose-headers").contains(exposed), "{exposed}");
    }
    assert!(answer.headers.get_all("vary").iter().any(|vary| vary == "origin"));
    let refused = send(Method::POST, CHAT, "fg_live_wrong", &[app]).await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (StatusCode::UNAUTHORIZED, app.1));
    let stranger = send(Method::POST, CHAT, &key, &[("origin", "https://evil.example")]).await;
    assert!(!stranger.headers.contains_key("access-control-allow-origin"));
    assert_eq!(send(Method::POST, CHAT, &key, &[]).await.header("vary"), "origin");
    // Without origins in the settings all of this is the route's own business.
    let plain = Faregate::start(Options::new().upstream(sim.url()));
    let mut request = request(Method::OPTIONS, &plain.url(CHAT), "", None);
    request.headers_mut().extend(headers(&[app, asks]));
    let told = plain.http.call(request).await;
    assert_eq!(told.status, StatusCode::UNAUTHORIZED);
    assert!(!told.headers.contains_key("access-control-allow-origin") && !told.headers.contains_key("vary"));
}
