//! Enforcement that is off, tried out, or on; settings that change while the gateway runs; what users may say.

use std::path::PathBuf;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::http::{Answer, request};
use crate::support::{Faregate, Options, Redis, Sim, eventually};

const SOON: Duration = Duration::from_secs(15);

struct Setting {
    sim: Sim,
    faregate: Faregate,
}

impl Setting {
    fn start(toml: &str) -> Setting {
        Setting::with(Options::new(), toml)
    }

    fn with(options: Options, toml: &str) -> Setting {
        let sim = Sim::start();
        let faregate = Faregate::start(options.upstream(sim.url()).config(toml));
        Setting { sim, faregate }
    }

    async fn chat(&self, key: &str) -> Answer {
        let body = json!({"model": "gpt-4", "messages": [{"role": "user", "content": "hello"}]});
        self.post("/v1/chat/completions", key, &body).await
    }

    async fn post(&self, path: &str, key: &str, body: &Value) -> Answer {
        self.faregate.http.post(&self.faregate.url(path), key, body).await
    }

    /// Available and debt, once nothing is held.
    async fn credits(&self, user: &str) -> (String, String) {
        eventually(SOON, "nothing is held", || async {
            let credits = self.faregate.show(user).await["credits"].clone();
            (credits["held"] == 0).then(|| (credits["available"].to_string(), credits["debt"].to_string()))
        })
        .await
    }

    async fn spared(&self, reason: &str, route: &str) -> f64 {
        let name = format!("faregate_shadow_refusals_total{{reason=\"{reason}\",route=\"{route}\"}}");
        self.faregate.metric(&name).await
    }

    fn file(&self) -> PathBuf {
        self.faregate.data_dir().parent().unwrap().join("faregate.toml")
    }

    async fn reloads(&self, result: &str) -> f64 {
        self.faregate.metric(&format!("faregate_config_reloads_total{{result=\"{result}\"}}")).await
    }

    /// Writes new settings, in one step as an operator's tool does, and waits until they were read.
    async fn settings(&self, toml: &str, result: &str) {
        let before = self.reloads(result).await;
        let fresh = self.file().with_extension("fresh");
        std::fs::write(&fresh, toml).unwrap();
        std::fs::rename(&fresh, self.file()).unwrap();
        eventually(SOON, "the settings are read again", || async {
            (self.reloads(result).await > before).then_some(())
        })
        .await;
    }
}

fn mode(mode: &str, rest: &str) -> String {
    format!("[enforcement]\nmode = \"{mode}\"\n{rest}\n[plans.free]\nsignup_credits = 3\nrequests_per_minute = 100\n")
}

/// Issue 5, point 7: shadow meters, logs and counts what it would have refused, and refuses nothing. Balances fall as
/// they would have, and never below nothing.
async fn nothing_is_refused_in_shadow(options: Options) {
    let setting = Setting::with(options, &mode("shadow", ""));
    let key = setting.faregate.user("ann", "3").await;
    for _ in 0..5 {
        assert_eq!(setting.chat(&key).await.status, StatusCode::OK);
    }
    assert_eq!(setting.credits("ann").await, ("0".into(), "0".into()));
    let rows = setting.faregate.usage_of("ann", 5).await;
    let charged: f64 = rows.iter().map(|row| row["credits"].as_f64().unwrap()).sum();
    assert_eq!((rows.len(), charged), (5, 3.0));
    assert_eq!(setting.spared("insufficient_credits", "openai").await, 2.0);
    assert!(setting.faregate.output().contains("would have been refused"), "{}", setting.faregate.output());

    let deducted = setting.post("/api/credits/deduct", &key, &json!({"amount": 1})).await;
    assert_eq!((deducted.status, &deducted.json()["charged"]), (StatusCode::OK, &json!(0)));
    assert_eq!(setting.spared("insufficient_credits", "api").await, 1.0);
    a_hold_is_spared(&setting, &key).await;
    setting.faregate.admin(Method::POST, "/admin/v1/users/ann/freeze", None).await;
    assert_eq!(setting.chat(&key).await.status, StatusCode::OK);
    assert_eq!(setting.spared("forbidden", "openai").await, 1.0);
    assert_eq!(
        setting.chat("fg_live_nobody").await.status,
        StatusCode::UNAUTHORIZED,
        "who it is matters in every mode"
    );
    // New credits are all there: nothing was left owing.
    setting.faregate.admin(Method::DELETE, "/admin/v1/users/ann/freeze", None).await;
    setting.faregate.grant("ann", "2").await;
    assert_eq!(setting.credits("ann").await, ("2".into(), "0".into()));
    setting.faregate.audit().unwrap();
}

