//! `faregate audit` finds what somebody changed by hand, and raises no alarm while everything moves.

use std::time::Duration;

use serde_json::Value;

use super::load::Load;
use super::{Kind, Scene, healed};
use crate::support::{Faregate, Options, Redis, eventually};

impl Scene {
    /// Runs statements in the store, beside the gateway.
    fn sql(&self, sql: &str) {
        match &self.postgres {
            Some(postgres) => drop(postgres.query(sql)),
            None => {
                let file = self.gate.data_dir().join(faregate::store::SQLITE_FILE);
                let connection = rusqlite::Connection::open(file).unwrap();
                connection.busy_timeout(Duration::from_secs(20)).unwrap();
                connection.execute_batch(sql).unwrap();
            }
        }
    }
}

#[derive(serde::Deserialize)]
struct Found<'a> {
    account: Option<&'a str>,
    check: &'a str,
    /// As it was written: a float would not show whether it is exact.
    #[serde(borrow)]
    difference: Option<&'a serde_json::value::RawValue>,
}

impl std::fmt::Display for Found<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let difference = self.difference.map_or("?", |raw| raw.get());
        write!(out, "{} {} {difference}", self.account.unwrap_or("-"), self.check)
    }
}

/// What `faregate audit --json` found: account, check, difference.
fn found(gate: &Faregate, arguments: &[&str]) -> Vec<String> {
    let (out, err, clean) = gate.command(&[&["audit", "--json"], arguments].concat());
    let lines: Vec<&str> = out.lines().collect();
    let (summary, findings) = lines.split_last().unwrap_or_else(|| panic!("no summary: {err}"));
    let summary: Value = serde_json::from_str(summary).unwrap();
    let findings: Vec<Found> = findings.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(clean, findings.is_empty(), "{out}{err}");
    assert!(summary["accounts"].as_u64().unwrap() > 0, "{out}");
    findings.iter().map(ToString::to_string).collect()
}

