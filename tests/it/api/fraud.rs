//! Fraud and abuse: of each signal one attack is caught, and one account that looks alike is spared.

use faregate::config::Config;
use faregate::store::SharedStore;
use faregate::store::questions::{Question, Value, int, text, time};
use http::{Method, StatusCode};
use serde_json::{Value as Json, json};

use super::rig::{Ground, Rig};

const DAY_US: u64 = 86_400_000_000;

pub(crate) fn strict(config: &mut Config) {
    config.fraud.burst_accounts = 3;
    config.fraud.card_accounts = 2;
}

fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap()
}

async fn execute(store: &SharedStore, sql: &str, values: Vec<Value>) {
    store.execute(vec![Question::new(sql, values)]).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Signs a user up, on the plan that gives five credits.
async fn sign_up(rig: &Rig, id: &str, signup: Json) {
    let body = json!({"id": id, "signup": signup});
    let made = rig.admin(Method::POST, "/admin/v1/users").json(&body).send().await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
}

/// The signals against a user that stand, and what was done.
async fn against(rig: &Rig, user: &str) -> (Vec<String>, Vec<String>) {
    let signals = rig.admin(Method::GET, &format!("/admin/v1/fraud?user={user}")).send().await.json();
    let standing = signals["data"].as_array().unwrap().iter().filter(|row| row["cleared_at"].is_null());
    let mut standing: Vec<String> = standing.map(|row| row["signal"].as_str().unwrap().to_owned()).collect();
    standing.sort();
    let audit = rig.admin(Method::GET, &format!("/admin/v1/audit?user={user}&actor=fraud")).send().await.json();
    let actions = audit["data"].as_array().unwrap().iter().map(|line| line["action"].as_str().unwrap().to_owned());
    let mut actions: Vec<String> =
        actions.filter(|action| action.starts_with("fraud.") && action != "fraud.signal").collect();
    actions.reverse();
    (standing, actions)
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

async fn available(rig: &Rig, user: &str) -> String {
    rig.credits(user).await.0
}

pub(super) async fn a_burst_of_sign_ups_is_caught_and_an_office_spared(ground: &Ground) {
    let rig = ground.replica();
    for number in 0..5 {
        sign_up(&rig, &format!("bot{number}"), json!({"address": format!("203.0.113.{number}")})).await;
    }
    // The same number, over the days.
    for number in 0..5 {
        sign_up(&rig, &format!("office{number}"), json!({"address": "198.51.100.7"})).await;
        let past = "UPDATE fraud_signups SET at = ? WHERE user_id = ?";
        execute(&ground.store, past, vec![time(now() - (number + 1) * DAY_US), text(format!("office{number}"))]).await;
    }
    assert_eq!(against(&rig, "bot2").await.0, names(&[]), "up to the limit nobody is suspicious");
    assert_eq!(against(&rig, "bot4").await, (names(&["signup_burst"]), names(&["fraud.warn"])));
    for number in 0..5 {
        assert_eq!(against(&rig, &format!("office{number}")).await.0, names(&[]));
    }
}

/// Failures 44: credits for nothing, by many accounts.
pub(super) async fn farmed_credits_are_held_and_customers_spared(ground: &Ground) {
    let rig = ground.replica();
    // Days apart, each uses what it was given and leaves; in the other block one of them paid, and one has some left.
    for (block, name) in [("192.0.2", "farm"), ("198.18.0", "family")] {
        for number in 0..3 {
            let id = format!("{name}{number}");
            sign_up(&rig, &id, json!({"address": format!("{block}.{number}")})).await;
            let past = "UPDATE fraud_signups SET at = ? WHERE user_id = ?";
            execute(&ground.store, past, vec![time(now() - (number + 2) * DAY_US), text(&id)]).await;
            let left = if id == "family0" { 1 } else { 0 };
            let used = "UPDATE credit_grants SET remaining = ? WHERE user_id = ? AND kind = 'free'";
            execute(&ground.store, used, vec![int(left), text(&id)]).await;
        }
    }
    execute(&ground.store, "INSERT INTO billing_accounts (user_id) VALUES ('family1')", vec![]).await;
    let paid = "INSERT INTO purchases (id, user_id, kind, name, currency, amount, credits, created_at)
        VALUES ('pi:1', 'family1', 'pack', 'small', 'usd', 500, 0, ?)";
    execute(&ground.store, paid, vec![time(now())]).await;
    sign_up(&rig, "farm3", json!({"address": "192.0.2.200"})).await;
    sign_up(&rig, "family3", json!({"address": "198.18.0.200"})).await;
    assert_eq!(against(&rig, "farm3").await, (names(&["farmed_credits"]), names(&["fraud.hold"])));
    assert_eq!(available(&rig, "farm3").await, "0");
    assert_eq!(against(&rig, "family3").await, (names(&[]), names(&[])));
    assert_eq!(available(&rig, "family3").await, "5");

    // What the account pays for is its own.
    let grant = rig.admin(Method::POST, "/admin/v1/users/farm3/grants").json(&json!({"amount": 7, "kind": "topup"}));
    assert_eq!(grant.send().await.status, StatusCode::CREATED);
    assert_eq!(available(&rig, "farm3").await, "7");
    // An operator takes it back, and it stays so.
    let undone = rig.admin(Method::DELETE, "/admin/v1/users/farm3/flag").send().await;
    assert_eq!(undone.status, StatusCode::OK, "{}", undone.text());
    rig.fraud.look(now()).await.unwrap();
    assert_eq!(available(&rig, "farm3").await, "12");
    assert_eq!(against(&rig, "farm3").await.0, names(&[]));
    let audit = rig.admin(Method::GET, "/admin/v1/audit?user=farm3&action=fraud.clear").send().await.json();
    assert_eq!(audit["data"][0]["actor"], "operator");
}

pub(super) async fn risk_scores_count_and_low_ones_do_not(ground: &Ground) {
    let rig = ground.replica();
    sign_up(&rig, "bot", json!({"bot": 100, "free_trial_abuse": 10})).await;
    sign_up(&rig, "shy", json!({"bot": 59, "free_trial_abuse": 10})).await;
    assert_eq!(against(&rig, "bot").await, (names(&["signup_risk"]), names(&["fraud.freeze"])));
    let shown = rig.admin(Method::GET, "/admin/v1/users/bot").send().await.json();
    assert_eq!(shown["status"], "frozen");
    assert_eq!(against(&rig, "shy").await, (names(&[]), names(&[])));
    let undone = rig.admin(Method::DELETE, "/admin/v1/users/bot/flag").send().await;
    assert_eq!(undone.json()["status"], "active", "{}", undone.text());
    assert_eq!(available(&rig, "bot").await, "5");
}

pub(super) async fn spending_beyond_ones_past_is_caught_and_a_big_customer_spared(ground: &Ground) {
    let rig = ground.replica();
    let today = i64::try_from(now() / DAY_US).unwrap();
    let day = |day: i64| {
        if ground.config.store.url.is_empty() { day.to_string() } else { format!("DATE '1970-01-01' + {day}") }
    };
    // Thief: a little for days, then a thousand. Big: as much every day. New: a thousand on the first day.
    let spent = [("thief", [10, 10, 10], 1_000), ("big", [900, 800, 1_000], 1_000), ("new", [0, 0, 0], 1_000)];
    for (user, past, now) in spent {
        rig.user(user, "1").await;
        for (back, credits) in [(3, past[0]), (2, past[1]), (1, past[2]), (0, now)] {
            let insert = format!(
                "INSERT INTO usage_days (user_id, day, model, route, key_id, requests, charged, input_tokens, cached_tokens,
                    output_tokens, estimated, client_errors, server_errors)
                VALUES (?, {}, '', 'openai', '', 1, ?, 0, 0, 0, 0, 0, 0)",
                day(today - back)
            );
            execute(&ground.store, &insert, vec![text(user), int(credits * 1_000_000)]).await;
        }
    }
    for _ in 0..2 {
        rig.fraud.look(now()).await.unwrap();
    }
    assert_eq!(against(&rig, "thief").await, (names(&["spending"]), names(&["fraud.warn"])));
    for user in ["big", "new"] {
        assert_eq!(against(&rig, user).await, (names(&[]), names(&[])), "{user}");
    }
}

async fn told(store: &SharedStore, id: &str, kind: &str, object: Json) {
    let payload = json!({"id": id, "type": kind, "data": {"object": object}}).to_string();
    let insert =
        "INSERT INTO billing_events (id, event_type, livemode, created_at, received_at, state, next_attempt_at,
            payload) VALUES (?, ?, false, ?, ?, 'ignored', ?, ?)";
    let at = || time(now() - 60_000_000);
    execute(store, insert, vec![text(id), text(kind), at(), at(), at(), text(payload)]).await;
}