/// A hold that would have been refused is answered with one that holds nothing, and can be settled and released.
async fn a_hold_is_spared(setting: &Setting, key: &str) {
    let reserve = async |amount: u32| setting.post("/api/credits/reserve", key, &json!({ "amount": amount })).await;
    let made = reserve(2).await;
    assert_eq!((made.status, &made.json()["held"]), (StatusCode::CREATED, &json!(0)), "{}", made.text());
    assert_eq!(setting.spared("insufficient_credits", "api").await, 2.0);
    let body = json!({"id": made.json()["id"], "amount": 1});
    let settled = setting.post("/api/credits/settle", key, &body).await;
    assert_eq!((settled.status, &settled.json()["charged"]), (StatusCode::OK, &json!(0)), "{}", settled.text());
    let other = reserve(3).await.json()["id"].clone();
    let released = setting.post("/api/credits/release", key, &json!({ "id": other })).await;
    assert_eq!(released.status, StatusCode::OK, "{}", released.text());
    // One that there are credits for is one as in every mode; so is what is settled of one that was spared.
    setting.faregate.grant("ann", "3").await;
    let held = reserve(1).await.json();
    assert_eq!(held["held"], json!(1));
    for id in [&held["id"], &other] {
        let settled = setting.post("/api/credits/settle", key, &json!({"id": id, "amount": 1})).await;
        assert_eq!(settled.json()["charged"], json!(1), "{}", settled.text());
    }
    let again = setting.post("/api/credits/settle", key, &json!({"id": other, "amount": 1})).await;
    assert_eq!((again.status, again.header("idempotent-replayed")), (StatusCode::OK, "true"));
    setting.post("/api/credits/deduct", key, &json!({"amount": 1})).await;
    assert_eq!(setting.credits("ann").await, ("0".into(), "0".into()));
}

/// What no user may reach at the upstream's account, and what a key is not for, is refused in every mode: neither is a
/// matter of payment.
#[tokio::test]
async fn what_is_no_matter_of_payment_is_refused_in_every_mode() {
    for (name, rest) in [("off", ""), ("shadow", ""), ("on", "percent = 0")] {
        let setting = Setting::start(&mode(name, rest));
        let key = setting.faregate.user("ann", "3").await;
        let asked = setting.sim.stats().requests();
        for path in ["/v1/files", "/v1/files/file-1/content", "/v1/threads/t", "/v1/batches"] {
            let answer = setting.faregate.http.get(&setting.faregate.url(path), &key).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{name} {path}: {}", answer.text());
        }
        let unclear = setting.faregate.url("/v1/models/%2e%2e/files");
        assert_eq!(setting.faregate.http.get(&unclear, &key).await.status, StatusCode::BAD_REQUEST, "{name}");
        let made = setting.post("/api/keys", &key, &json!({"name": "ci", "models": ["gpt-4o*"]})).await.json();
        let limited = made["key"].as_str().unwrap();
        let chat = |model: &str| json!({"model": model, "messages": [{"role": "user", "content": "hello"}]});
        let twice = r#"{"model":"gpt-4o","model":"o1","messages":[{"role":"user","content":"hello"}]}"#;
        let completions = setting.faregate.url("/v1/chat/completions");
        let twice = request(Method::POST, &completions, limited, None).map(|_| twice.as_bytes().to_vec().into());
        let refused = [
            setting.post("/v1/chat/completions", limited, &chat("o1")).await,
            setting.faregate.http.call(twice).await,
            setting.post("/v1/audio/speech", limited, &chat("gpt-4o")).await,
        ];
        for answer in refused {
            assert!(answer.status.is_client_error(), "{name}: {} {}", answer.status, answer.text());
        }
        assert_eq!(setting.sim.stats().requests(), asked, "{name}: nothing of it was forwarded");
        assert_eq!(setting.post("/v1/chat/completions", limited, &chat("gpt-4o")).await.status, StatusCode::OK);
    }
}