/// Three users who used something, and whose usage is in the store.
async fn used(kind: Kind) -> Scene {
    let scene = Scene::start(kind);
    for (user, credits) in [("ann", "10"), ("bob", "20"), ("eve", "30")] {
        let key = scene.gate.user(user, credits).await;
        for _ in 0..3 {
            let body = super::load::ask(false, "");
            let answer = scene.gate.http.post(&scene.gate.url("/v1/chat/completions"), &key, &body).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        scene.gate.usage_of(user, 3).await;
        healed(&scene.gate, user).await;
    }
    assert_eq!(found(&scene.gate, &[]), Vec::<String>::new());
    scene
}

/// failures 28 (litellm#30460): whatever is changed in the store is found, and nothing else.
async fn tampering_with_the_store_is_found(kind: Kind) {
    let scene = used(kind).await;
    let change = "UPDATE credits SET";
    let (grants, usage) = ("UPDATE credit_grants SET", "UPDATE usage_logs SET");
    let ann = "WHERE user_id = 'ann'";
    for (tamper, undo, expected) in [
        (
            format!("{change} balance = balance + 1 {ann}"),
            format!("{change} balance = balance - 1 {ann}"),
            vec!["ann books -0.000001", "ann grants 0.000001", "ann ledger_balance 0.000001"],
        ),
        (
            format!("{change} debt = 2000000 {ann}"),
            format!("{change} debt = 0 {ann}"),
            vec!["ann books 2", "ann ledger_debt 2"],
        ),
        (
            format!("{change} charged = charged - 5 {ann}"),
            format!("{change} charged = charged + 5 {ann}"),
            vec!["ann books 0.000005", "ann charged -0.000005"],
        ),
        (
            format!("{change} granted = granted + 5 {ann}"),
            format!("{change} granted = granted - 5 {ann}"),
            vec!["ann books 0.000005", "ann granted 0.000005"],
        ),
        (
            format!("{change} written_off = written_off + 5 {ann}"),
            format!("{change} written_off = written_off - 5 {ann}"),
            vec!["ann books -0.000005"],
        ),
        (
            format!("{grants} remaining = remaining - 1 {ann}"),
            format!("{grants} remaining = remaining + 1 {ann}"),
            vec!["ann grants 0.000001", "ann ledger_grant -0.000001"],
        ),
        (
            format!("{grants} amount = amount + 1 {ann}"),
            format!("{grants} amount = amount - 1 {ann}"),
            vec!["ann grant_amounts 0.000001"],
        ),
        (
            format!("{usage} charged = charged + 7 {ann} AND seq = 3"),
            format!("{usage} charged = charged - 7 {ann} AND seq = 3"),
            vec!["ann charged -0.000007"],
        ),
        (
            "UPDATE credit_changes SET applied = (1 = 0) WHERE user_id = 'ann'".to_owned(),
            "UPDATE credit_changes SET applied = (1 = 1) WHERE user_id = 'ann'".to_owned(),
            vec!["ann applied_changes 1"],
        ),
        (
            format!("{change} last_change = last_change + 1 {ann}"),
            format!("{change} last_change = last_change - 1 {ann}"),
            vec!["ann changes 1"],
        ),
        (
            format!("{change} frozen = (1 = 1) {ann}"),
            format!("{change} frozen = (1 = 0) {ann}"),
            vec!["ann ledger_frozen 1"],
        ),
    ] {
        scene.sql(&tamper);
        assert_eq!(found(&scene.gate, &[]), expected, "{tamper}");
        assert_eq!(found(&scene.gate, &["--account", "bob"]), Vec::<String>::new());
        scene.sql(&undo);
    }
    scene.sql(&format!("DELETE FROM usage_logs {ann} AND seq = 2"));
    assert_eq!(found(&scene.gate, &["--account", "ann"]), ["ann charged 1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tampering_with_sqlite_is_found() {
    tampering_with_the_store_is_found(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tampering_with_postgres_is_found() {
    tampering_with_the_store_is_found(Kind::Redis).await;
}

/// The key of an account in Redis.
fn account_key(redis: &Redis, account: &str) -> String {
    let keys = redis.command(&["KEYS", &format!("fg:*:acct:{account}")]);
    assert_eq!(keys.lines().count(), 1, "{keys}");
    keys
}

/// failures 15, 28: a hot balance that is not what the store says, older or larger.
#[tokio::test(flavor = "multi_thread")]
async fn tampering_with_redis_is_found() {
    let mut scene = used(Kind::Redis).await;
    let (gate, redis) = (&scene.gate, scene.redis.as_mut().unwrap());
    let (ann, eve) = (account_key(redis, "ann"), account_key(redis, "eve"));
    // Another's riches, at the same sequence.
    assert_eq!(redis.command(&["COPY", &ann, &format!("{ann}:kept")]), "1");
    assert_eq!(redis.command(&["COPY", &eve, &ann, "REPLACE"]), "1");
    assert_eq!(found(gate, &[]), ["ann ledger_balance -20", "ann ledger_grant -20"]);
    assert_eq!(redis.command(&["COPY", &format!("{ann}:kept"), &ann, "REPLACE"]), "1");
    assert_eq!(found(gate, &[]), Vec::<String>::new());
    // An older balance comes back.
    gate.grant("ann", "5").await;
    eventually(Duration::from_secs(10), "the grant is flushed", || async {
        found(gate, &["--account", "ann"]).is_empty().then_some(())
    })
    .await;
    assert_eq!(redis.command(&["COPY", &format!("{ann}:kept"), &ann, "REPLACE"]), "1");
    // The pusher may have brought it the grant again, with the same sequence: then the books are equal, and right.
    let differences = found(gate, &["--account", "ann"]);
    assert!(differences == ["ann ledger_sequence 1"] || differences.is_empty(), "{differences:?}");
    redis.command(&["SET", &ann, "garbage"]);
    assert_eq!(found(gate, &["--account", "ann"]), ["ann ledger_unreadable 1"]);
}

/// Audits again and again under load, while credits are granted: no alarm, and every account proven.
async fn no_false_alarm(kind: Kind) {
    let scene = Scene::with(kind, Options::new().set("ledger.settle_wait_ms", 10_000));
    let mut loads = Vec::new();
    for user in ["ann", "bob", "eve"] {
        let key = scene.gate.user(user, "100000").await;
        loads.push(Load::start(&scene.gate.url(""), &key, 6));
    }
    scene.gate.user("idle", "1").await;
    for round in 0..10 {
        loads[round % 3].more(20).await;
        scene.gate.grant("ann", "0.25").await;
        let found = tokio::task::block_in_place(|| found(&scene.gate, &[]));
        assert_eq!(found, Vec::<String>::new(), "round {round}");
    }
    for load in loads {
        let seen = load.stop().await;
        assert_eq!(seen.statuses.keys().collect::<Vec<_>>(), [&200]);
    }
    for user in ["ann", "bob", "eve"] {
        healed(&scene.gate, user).await;
    }
    assert_eq!(found(&scene.gate, &[]), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_false_alarm_under_load_embedded() {
    no_false_alarm(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_false_alarm_under_load_redis() {
    no_false_alarm(Kind::Redis).await;
}

/// Without a running gateway the command opens the store and the ledger itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_audit_needs_no_running_gateway() {
    let mut scene = used(Kind::Embedded).await;
    assert!(scene.gate.terminate().success());
    assert_eq!(found(&scene.gate, &[]), Vec::<String>::new());
    scene.sql("UPDATE credits SET charged = charged + 1 WHERE user_id = 'eve'");
    assert_eq!(found(&scene.gate, &[]), ["eve books -0.000001", "eve charged 0.000001"]);
}
