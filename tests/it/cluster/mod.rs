//! The ledger on a Redis Cluster, and on a Redis that Sentinels watch: real servers, moved, demoted and killed.

mod failover;
mod sentinel;
mod slots;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use faregate::config;
use faregate::ledger::{AccountId, Answer, SharedLedger};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::redis_ledger::fixture::{Fixture, ask, reserve, settings, settle};
use crate::support::eventually;

/// A call to a loaded machine is not given up too soon: what is slow is not lost.
fn patient(url: &str) -> config::Ledger {
    config::Ledger { call_timeout_ms: 2_000, heartbeat_interval_ms: 200, ..settings(url) }
}

/// Reserves and settles again and again, one micro-credit each time.
struct Spending {
    tasks: JoinSet<()>,
    stop: CancellationToken,
    settled: Vec<(AccountId, Arc<AtomicU64>)>,
}

impl Spending {
    /// For each account by so many at once.
    fn start(ledger: &SharedLedger, accounts: &[AccountId], at_once: usize) -> Spending {
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let mut settled = Vec::new();
        for account in accounts {
            let count = Arc::new(AtomicU64::new(0));
            settled.push((account.clone(), count.clone()));
            for _ in 0..at_once {
                tasks.spawn(spend(ledger.clone(), account.clone(), count.clone(), stop.clone()));
            }
        }
        Spending { tasks, stop, settled }
    }

    /// Waits until each account was charged so many times more.
    async fn more(&self, count: u64) {
        let now = |settled: &AtomicU64| settled.load(Ordering::Relaxed);
        let goals: Vec<u64> = self.settled.iter().map(|(_, settled)| now(settled) + count).collect();
        eventually(Duration::from_secs(60), &format!("{count} more settles"), || async {
            self.settled.iter().zip(&goals).all(|((_, settled), goal)| now(settled) >= *goal).then_some(())
        })
        .await;
    }

    /// Answers how often each account was charged.
    async fn stop(mut self) -> Vec<(AccountId, i64)> {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        let count = |(account, count): (AccountId, Arc<AtomicU64>)| {
            (account, i64::try_from(count.load(Ordering::Relaxed)).unwrap())
        };
        self.settled.into_iter().map(count).collect()
    }
}

async fn spend(ledger: SharedLedger, account: AccountId, count: Arc<AtomicU64>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let act = reserve(5);
        let reply = ledger.submit(faregate::ledger::Op { account: account.clone(), act }).await;
        // Refused while the ledger is out of reach.
        let Ok(answer) = reply else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let Answer::Reserved(hold) = answer else { panic!("{answer:?}") };
        let answer = ask(&ledger, &account, settle(&hold, 1)).await;
        assert!(matches!(answer, Answer::Settled { charged, .. } if charged.micro() == 1), "{answer:?}");
        count.fetch_add(1, Ordering::Relaxed);
    }
}

const MICRO: i64 = 1_000_000;

/// Accounts on every shard, or nearly.
fn accounts(fixture: &Fixture, count: usize) -> Vec<AccountId> {
    (0..count).map(|number| fixture.account(&format!("rider-{number}"), MICRO)).collect()
}

/// Each settle was charged once, and nothing is held.
async fn exact(fixture: &Fixture, charged: Vec<(AccountId, i64)>) {
    for (account, charged) in charged {
        let balance = fixture.balance(&account).await;
        assert_eq!((balance.available.micro(), balance.held.micro()), (MICRO - charged, 0), "{account}");
    }
}
