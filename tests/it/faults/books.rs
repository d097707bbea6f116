//! `faregate audit` finds what somebody changed by hand, and raises no alarm while everything moves.

use std::time::Duration;

use serde_json::Value;

use super::load::Load;
use super::{Kind, Scene, healed};
use crate::support::{Faregate, Options, Redis, eventually};

impl Scene {
    fn number(&self, sql: &str) -> i64 {
        match &self.postgres {
            Some(postgres) => postgres.query(sql)[0].parse().unwrap(),
            None => {
                let file = self.gate.data_dir().join(faregate::store::SQLITE_FILE);
                rusqlite::Connection::open(file).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
            }
        }
    }

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
    use_credits(&scene).await;
    scene
}

async fn use_credits(scene: &Scene) {
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
    // A report adds up by day what is not yet.
    let report = scene.gate.admin(hyper::Method::GET, "/admin/v1/usage", None).await;
    assert_eq!(report.status, 200, "{}", report.text());
    assert_eq!(found(&scene.gate, &[]), Vec::<String>::new());
}

/// Statements that change the books of ann, what undoes them, and what the audit finds.
fn tampers() -> Vec<(String, String, Vec<&'static str>)> {
    let change = "UPDATE credits SET";
    let (grants, usage) = ("UPDATE credit_grants SET", "UPDATE usage_logs SET");
    let days = "UPDATE usage_days SET";
    let ann = "WHERE user_id = 'ann'";
    vec![
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
            vec!["ann charged -0.000007", "ann day_charged -0.000007"],
        ),
        (
            format!("{days} charged = charged + 5 {ann}"),
            format!("{days} charged = charged - 5 {ann}"),
            vec!["ann day_charged 0.000005"],
        ),
        (
            format!("{days} requests = requests - 1, server_errors = server_errors + 1 {ann}"),
            format!("{days} requests = requests + 1, server_errors = server_errors - 1 {ann}"),
            vec!["ann day_requests -1", "ann day_marks 1"],
        ),
        (
            "UPDATE usage_rolled SET seq = seq + 1000 WHERE user_id = 'ann'".to_owned(),
            "UPDATE usage_rolled SET seq = seq - 1000 WHERE user_id = 'ann'".to_owned(),
            vec!["ann day_sequence 1000"],
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
    ]
}

/// failures 28 (litellm#30460): whatever is changed in the store is found, and nothing else.
async fn tampering_with_the_store_is_found(kind: Kind) {
    let scene = used(kind).await;
    for (tamper, undo, expected) in tampers() {
        scene.sql(&tamper);
        assert_eq!(found(&scene.gate, &[]), expected, "{tamper}");
        assert_eq!(found(&scene.gate, &["--account", "bob"]), Vec::<String>::new());
        scene.sql(&undo);
    }
    scene.sql("DELETE FROM usage_logs WHERE user_id = 'ann' AND seq = 2");
    let gone = ["ann charged 1", "ann day_requests 1", "ann day_charged 1", "ann day_tokens 20"];
    assert_eq!(found(&scene.gate, &["--account", "ann"]), gone);
}