/// A key's budget counts in shadow what it pays for, beyond its end too: once payment is enforced it is used up.
#[tokio::test]
async fn budgets_of_keys_count_in_shadow() {
    let setting = Setting::start(&mode("shadow", ""));
    let key = setting.faregate.user("ann", "3").await;
    let made = setting.post("/api/keys", &key, &json!({"name": "ci", "budget": 1})).await.json();
    for _ in 0..3 {
        assert_eq!(setting.chat(made["key"].as_str().unwrap()).await.status, StatusCode::OK);
    }
    let used = || async {
        let keys = setting.faregate.http.get(&setting.faregate.url("/api/keys"), &key).await.json();
        let ci = keys["data"].as_array()?.iter().find(|key| key["id"] == made["id"])?.clone();
        (ci["budget"] == json!({"limit": 1, "used": 3})).then_some(())
    };
    eventually(SOON, "what was used shows", used).await;
    assert_eq!(setting.spared("insufficient_credits", "openai").await, 2.0);
}

#[tokio::test]
async fn nothing_is_refused_in_shadow_embedded() {
    nothing_is_refused_in_shadow(Options::new()).await;
}

#[tokio::test]
async fn nothing_is_refused_in_shadow_over_redis() {
    let redis = Redis::start();
    nothing_is_refused_in_shadow(Options::new().ledger(redis.url())).await;
}

const BY_TOKEN: &str = r#"
[plans.free]
signup_credits = 0
[prices.message]
per_request = 0
unknown_model = "refuse"
[[prices.message.models]]
model = "gpt-*"
input_per_million = 1
output_per_million = 1000
max_output_tokens = 100
"#;

#[tokio::test]
async fn a_stream_that_outgrows_the_balance_goes_on_in_shadow() {
    let setting = Setting::start(&format!("[enforcement]\nmode = \"shadow\"\n{BY_TOKEN}"));
    let key = setting.faregate.user("ann", "0.005").await;
    // Fifty tokens are ten times what there is.
    let body = json!({"model": "gpt-4@tokens=50", "stream": true, "messages": [{"role": "user", "content": "hi"}]});
    let answer = setting.post("/v1/chat/completions", &key, &body).await;
    assert_eq!(answer.status, StatusCode::OK);
    let text = answer.text();
    assert!(text.contains("\"finish_reason\":\"stop\"") && !text.contains("\"length\""), "{text}");
    assert_eq!(setting.credits("ann").await, ("0".into(), "0".into()));
    assert_eq!(setting.spared("credits_exhausted", "openai").await, 1.0);
    // What has no price rides as well, for nothing.
    let other = json!({"model": "o9", "messages": [{"role": "user", "content": "hi"}]});
    let other = setting.post("/v1/chat/completions", &key, &other).await;
    assert_eq!(other.status, StatusCode::OK, "{}", other.text());
    assert_eq!(setting.credits("ann").await, ("0".into(), "0".into()));
    setting.faregate.audit().unwrap();
}

/// Issue 5, point 7: the settings are read again without a restart; a bad file is refused and the old one stays.
#[tokio::test]
async fn settings_are_read_again_while_it_runs() {
    let mut setting = Setting::start(&mode("off", ""));
    let key = setting.faregate.user("ann", "3").await;
    for _ in 0..4 {
        assert_eq!(setting.chat(&key).await.status, StatusCode::OK, "off refuses nothing");
    }
    let held = setting.post("/api/credits/reserve", &key, &json!({"amount": 9})).await;
    let settled = setting.post("/api/credits/settle", &key, &json!({"id": held.json()["id"], "amount": 9})).await;
    assert_eq!((held.status, settled.status), (StatusCode::CREATED, StatusCode::OK), "{}", settled.text());
    assert_eq!(setting.credits("ann").await.0, "3", "and charges nothing");
    assert_eq!(setting.chat("fg_live_nobody").await.status, StatusCode::UNAUTHORIZED);

    setting.settings(&mode("on", "percent = 100"), "applied").await;
    let charged = async || {
        let answer = setting.chat(&key).await;
        (answer.status, setting.credits("ann").await.0)
    };
    eventually(SOON, "payment is enforced", || async { (charged().await.1 != "3").then_some(()) }).await;
    while setting.chat(&key).await.status == StatusCode::OK {}
    assert_eq!(setting.chat(&key).await.status, StatusCode::PAYMENT_REQUIRED);

    // A mistake anywhere changes nothing.
    let before = setting.faregate.metric("faregate_config_reloads_total{result=\"applied\"}").await;
    setting.settings("[enforcement]\nmode = \"off\"\n[plans.free]\nsignup_credit = 3\n", "refused").await;
    assert_eq!(setting.chat(&key).await.status, StatusCode::PAYMENT_REQUIRED);
    assert_eq!(setting.faregate.metric("faregate_config_reloads_total{result=\"applied\"}").await, before);

    // Prices and limits change; what cannot is named.
    setting.faregate.grant("ann", "100").await;
    let dear = |limits: &str| format!("workers = 3\n{limits}[prices.message]\nper_request = 4\n");
    setting.settings(&dear(&mode("on", "")), "applied").await;
    eventually(SOON, "the new price is asked", || async {
        let before = setting.credits("ann").await.0.parse::<i64>().unwrap();
        assert_eq!(setting.chat(&key).await.status, StatusCode::OK);
        let after = setting.credits("ann").await.0.parse::<i64>().unwrap();
        (after == before - 4).then_some(())
    })
    .await;
    let tight = mode("on", "").replace("requests_per_minute = 100", "requests_per_minute = 1");
    setting.settings(&dear(&tight), "applied").await;
    eventually(SOON, "the new limit holds", || async {
        (setting.chat(&key).await.status == StatusCode::TOO_MANY_REQUESTS).then_some(())
    })
    .await;
    let log = setting.faregate.output();
    assert!(log.contains("wait for a restart") && log.contains("workers"), "{log}");

    // SIGHUP reads an unchanged file, too.
    let before = setting.reloads("applied").await;
    setting.faregate.signal("HUP");
    eventually(SOON, "read at SIGHUP", || async { (setting.reloads("applied").await > before).then_some(()) }).await;
}

