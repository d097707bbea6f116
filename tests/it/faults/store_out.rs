//! Postgres stopped, killed, and everything killed, at random moments under load: requests go on while the backlog lasts,
//! nothing is lost, nothing is written twice.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use faregate::usage::Usage;
use rand::{Rng, SeedableRng};

use super::load::{Load, Seen, ask};
use super::{HEALED, Scene, healed};
use crate::support::{Faregate, Options, eventually, fault_rounds};

/// Time for a backlog to drain, and for what is killed to come back, on a busy machine.
const RECOVERS: Duration = Duration::from_secs(60);

/// Clients wait for their settle as long as it takes; see `crashes`.
fn patient() -> Options {
    Options::new().set("ledger.settle_wait_ms", 10_000)
}

/// How long a store stays away: FAREGATE_FAULT_OUTAGE_MS, one and a half seconds without it.
fn outage() -> Duration {
    let given = std::env::var("FAREGATE_FAULT_OUTAGE_MS").ok().map(|ms| ms.parse().expect("milliseconds"));
    Duration::from_millis(given.unwrap_or(1_500))
}

/// A moment within `at_most`, to be told when a test fails.
fn moment(random: &mut impl Rng, at_most: u64) -> Duration {
    Duration::from_millis(random.random_range(0..at_most))
}

fn seeded() -> rand::rngs::StdRng {
    let seed = rand::rng().random();
    eprintln!("seed {seed}");
    rand::rngs::StdRng::seed_from_u64(seed)
}

/// Every answer that was seen is charged, once, and the whole books of store and ledger are proven.
async fn exact(gate: &Faregate, seen: &Seen) {
    let books = healed(gate, "ann").await;
    let missing = seen.paid.iter().filter(|id| !books.has(id)).count();
    assert_eq!((missing, books.debt), (0, 0), "{} seen, {} rows", seen.paid.len(), books.usage.len());
    assert_eq!(books.charged, i64::try_from(books.usage.len()).unwrap() * 1_000_000, "each once, at its price");
    eventually(HEALED, "the backlog is drained", async || {
        (gate.metric("faregate_outbox_backlog").await == 0.0).then_some(())
    })
    .await;
    assert_eq!(gate.metric("faregate_dead_letters_total").await, 0.0);
    gate.audit().unwrap();
}

/// failures 22, 24 (litellm#33872, #21514): with the store away requests go on, and what they used is written afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn requests_go_on_while_postgres_is_stopped() {
    // What is under way when the store goes is given up within each outage.
    let scene = Scene::durable(patient().set("store.timeout_ms", 1_000));
    let key = scene.gate.user("ann", "1000000").await;
    let load = Load::start(&scene.gate.url(""), &key, 8);
    for _ in 0..fault_rounds() {
        load.more(30).await;
        scene.postgres().pause();
        let begun = tokio::time::Instant::now();
        load.more(50).await;
        tokio::time::sleep_until(begun + outage()).await;
        load.more(20).await;
        assert!(scene.gate.metric("faregate_outbox_backlog").await > 0.0, "the backlog is told");
        assert!(scene.gate.metric("faregate_outbox_lag_milliseconds").await > 0.0, "and how old it is");
        scene.postgres().resume();
        load.more(30).await;
    }
    let seen = load.stop().await;
    assert_eq!(seen.statuses.keys().collect::<Vec<_>>(), [&200], "nobody noticed");
    assert_eq!(seen.broken, 0);
    exact(&scene.gate, &seen).await;
}

/// failures 24 (litellm#21514): past the bound new work is refused, nothing that was accepted is forgotten, and the refusal
/// lifts by itself.
#[tokio::test(flavor = "multi_thread")]
async fn past_the_bound_new_work_is_refused_until_postgres_is_back() {
    let scene = Scene::durable(patient().set("ledger.max_backlog", 100));
    let key = scene.gate.user("ann", "1000000").await;
    let url = scene.gate.url("/v1/chat/completions");
    let load = Load::start(&scene.gate.url(""), &key, 8);
    for _ in 0..fault_rounds() {
        load.more(20).await;
        scene.postgres().pause();
        let refused = eventually(RECOVERS, "new work is refused", async || {
            let answer = scene.gate.http.post(&url, &key, &ask(false, "")).await;
            (answer.status == 503).then_some(answer)
        })
        .await;
        assert!(refused.header("retry-after").parse::<u64>().is_ok(), "{:?}", refused.headers);
        scene.postgres().resume();
        eventually(RECOVERS, "new work is taken again", async || {
            (scene.gate.http.post(&url, &key, &ask(false, "")).await.status == 200).then_some(())
        })
        .await;
    }
    let seen = load.stop().await;
    assert!(seen.statuses.keys().all(|status| [200, 503].contains(status)), "{:?}", seen.statuses);
    exact(&scene.gate, &seen).await;
}

