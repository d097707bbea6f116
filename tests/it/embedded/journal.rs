//! Between the journal and the tables: what dies there, what fails there, and who must wait.

use std::sync::atomic::Ordering;

use faregate::config;
use faregate::credits::Credits;
use faregate::ledger::hold::Refusal;
use faregate::ledger::{Act, Answer, Status};
use faregate::usage::Usage;

use super::{SOON, World, charge, usage};
use crate::support::eventually;

/// failures 22, 23 (litellm#33872, bifrost#3548): acknowledged, in the journal, in no table, and then the process dies.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_journal_has_survives_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::begin(&dir, config::Ledger::default()).await;
    let user = world.user("ada", 50).await;
    world.folded().await;
    world.store.stop_folding();
    let hold = world.reserve(&user, 10).await.unwrap();
    hold.settle(Credits::whole(7), 0, usage()).await.unwrap();
    assert!(matches!(world.ask(&user, charge(2, true, None)).await, Ok(Answer::Settled { .. })));
    assert_eq!(world.ledger.outbox().unfolded(), 2);
    world.die().await;

    for _ in 0..2 {
        let world = World::begin(&dir, config::Ledger::default()).await;
        assert_eq!(world.balance(&user).await.available, Credits::whole(41), "not what the tables had");
        assert_eq!(world.charged(&user).await, [Credits::whole(2), Credits::whole(7)], "each once");
        world.die().await;
    }
}

/// An account whose events are not all in its row must not be loaded from it: it would get back what it spent.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_not_parked_before_it_is_folded() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::begin(&dir, config::Ledger::default()).await;
    let user = world.user("ada", 50).await;
    world.folded().await;
    world.store.stop_folding();
    assert!(matches!(world.ask(&user, charge(8, true, None)).await, Ok(Answer::Settled { .. })));
    world.clock.0.store(601_000_000, Ordering::SeqCst);
    world.ledger.sweep();
    assert_eq!(world.ledger.loaded_accounts(), 1, "its row is old");
    assert_eq!(world.balance(&user).await.available, Credits::whole(42));
    world.store.fold_on();
    world.folded().await;
    world.ledger.sweep();
    assert_eq!(world.ledger.loaded_accounts(), 0);
    assert_eq!(world.balance(&user).await.available, Credits::whole(42));
    world.end().await;
}

/// failures 24 (litellm#21514): a journal that is not folded is a backlog like any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_is_not_folded_refuses_new_work() {
    let dir = tempfile::tempdir().unwrap();
    let settings = config::Ledger { max_backlog: 5, ..config::Ledger::default() };
    let world = World::begin(&dir, settings).await;
    let user = world.user("ada", 50).await;
    world.folded().await;
    world.store.stop_folding();
    let hold = world.reserve(&user, 1).await.unwrap();
    for _ in 0..5 {
        assert!(matches!(world.ask(&user, charge(1, true, None)).await, Ok(Answer::Settled { .. })));
    }
    assert_eq!(world.worker.status(), Status::Backlogged);
    assert_eq!(world.reserve(&user, 1).await.unwrap_err(), Refusal::Backlogged);
    hold.settle(Credits::whole(1), 0, usage()).await.unwrap();
    assert_eq!(world.ledger.outbox().unfolded(), 6, "settles always pass");
    world.store.fold_on();
    world.folded().await;
    assert_eq!(world.worker.status(), Status::Ready);
    world.reserve(&user, 1).await.unwrap().release().await.unwrap();
    world.end().await;
}

/// failures 24 (litellm#21514): few events may be large ones, and count by their bytes; folded they are forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_bounded_in_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let settings = config::Ledger { max_backlog: 20, ..config::Ledger::default() };
    let world = World::begin(&dir, settings).await;
    let user = world.user("ada", 50).await;
    world.folded().await;
    assert_eq!(world.ledger.outbox().bytes(), 0);
    world.store.stop_folding();
    let large = Usage { reason: Some("x".repeat(20 * 1_024)), ..Usage::decode(&usage()).unwrap() }.encode();
    let act = Act::Charge { actual: Credits::whole(1), must: true, usage: large, record: None };
    assert!(matches!(world.ask(&user, act).await, Ok(Answer::Settled { .. })));
    assert_eq!(world.worker.status(), Status::Backlogged);
    assert_eq!(world.reserve(&user, 1).await.unwrap_err(), Refusal::Backlogged);
    world.store.fold_on();
    world.folded().await;
    assert_eq!((world.worker.status(), world.ledger.outbox().bytes()), (Status::Ready, 0));
    world.end().await;
}

/// failures 46: a fold that failed is done again, and one whose answer was lost is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_fold_of_unknown_outcome_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::begin(&dir, config::Ledger::default()).await;
    let user = world.user("ada", 50).await;
    world.store.failing_folds.store(2, Ordering::SeqCst);
    world.ask(&user, charge(1, true, None)).await.unwrap();
    assert_eq!(world.charged(&user).await, [Credits::whole(1)]);
    world.store.lying_folds.store(1, Ordering::SeqCst);
    world.ask(&user, charge(2, true, None)).await.unwrap();
    assert_eq!(world.charged(&user).await, [2, 1].map(Credits::whole));
    eventually(SOON, "the lie was told", async || (world.store.lying_folds.load(Ordering::SeqCst) == 0).then_some(()))
        .await;
    assert_eq!(world.metrics.dead_letters.get(), 0);
    world.end().await;
}