#[tokio::test(flavor = "multi_thread")]
async fn tampering_with_sqlite_is_found() {
    tampering_with_the_store_is_found(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tampering_with_postgres_is_found() {
    tampering_with_the_store_is_found(Kind::Redis).await;
}

/// Where the usage rows of three months ago are gone, what they had added to the days is still proven; what is wrong there is
/// told to be beyond repair.
async fn the_days_are_proven_without_their_rows(kind: Kind) {
    let mut scene = Scene::with(kind, Options::new().set("store.usage_retention_months", 1));
    use_credits(&scene).await;
    let old_id = match kind {
        Kind::Embedded => {
            "unhex(printf('%012x', (unixepoch('now') - 95 * 86400) * 1000) || substr(hex(request_id), 13))"
        }
        Kind::Redis => {
            "(lpad(to_hex((extract(epoch FROM now() - interval '95 days') * 1000)::bigint), 12, '0')
                || substr(replace(request_id::text, '-', ''), 13))::uuid"
        }
    };
    // One of three rows; with it goes a third of what the day says.
    scene.sql(&format!("UPDATE usage_logs SET request_id = {old_id} WHERE user_id = 'ann' AND seq = 2"));
    assert!(tokio::task::block_in_place(|| scene.gate.terminate()).success());
    tokio::task::block_in_place(|| scene.gate.restart());
    eventually(Duration::from_secs(20), "the old row is gone", || async {
        (scene.number("SELECT count(*) FROM usage_logs WHERE user_id = 'ann'") == 2).then_some(())
    })
    .await;
    assert_eq!(scene.number("SELECT day_charged FROM usage_pruned WHERE user_id = 'ann'"), 1_000_000);
    assert_eq!(found(&scene.gate, &[]), Vec::<String>::new());
    let row = "user_id, DAY, model, route, key_id, requests / 3, charged / 3, input_tokens / 3, cached_tokens / 3,
        output_tokens / 3, estimated / 3, 0, 0";
    let split = format!(
        "INSERT INTO usage_days SELECT {} FROM usage_days WHERE user_id = 'ann'",
        row.replace("DAY", "day - 95")
    );
    scene.sql(&split);
    let thirds = "requests = requests * 2 / 3, charged = charged * 2 / 3, input_tokens = input_tokens * 2 / 3,
        cached_tokens = cached_tokens * 2 / 3, output_tokens = output_tokens * 2 / 3, estimated = estimated * 2 / 3";
    let newest = "user_id = 'ann' AND day = (SELECT max(day) FROM usage_days WHERE user_id = 'ann')";
    scene.sql(&format!("UPDATE usage_days SET {thirds} WHERE {newest}"));
    assert_eq!(found(&scene.gate, &[]), Vec::<String>::new(), "on their own days");

    // A day whose rows are there is added up anew.
    scene.sql(&format!("UPDATE usage_days SET charged = charged + 7 WHERE {newest}"));
    assert_eq!(repaired(&scene.gate), ["ann day_charged 0.000007", "ann mended"]);
    assert_eq!(found(&scene.gate, &[]), Vec::<String>::new());
    // One whose rows are gone is not.
    scene.sql(&format!("UPDATE usage_days SET charged = charged + 7 WHERE user_id = 'ann' AND NOT ({newest})"));
    assert_eq!(repaired(&scene.gate), ["ann day_charged 0.000007", "ann beyond"]);
    assert_eq!(found(&scene.gate, &[]), ["ann day_charged 0.000007"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_days_are_proven_without_their_rows_in_sqlite() {
    the_days_are_proven_without_their_rows(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_days_are_proven_without_their_rows_in_postgres() {
    the_days_are_proven_without_their_rows(Kind::Redis).await;
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

/// What somebody changed is mended by the record, noted, and clean afterwards; what is right is left alone.
async fn tampering_is_mended(kind: Kind) {
    let scene = used(kind).await;
    let before = scene.gate.show("ann").await;
    let noted = || {
        let count = "SELECT count(*) FROM audit_log WHERE user_id = 'ann' AND action LIKE 'books.%'";
        scene.number(count)
    };
    assert_eq!(found(&scene.gate, &["--repair"]), Vec::<String>::new());
    assert_eq!(noted(), 0, "nothing to mend, nothing done");
    for (index, (tamper, _, expected)) in tampers().into_iter().enumerate() {
        // The repair before may have had the ledger drop the account: it is loaded again.
        scene.gate.show("ann").await;
        scene.sql(&tamper);
        let found_now = repaired(&scene.gate);
        assert!(
            found_now.iter().all(|line| expected.contains(&line.as_str()) || line == "ann mended"),
            "{found_now:?}"
        );
        assert_eq!(found_now.len(), expected.len() + 1, "{tamper}: {found_now:?}");
        assert_eq!(found(&scene.gate, &["--repair"]), Vec::<String>::new(), "{tamper}");
        assert!(noted() > index as i64, "{tamper}");
    }
    let after = scene.gate.show("ann").await;
    // The usage row that says 7 more is the record; and what was written off has none of its own, so that the 5 that
    // were added to it are gone.
    assert_eq!(micro_of(&before) - micro_of(&after), 12);
    // A usage row that is gone was not used.
    scene.sql("DELETE FROM usage_logs WHERE user_id = 'ann' AND seq = 2");
    let gone = ["ann charged 1", "ann day_requests 1", "ann day_charged 1", "ann day_tokens 20", "ann mended"];
    assert_eq!(repaired(&scene.gate), gone);
    assert_eq!(found(&scene.gate, &[]), Vec::<String>::new());
    assert_eq!(micro_of(&scene.gate.show("ann").await) - micro_of(&after), 1_000_000);
}

fn micro_of(user: &Value) -> i64 {
    super::micro(&user["credits"]["available"])
}

/// The lines of `faregate audit --repair --json`: findings, then what was mended.
fn repaired(gate: &Faregate) -> Vec<String> {
    let (out, err, clean) = gate.command(&["audit", "--repair", "--json"]);
    assert!(!clean, "{out}{err}");
    let lines: Vec<&str> = out.lines().collect();
    let (_, lines) = lines.split_last().unwrap_or_else(|| panic!("no summary: {err}"));
    let mended = |line: &&str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let account = line["account"].as_str().unwrap().to_owned();
        line["repair"].as_str().map(|state| format!("{account} {state}"))
    };
    let plain = |line: &&str| serde_json::from_str::<Found>(line).unwrap().to_string();
    lines.iter().map(|line| mended(line).unwrap_or_else(|| plain(line))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn tampering_with_sqlite_is_mended() {
    tampering_is_mended(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tampering_with_postgres_is_mended() {
    tampering_is_mended(Kind::Redis).await;
}

/// A balance that the ledger should not have goes; while it is held from, it stays.
#[tokio::test(flavor = "multi_thread")]
async fn tampering_with_redis_is_mended() {
    let mut scene = used(Kind::Redis).await;
    let key = scene.gate.key("ann").await;
    let (gate, redis) = (&scene.gate, scene.redis.as_mut().unwrap());
    let (ann, eve) = (account_key(redis, "ann"), account_key(redis, "eve"));
    assert_eq!(redis.command(&["COPY", &ann, &format!("{ann}:kept")]), "1");
    assert_eq!(redis.command(&["COPY", &eve, &ann, "REPLACE"]), "1");
    assert_eq!(repaired(gate), ["ann ledger_balance -20", "ann ledger_grant -20", "ann mended"]);
    assert_eq!(found(gate, &[]), Vec::<String>::new());
    assert_eq!(gate.available("ann").await, 7.0);

    // An older balance, from which somebody holds: its holds end first.
    gate.grant("ann", "5").await;
    eventually(Duration::from_secs(10), "the grant is flushed", || async {
        found(gate, &["--account", "ann"]).is_empty().then_some(())
    })
    .await;
    assert_eq!(redis.command(&["COPY", &eve, &ann, "REPLACE"]), "1");
    let url = |path: &str| gate.url(path);
    let hold = gate.http.post(&url("/api/credits/reserve"), &key, &serde_json::json!({"amount": 2})).await;
    assert_eq!(hold.status, 201, "{}", hold.text());
    let lines = repaired(gate);
    assert_eq!(lines.last().unwrap(), "ann busy", "{lines:?}");
    let id = hold.json()["id"].clone();
    let released = gate.http.post(&url("/api/credits/release"), &key, &serde_json::json!({"id": id})).await;
    assert_eq!(released.status, 200, "{}", released.text());
    let lines = repaired(gate);
    assert_eq!(lines.last().unwrap(), "ann mended", "{lines:?}");
    assert_eq!(found(gate, &[]), Vec::<String>::new());
    assert_eq!(gate.available("ann").await, 12.0);
}

/// A copy made under load is whole: restored elsewhere it starts, its books balance, and it holds what was acknowledged
/// before it was made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_made_under_load_is_whole() {
    let mut scene = Scene::with(Kind::Embedded, Options::new().set("ledger.settle_wait_ms", 10_000));
    let key = scene.gate.user("ann", "100000").await;
    scene.gate.user("idle", "7").await;
    let load = Load::start(&scene.gate.url(""), &key, 8);
    load.more(200).await;
    let before = scene.gate.usage("ann").await.len();
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.db").to_str().unwrap().to_owned();
    let (out, err, done) = tokio::task::block_in_place(|| scene.gate.command(&["backup", &copy]));
    assert!(done, "{out}{err}");
    let (_, err, done) = tokio::task::block_in_place(|| scene.gate.command(&["backup", &copy]));
    assert!(!done && err.contains("is there already"), "{err}");
    load.more(100).await;
    let (_, err, done) = tokio::task::block_in_place(|| scene.gate.command(&["restore", &copy]));
    assert!(!done && err.contains("in use"), "{err}");
    load.stop().await;
    healed(&scene.gate, "ann").await;
    let later = scene.gate.usage("ann").await.len();
    assert!(scene.gate.terminate().success());
    let (_, err, done) = scene.gate.command(&["restore", &copy]);
    assert!(!done && err.contains("is there already"), "a store is never overwritten: {err}");
    for file in std::fs::read_dir(scene.gate.data_dir()).unwrap().flatten() {
        if file.file_name().to_string_lossy().starts_with("faregate.db") {
            std::fs::remove_file(file.path()).unwrap();
        }
    }
    let (out, err, done) = scene.gate.command(&["restore", &copy]);
    assert!(done, "{out}{err}");
    scene.gate.restart();
    let books = healed(&scene.gate, "ann").await;
    assert_eq!(found(&scene.gate, &[]), Vec::<String>::new());
    assert!((before..=later).contains(&books.usage.len()), "{before} {} {later}", books.usage.len());
    assert_eq!(scene.gate.available("idle").await, 7.0);
    let answer =
        scene.gate.http.post(&scene.gate.url("/v1/chat/completions"), &key, &super::load::ask(false, "")).await;
    assert_eq!(answer.status, 200, "it serves on");
}

/// docs/backup.md: an older Postgres under an emptied Redis. Balances are as of the copy, and the books balance.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_postgres_is_restored() {
    let mut scene = used(Kind::Redis).await;
    let key = scene.gate.key("ann").await;
    assert!(scene.gate.terminate().success());
    let postgres = scene.postgres.as_ref().unwrap();
    let url = postgres.url();
    let (server, name) = url.rsplit_once('/').unwrap();
    postgres.query(&format!("CREATE DATABASE {name}_copy TEMPLATE {name}"));
    scene.gate.restart();
    for _ in 0..2 {
        let body = super::load::ask(false, "");
        let answer = scene.gate.http.post(&scene.gate.url("/v1/chat/completions"), &key, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    scene.gate.usage_of("ann", 5).await;
    assert!(scene.gate.terminate().success());

    assert_eq!(scene.redis().command(&["FLUSHALL"]), "OK");
    let options = Options::new().set("plans.free.signup_credits", 0).upstream(scene.sim.url());
    let restored = Faregate::start(options.ledger(scene.proxy().redis_url()).store(format!("{server}/{name}_copy")));
    assert_eq!(found(&restored, &[]), Vec::<String>::new());
    assert_eq!((restored.usage("ann").await.len(), restored.available("ann").await), (3, 7.0));
    let answer = restored.http.post(&restored.url("/v1/chat/completions"), &key, &super::load::ask(false, "")).await;
    assert_eq!(answer.status, 200, "the key was made before the copy: {}", answer.text());
    healed(&restored, "ann").await;
    assert_eq!(found(&restored, &[]), Vec::<String>::new());
}