/// failures 22: kill -9 of Postgres in the middle of whatever it writes.
#[tokio::test(flavor = "multi_thread")]
async fn postgres_killed_under_load() {
    let (scene, mut random) = (Scene::durable(patient()), seeded());
    let key = scene.gate.user("ann", "1000000").await;
    let load = Load::start(&scene.gate.url(""), &key, 8);
    for _ in 0..fault_rounds() {
        load.more(30).await;
        tokio::time::sleep(moment(&mut random, 300)).await;
        scene.postgres().kill9();
        load.more(30).await;
        scene.postgres().restart();
    }
    load.more(30).await;
    let seen = load.stop().await;
    assert_eq!(seen.statuses.keys().collect::<Vec<_>>(), [&200], "nobody noticed");
    exact(&scene.gate, &seen).await;
}

/// failures 22, 23: kill -9 of gateway, Redis and Postgres together.
#[tokio::test(flavor = "multi_thread")]
async fn everything_killed_under_load() {
    let (mut scene, mut random) = (Scene::durable(patient()), seeded());
    let key = scene.gate.user("ann", "1000000").await;
    let mut all = Seen::default();
    for _ in 0..fault_rounds() {
        let load = Load::start(&scene.gate.url(""), &key, 8);
        load.more(30).await;
        tokio::time::sleep(moment(&mut random, 300)).await;
        let order = random.random_range(0..3);
        for turn in 0..3 {
            match (order + turn) % 3 {
                0 => scene.gate.kill9(),
                1 => scene.redis().kill9(),
                _ => scene.postgres().kill9(),
            }
        }
        let seen = load.stop().await;
        all.paid.extend(seen.paid);
        scene.redis().restart();
        scene.postgres().restart();
        scene.gate.restart();
        eventually(RECOVERS, "it serves again", async || {
            let answer = scene.gate.http.post(&scene.gate.url("/v1/chat/completions"), &key, &ask(false, "")).await;
            (answer.status == 200).then_some(())
        })
        .await;
    }
    exact(&scene.gate, &all).await;
}

/// failures 26 (autumn e0aaf6725): usage that the store refuses stops nothing behind it, and is not lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_poisoned_event_stops_none_behind_it() {
    let scene = Scene::durable(patient());
    let key = scene.gate.user("ann", "1000000").await;
    scene.postgres().query(
        "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF new.model LIKE '%poison%' THEN RAISE 'poisoned'; END IF; RETURN new; END $$;
        CREATE TRIGGER poison BEFORE INSERT ON usage_logs FOR EACH ROW EXECUTE FUNCTION poison()",
    );
    let url = scene.gate.url("/v1/chat/completions");
    let load = Load::start(&scene.gate.url(""), &key, 8);
    let rounds = fault_rounds();
    for _ in 0..rounds {
        load.more(20).await;
        let mut body = ask(false, "");
        body["model"] = "sim-poison".into();
        assert_eq!(scene.gate.http.post(&url, &key, &body).await.status, 200);
    }
    load.more(20).await;
    let seen = load.stop().await;
    assert_eq!(seen.statuses.keys().collect::<Vec<_>>(), [&200]);
    eventually(RECOVERS, "all others are written", async || {
        let rows = scene.gate.usage("ann").await.len();
        (rows == seen.paid.len()).then_some(())
    })
    .await;
    let letters = scene.gate.admin(hyper::Method::GET, "/admin/v1/dead-letters?limit=1", None).await.json();
    assert_eq!(letters["data"][0]["reason"], "refused", "{letters}");
    assert_eq!(letters["data"][0]["usage"]["model"], "sim-poison", "{letters}");
    // Asked for alone it comes with all its bytes.
    let show = async |id: &str| {
        let path = format!("/admin/v1/dead-letters/{id}");
        scene.gate.admin(hyper::Method::GET, &path, None).await
    };
    let whole = show(&letters["data"][0]["id"].to_string()).await.json();
    let bytes = STANDARD.decode(whole["raw"].as_str().unwrap()).unwrap();
    assert_eq!(Usage::decode(&bytes).unwrap().model.as_deref(), Some("sim-poison"));
    assert_eq!((&whole["event"], &whole["usage"]), (&letters["data"][0]["event"], &letters["data"][0]["usage"]));
    for unknown in ["0", "9223372036854775807", "x"] {
        assert_eq!(show(unknown).await.status, 404, "{unknown}");
    }
    assert_eq!(scene.postgres().query("SELECT count(*) FROM dead_letters"), [rounds.to_string()]);
    // What was charged for it is charged: the audit counts the letters.
    scene.gate.audit().unwrap();
}
