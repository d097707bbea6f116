//! Sharded over a Cluster: the ledger as on one server, and slots that move under it.

use std::collections::BTreeSet;
use std::time::Duration;

use faregate::ledger::redis::connection::Connector;
use faregate::ledger::redis::discovery::slot_of;
use faregate::ledger::redis::script;
use faregate::ledger::redis::wire::{Keyspace, decode, encode};
use faregate::ledger::redis::{OpenError, shard_of};
use faregate::ledger::{Act, Answer, Op};
use futures_util::future::join_all;

use super::{Spending, accounts, exact, patient};
use crate::redis_ledger::fixture::{Bank, Fixture, ask, credits, id, reserve, settings};
use crate::support::{RedisCluster, eventually};

/// Shards of a ledger on a Cluster where nothing else is set.
const SHARDS: usize = 16;

/// failures 1 and 2: the check and the taking are one step on every shard, whichever node has it.
#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_at_once_get_exactly_what_is_there_on_each_shard() {
    let cluster = RedisCluster::start();
    let fixture = Fixture::with(&patient(&cluster.url())).await;
    assert_eq!(fixture.redis_ledger.shards() as usize, SHARDS);
    let accounts: Vec<_> = (0..12).map(|number| fixture.account(&format!("rider-{number}"), 50)).collect();
    let used: BTreeSet<_> = accounts.iter().map(|account| shard_of(account, SHARDS)).collect();
    let nodes: BTreeSet<_> = used.iter().map(|shard| cluster.owner(slot_of(u32::try_from(*shard).unwrap()))).collect();
    assert_eq!(nodes.len(), 3, "on all nodes: {used:?}");
    let workers: Vec<_> = (0..4).map(|_| fixture.connect()).collect();
    for account in &accounts {
        let answers = join_all((0..200).map(|number| ask(&workers[number % 4], account, reserve(1)))).await;
        assert_eq!(answers.iter().filter(|answer| matches!(answer, Answer::Reserved(_))).count(), 50);
        let balance = fixture.balance(account).await;
        assert_eq!((balance.available, balance.held, balance.in_flight), (credits(0), credits(50), 50));
    }
    fixture.shut_down().await;
    // The count of shards is the ledger's own from now on.
    let other = faregate::config::Ledger { shards: 4, ..patient(&cluster.url()) };
    let refused = Fixture::over(std::sync::Arc::new(Bank::default()), &other).await.err();
    assert!(matches!(refused, Some(OpenError::Shards { created: 16, set: 4 })), "{refused:?}");
    // A node of a Cluster is not one server.
    let alone = settings(&format!("redis://127.0.0.1:{}", cluster.nodes[0].port()));
    let refused = Fixture::over(std::sync::Arc::new(Bank::default()), &alone).await.err();
    assert!(matches!(refused, Some(OpenError::InCluster(_))), "{refused:?}");
    // failures 50: every node must keep what it has.
    cluster.nodes[2].command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let refused = Fixture::over(std::sync::Arc::new(Bank::default()), &patient(&cluster.url())).await.err();
    assert!(matches!(refused, Some(OpenError::Evicts { .. })), "{refused:?}");
    for shard in [0, 7, 15] {
        let slot = cluster.nodes[0].command(&["CLUSTER", "KEYSLOT", &format!("fg:{{{shard:02x}}}:meta")]);
        assert_eq!(slot, slot_of(shard).to_string());
    }
}

/// failures 48, 49: slots move from node to node under load, with scripts that no node knows any more. Batches wait while
/// their keys are on both sides; each takes effect once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_under_load() {
    let cluster = RedisCluster::start();
    let fixture = Fixture::with(&patient(&cluster.url())).await;
    fixture.sweep();
    let accounts = accounts(&fixture, 6);
    let load = Spending::start(&fixture.ledger, &accounts, 2);
    load.more(20).await;
    for round in 0..crate::recovery::rounds() {
        let account = &accounts[round % accounts.len()];
        let slot = slot_of(u32::try_from(shard_of(account, SHARDS)).unwrap());
        let from = cluster.owner(slot);
        let to = cluster.other_primary(from);
        cluster.nodes[to].command(&["SCRIPT", "FLUSH"]);
        tokio::task::block_in_place(|| {
            cluster.begin_move(slot, from, to, 3);
            cluster.end_move(slot, from, to);
        });
        load.more(20).await;
    }
    exact(&fixture, load.stop().await).await;
    assert_eq!(fixture.metrics.reopenings.get(), 0, "nothing was lost, and nothing taken for lost");
    assert_eq!(fixture.metrics.sessions_fenced.get(), 0);
    fixture.shut_down().await;
}

