//! Starting: replicas that come up at once over nothing, migrations that ran before, a schema of a later program.

use super::Scene;
use super::load::ask;
use crate::support::{Faregate, Options, Postgres, Redis, Sim, fault_rounds};

fn options(sim: &Sim, redis: &Redis, postgres: &Postgres) -> Options {
    Options::new().set("plans.free.signup_credits", 0).upstream(sim.url()).ledger(redis.url()).store(postgres.url())
}

/// Three replicas start at once over an empty Postgres and an empty Redis: one makes the schema, one the ledger, and all
/// serve the same balance.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_start_at_once_over_nothing() {
    let sim = Sim::start();
    for _ in 0..fault_rounds() {
        let (redis, postgres) = tokio::task::block_in_place(|| (Redis::start(), Postgres::start()));
        let mut gates: Vec<Faregate> = (0..3).map(|_| Faregate::launch(options(&sim, &redis, &postgres))).collect();
        tokio::task::block_in_place(|| gates.iter_mut().for_each(Faregate::wait_until_ready));
        let key = gates[0].user("ann", "3").await;
        for gate in &gates {
            let answer = gate.http.post(&gate.url("/v1/chat/completions"), &key, &ask(false, "")).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        gates[1].usage_of("ann", 3).await;
        assert_eq!(gates[2].available("ann").await, 0.0);
        let steps = postgres.query("SELECT count(*), count(DISTINCT version) FROM refinery_schema_history");
        assert!(steps[0].split('|').all(|count| Some(count) == steps[0].split('|').next()), "{steps:?}");
        tokio::task::block_in_place(|| gates[0].audit().unwrap());
    }
}

/// `faregate migrate`, twice, and by two at once; then the start needs no migration.
#[tokio::test(flavor = "multi_thread")]
async fn migrating_again_changes_nothing() {
    let sim = Sim::start();
    let (redis, postgres) = tokio::task::block_in_place(|| (Redis::start(), Postgres::start()));
    let options = options(&sim, &redis, &postgres).set("store.migrate", false);
    // Without a schema it does not start, and says what to do.
    let mut early = Faregate::launch(options.clone());
    let ended = tokio::task::block_in_place(|| early.wait(std::time::Duration::from_secs(30)));
    assert!(!ended.success());
    assert!(early.output().contains("faregate migrate"), "{}", early.output());
    let migrate = || early.command(&["migrate"]);
    let (first, second) = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let other = scope.spawn(migrate);
            (migrate(), other.join().unwrap())
        })
    });
    assert!(first.2 && second.2, "{first:?} {second:?}");
    let history = || postgres.query("SELECT version, name, checksum FROM refinery_schema_history ORDER BY version");
    let done = history();
    let again = tokio::task::block_in_place(migrate);
    assert!(again.2, "{again:?}");
    assert_eq!(history(), done);
    let gate = tokio::task::block_in_place(|| Faregate::start(options));
    assert!(!gate.user("ann", "1").await.is_empty());
}

/// An older program over the schema of a later one: neither starts nor migrates, and says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_schema_of_a_later_program_is_left_alone() {
    let mut scene = Scene::start(super::Kind::Redis);
    assert!(tokio::task::block_in_place(|| scene.gate.terminate()).success());
    scene.postgres().query(
        "INSERT INTO refinery_schema_history (version, name, applied_on, checksum)
            VALUES (9999, 'the_future', '2030-01-01T00:00:00Z', '1')",
    );
    let (_, told, migrated) = tokio::task::block_in_place(|| scene.gate.command(&["migrate"]));
    assert!(!migrated && told.contains("9999") && told.contains("start a newer program"), "{told}");
    let (_, told, served) = tokio::task::block_in_place(|| scene.gate.command(&["serve"]));
    assert!(!served && told.contains("start a newer program"), "{told}");
}
