//! Sentinels name another primary: after a crash, and as planned.

use std::time::Duration;

use super::failover::{REOPENINGS, options};
use crate::faults::Load;
use crate::recovery::{exact, rounds};
use crate::support::{Faregate, Postgres, Sentinels, Sim, eventually};

/// failures 45, 47, 49: the primary is killed under load, its replica promoted; every other time one that lacks the last writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_is_killed_under_load() {
    let (sim, postgres) = (Sim::start(), Postgres::start());
    let mut sentinels = Sentinels::start();
    let gate = Faregate::start(options(&sim, &sentinels.url(), &postgres));
    for round in 0..rounds() {
        let (user, stale) = (format!("killed-{round}"), round % 2 == 1);
        let key = gate.user(&user, "100000").await;
        let load = Load::start(&gate.url(""), &key, 6);
        load.more(30).await;
        let before = gate.metric(REOPENINGS).await;
        let at = sentinels.primary();
        let [primary, replica] = sentinels.servers.get_disjoint_mut([at, 1 - at]).unwrap();
        if stale {
            replica.cut_off_from(primary);
            load.more(10).await;
        }
        primary.kill9();
        replica.resume();
        load.more(30).await;
        exact(&gate, &user, &[load.stop().await]).await;
        assert!(!stale || gate.metric(REOPENINGS).await > before, "what was lost is noticed");
        tokio::task::block_in_place(|| {
            sentinels.servers[at].restart();
            sentinels.wait_until_whole();
        });
    }
}

/// failures 45, 47: the primary is demoted, and lives. Whoever stayed with it would wait for good. What it acknowledged after
/// its replica was promoted is lost, and charged all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demoted_primary_is_left() {
    let (sim, postgres, sentinels) = (Sim::start(), Postgres::start(), Sentinels::start());
    let gate = Faregate::start(options(&sim, &sentinels.url(), &postgres));
    for round in 0..rounds() {
        let user = format!("demoted-{round}");
        let key = gate.user(&user, "100000").await;
        let load = Load::start(&gate.url(""), &key, 6);
        load.more(30).await;
        let before = sentinels.primary();
        tokio::task::block_in_place(|| sentinels.fail_over());
        eventually(Duration::from_secs(60), "it is a replica now", || async {
            sentinels.servers[before].command(&["INFO", "replication"]).contains("role:slave").then_some(())
        })
        .await;
        load.more(30).await;
        exact(&gate, &user, &[load.stop().await]).await;
        tokio::task::block_in_place(|| sentinels.wait_until_whole());
    }
    eprintln!("opened anew: {}", gate.metric(REOPENINGS).await);
}