/// While some of a shard's keys are here and some there, its scripts can run nowhere: batches wait, and the shard is neither
/// taken for lost nor made anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_half_moved_waits() {
    let cluster = RedisCluster::start();
    let fixture = Fixture::with(&patient(&cluster.url())).await;
    fixture.sweep();
    let ada = fixture.account("ada", 100);
    let hold = fixture.reserve(&ada, 10).await;
    let slot = slot_of(u32::try_from(shard_of(&ada, SHARDS)).unwrap());
    let from = cluster.owner(slot);
    let to = cluster.other_primary(from);
    assert_eq!(cluster.begin_move(slot, from, to, 2), 2);
    let again = || fixture.metrics.ledger_calls.with_label_values(&["again"]).get();
    let before = again();
    let reply = fixture.ledger.submit(Op { account: ada.clone(), act: crate::redis_ledger::fixture::settle(&hold, 4) });
    eventually(Duration::from_secs(20), "the batch is asked to come again", || async {
        (again() > before + 2).then_some(())
    })
    .await;
    cluster.end_move(slot, from, to);
    let settled = reply.await.unwrap();
    assert_eq!(settled, Answer::Settled { charged: credits(4), available: credits(96) });
    assert_eq!(cluster.owner(slot), to);
    assert_eq!(fixture.metrics.reopenings.get(), 0);
    let Answer::Balance(balance) = ask(&fixture.ledger, &ada, Act::Balance).await else { panic!("no balance") };
    assert_eq!((balance.available, balance.seq), (credits(96), 1));
    fixture.shut_down().await;
}

/// Where all keys of a call have moved and the slot has not yet, the call is made where they are, with a script that has to be
/// loaded there first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_found_where_they_have_moved() {
    let cluster = RedisCluster::start();
    let fixture = Fixture::with(&patient(&cluster.url())).await;
    let ada = fixture.account("ada", 100);
    let hold = fixture.reserve(&ada, 10).await;
    fixture.settle(&ada, hold, 4).await;
    let begun = fixture.bank.cursor().epoch;
    fixture.shut_down().await;
    let shard = u32::try_from(shard_of(&id("ada"), SHARDS)).unwrap();
    let slot = slot_of(shard);
    let from = cluster.owner(slot);
    let to = cluster.other_primary(from);
    cluster.nodes[to].command(&["SCRIPT", "FLUSH"]);
    cluster.begin_move(slot, from, to, 1_000);
    let connector = Connector::new(&cluster.url(), Duration::from_secs(5)).unwrap();
    let mut link = connector.link(prometheus::IntCounter::new("reconnects", "reconnects").unwrap());
    link.turn_to(shard);
    let keys = Keyspace::new(shard, begun);
    let exists = link.send(redis::cmd("EXISTS").arg(keys.meta())).await.unwrap();
    assert_eq!(exists, redis::Value::Int(1));
    let (meta, events, argument) = (keys.meta(), keys.events(), encode::numbers(&[begun, 0]));
    let look = script::OPEN.command([meta.as_str(), events.as_str()].into_iter(), &argument);
    let stands = link.call_bytes(&script::OPEN, &look).await.unwrap();
    let [epoch, counter, _, closed] = decode::numbers::<4>(&stands).unwrap();
    assert_eq!((u64::try_from(epoch), counter, closed), (Ok(begun), 1, 0));
    assert_eq!(cluster.owner(slot), from, "the slot itself has not moved");
}

/// failures 45: a primary and its replica change places under load, as in an upgrade: the one that was demoted redirects, and
/// nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_failover_loses_nothing() {
    let cluster = RedisCluster::start();
    let fixture = Fixture::with(&patient(&cluster.url())).await;
    let accounts = accounts(&fixture, 3);
    let load = Spending::start(&fixture.ledger, &accounts, 2);
    load.more(20).await;
    let slot = slot_of(u32::try_from(shard_of(&accounts[0], SHARDS)).unwrap());
    for _ in 0..2 {
        let primary = cluster.owner(slot);
        let replica = cluster.replica_of(primary);
        assert_eq!(cluster.nodes[replica].command(&["CLUSTER", "FAILOVER"]), "OK");
        eventually(Duration::from_secs(30), "they change places", || async {
            (cluster.owner(slot) == replica).then_some(())
        })
        .await;
        load.more(20).await;
        tokio::task::block_in_place(|| cluster.wait_until_whole());
    }
    exact(&fixture, load.stop().await).await;
    assert_eq!(fixture.metrics.reopenings.get(), 0);
    fixture.shut_down().await;
}