pub(super) async fn one_card_of_many_accounts_is_caught_and_a_couple_spared(ground: &Ground) {
    let rig = ground.replica();
    for (card, users) in [("fp_stolen", vec!["c1", "c2", "c3"]), ("fp_couple", vec!["d1", "d2"])] {
        for user in users {
            rig.user(user, "1").await;
            let account = "INSERT INTO billing_accounts (user_id, customer_id) VALUES (?, ?)";
            execute(&ground.store, account, vec![text(user), text(format!("cus_{user}"))]).await;
            // Each pays twice: an account counts once.
            for time in 0..2 {
                let object = json!({"object": "charge", "customer": format!("cus_{user}"),
                    "payment_method_details": {"card": {"fingerprint": card}}});
                told(&ground.store, &format!("evt_{user}_{time}"), "charge.succeeded", object).await;
            }
        }
    }
    told(&ground.store, "evt_odd", "charge.succeeded", json!({"customer": 7})).await;
    for _ in 0..2 {
        rig.fraud.look(now()).await.unwrap();
    }
    for user in ["c1", "c2", "c3"] {
        assert_eq!(against(&rig, user).await, (names(&["shared_card"]), names(&["fraud.hold"])), "{user}");
    }
    for user in ["d1", "d2"] {
        assert_eq!(against(&rig, user).await, (names(&[]), names(&[])), "{user}");
    }
}

pub(super) async fn an_early_warning_counts_against_its_payer_alone(ground: &Ground) {
    let rig = ground.replica();
    for (user, payment) in [("e1", "pi_1"), ("e2", "pi_2")] {
        rig.user(user, "1").await;
        execute(&ground.store, "INSERT INTO billing_accounts (user_id) VALUES (?)", vec![text(user)]).await;
        let paid =
            "INSERT INTO purchases (id, user_id, kind, name, payment_intent, currency, amount, credits, created_at)
            VALUES (?, ?, 'pack', 'small', ?, 'usd', 500, 0, ?)";
        let values = vec![text(format!("pi:{payment}")), text(user), text(payment), time(now())];
        execute(&ground.store, paid, values).await;
    }
    let object = json!({"object": "radar.early_fraud_warning", "payment_intent": "pi_1", "actionable": true});
    told(&ground.store, "evt_warning", "radar.early_fraud_warning.created", object).await;
    for _ in 0..2 {
        rig.fraud.look(now()).await.unwrap();
    }
    assert_eq!(against(&rig, "e1").await, (names(&["early_fraud_warning"]), names(&["fraud.hold"])));
    assert_eq!(against(&rig, "e2").await, (names(&[]), names(&[])));
}
