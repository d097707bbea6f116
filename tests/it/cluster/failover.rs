//! A node of a Cluster dies under load, in front of it the real gateway and Postgres.

use faregate::ledger::redis::discovery::slot_of;
use faregate::ledger::redis::shard_of;

use crate::faults::Load;
use crate::recovery::{exact, rounds};
use crate::redis_ledger::fixture::id;
use crate::support::{Faregate, Options, Postgres, RedisCluster, Sim};

pub(super) const REOPENINGS: &str = "faregate_ledger_reopenings_total";

pub(super) fn options(sim: &Sim, ledger: &str, postgres: &Postgres) -> Options {
    Options::new()
        .set("plans.free.signup_credits", 0)
        .set("ledger.settle_wait_ms", 60_000)
        .set("ledger.heartbeat_interval_ms", 200)
        .upstream(sim.url())
        .ledger(ledger)
        .store(postgres.url())
}

/// Kills the primary of the first user's shard under load, over and over; `stale`: its replica lacks what was written last.
async fn killed_under_load(stale: bool) {
    let (sim, postgres) = (Sim::start(), Postgres::start());
    let mut cluster = RedisCluster::start();
    let gate = Faregate::start(options(&sim, &cluster.url(), &postgres));
    for round in 0..rounds() {
        let users: Vec<String> = (0..3).map(|number| format!("killed-{round}-{number}")).collect();
        let mut loads = Vec::new();
        for user in &users {
            let key = gate.user(user, "100000").await;
            loads.push(Load::start(&gate.url(""), &key, 3));
        }
        for load in &loads {
            load.more(10).await;
        }
        let before = gate.metric(REOPENINGS).await;
        let shard = u32::try_from(shard_of(&id(&users[0]), 16)).unwrap();
        let primary = cluster.owner(slot_of(shard));
        if stale {
            let replica = cluster.replica_of(primary);
            let [replica, primary] = cluster.nodes.get_disjoint_mut([replica, primary]).unwrap();
            replica.cut_off_from(primary);
            loads[0].more(10).await;
            primary.kill9();
            replica.resume();
        } else {
            cluster.nodes[primary].kill9();
        }
        for load in &loads {
            load.more(20).await;
        }
        for (user, load) in users.iter().zip(loads) {
            exact(&gate, user, &[load.stop().await]).await;
        }
        assert!(!stale || gate.metric(REOPENINGS).await > before, "what was lost is noticed");
        tokio::task::block_in_place(|| {
            cluster.nodes[primary].restart();
            cluster.wait_until_whole();
        });
    }
}

/// failures 45, 48, 49: a primary is killed. The service returns by itself, every answer whose end a client saw is charged
/// once, and the books balance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_is_killed_under_load() {
    killed_under_load(false).await;
}

/// failures 47: the replica that takes over lacks the last writes, acknowledged though they were. Its shards are opened anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_is_killed_and_its_replica_is_stale() {
    killed_under_load(true).await;
}