/// From when on a user is warned changes while the gateway runs: for what is told, what is shown and what answers say.
#[tokio::test]
async fn warnings_are_read_again_while_it_runs() {
    let plan = |low: u32| format!("[plans.free]\nsignup_credits = 9\nlow_credits = {low}\nlow_percent = 0\n");
    let setting = Setting::start(&plan(1));
    let key = setting.faregate.user("ann", "9").await;
    let get = async |path: &str| setting.faregate.http.get(&setting.faregate.url(path), &key).await.json();
    assert!(!setting.chat(&key).await.headers.contains_key("x-credits-low"));
    setting.settings(&plan(8), "applied").await;
    let warned = async || setting.chat(&key).await.headers.contains_key("x-credits-low").then_some(());
    eventually(SOON, "answers say that the balance is low", warned).await;
    let shown = async || (get("/api/credits/check").await["low"] == true).then_some(());
    eventually(SOON, "the balance shows as low", shown).await;
    let told = async || {
        let list = get("/api/notifications").await;
        let told = list["data"].as_array()?.first()?.clone();
        (told["kind"] == "credits_low" && told["data"]["threshold"] == 8).then_some(())
    };
    eventually(SOON, "the user is told by the new threshold", told).await;
}

#[tokio::test]
async fn a_percentage_of_the_users_is_enforced() {
    let setting = Setting::start(&mode("on", "percent = 50").replace("signup_credits = 3", "signup_credits = 0"));
    let (mut refused, mut spared) = (0, 0);
    for number in 0..30 {
        let key = setting.faregate.user(&format!("user{number}"), "0").await;
        let (first, second) = (setting.chat(&key).await.status, setting.chat(&key).await.status);
        assert_eq!(first, second, "a user is in it or not");
        if first == StatusCode::OK { spared += 1 } else { refused += 1 }
    }
    assert!(refused > 4 && spared > 4, "{refused} of 30 were enforced");
    assert_eq!(setting.spared("insufficient_credits", "openai").await, f64::from(spared * 2));
}

#[tokio::test]
async fn flags_are_read_by_their_users() {
    let toml = "[flags.new_model]\nusers = [\"ann\"]\npercent = 0\n[flags.dark]\npercent = 100\n[flags.gone]\nenabled = false\n";
    let setting = Setting::start(toml);
    let flags = async |key: &str| setting.faregate.http.get(&setting.faregate.url("/api/flags"), key).await.json();
    let (ann, bob) = (setting.faregate.user("ann", "5").await, setting.faregate.user("bob", "5").await);
    assert_eq!(flags(&ann).await["flags"], json!({"dark": true, "gone": false, "new_model": true}));
    assert_eq!(flags(&bob).await["flags"], json!({"dark": true, "gone": false, "new_model": false}));
}
