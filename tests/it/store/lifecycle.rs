//! Opening, migrating, closing, and what survives.

use super::*;

suite!(
    reopening_keeps_everything,
    migrating_twice_does_nothing,
    a_newer_schema_is_refused,
    pruning_removes_only_what_is_past,
    what_was_acknowledged_survives_a_crash,
    a_closed_store_is_unavailable,
);

/// failures 23 (bifrost#3548, #5925): a restart loses nothing that was flushed.
async fn reopening_keeps_everything(mut under: Under) {
    funded(&under, "u").await;
    under.store.flush(batch(1, vec![settled("u", 2, 1, 1_000_000)])).await.unwrap();
    under.store.create_key(key("k1", Some("u"))).await.unwrap();
    let before = under.store.load_account(&id("u")).await.unwrap();
    under.reopen().await;
    assert_eq!(under.store.load_account(&id("u")).await.unwrap(), before);
    assert_eq!(under.store.usage(&id("u"), PageRequest::default()).await.unwrap().data.len(), 1);
    assert_eq!(under.store.keys_of(Some(&id("u"))).await.unwrap().len(), 1);
    assert_eq!(under.store.cursor(0).await.unwrap().counter, 2);
    under.store.ping().await.unwrap();
    assert_books(&under);
}

async fn migrating_twice_does_nothing(under: Under) {
    assert_eq!(under.store.migrate().await.unwrap(), 0);
    under.store.check_schema().await.unwrap();
    let empty = under.beside().await;
    let unmigrated = empty.store.check_schema().await;
    assert!(
        matches!(&unmigrated, Err(StoreError::Schema(what)) if what.contains("faregate migrate")),
        "{unmigrated:?}"
    );
    // Several replicas start at once.
    let (first, second) = tokio::join!(empty.store.migrate(), empty.store.migrate());
    let mut ran = [first.unwrap(), second.unwrap()];
    ran.sort_unstable();
    assert!(ran[0] == 0 && ran[1] > 0, "{ran:?}");
    empty.store.check_schema().await.unwrap();
}

async fn a_newer_schema_is_refused(under: Under) {
    under.sql(
        "INSERT INTO refinery_schema_history (version, name, applied_on, checksum)
            VALUES (999, 'the_future', '2030-01-01T00:00:00Z', '1')",
    );
    for answer in [under.store.migrate().await.map(drop), under.store.check_schema().await] {
        assert!(
            matches!(&answer, Err(StoreError::Schema(what)) if what.contains("999") && what.contains("newer program")),
            "{answer:?}"
        );
    }
    assert!(store::open(&under.settings, under.dir.path()).await.is_err());
}

async fn pruning_removes_only_what_is_past(under: Under) {
    funded(&under, "u").await;
    let now = u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_micros()).unwrap();
    let hours = |count: u64| count * 3_600_000_000;
    let mut records = batch(1, vec![]);
    records.records =
        [record(1, now - hours(2), None), record(2, now + hours(1), None), record(3, now - hours(2), Some(1))]
            .map(|record| (id("u"), record))
            .to_vec();
    records.sessions = vec![(1, 1)];
    under.store.flush(records).await.unwrap();
    under.store.idempotency_begin("u", "old", 1).await.unwrap();
    under.age("idempotency_keys", "begun_at", 25 * 3600);
    under.store.idempotency_begin("u", "new", 1).await.unwrap();
    under.store.add_change(change("u", Change::Freeze { scope: Scope::Account }, "")).await.unwrap();
    let (last, _) = under.store.identity_changes(0).await.unwrap();
    under.age("identity_changes", "at", 25 * 3600);
    under.store.prune().await.unwrap();
    assert_eq!(under.sql("SELECT key FROM idempotency_keys"), ["new"]);
    assert_eq!(under.number("SELECT count(*) FROM ledger_records"), 2);
    assert_eq!(under.number("SELECT count(*) FROM ledger_sessions"), 1);
    assert_eq!(under.number("SELECT count(*) FROM identity_changes"), 0);
    // Numbers go on after pruning.
    assert_eq!(under.store.identity_changes(0).await.unwrap(), (last, vec![]));
    under.store.add_change(change("u", Change::Unfreeze { scope: Scope::Account }, "")).await.unwrap();
    assert_eq!(under.store.identity_changes(last).await.unwrap().1.len(), 1);
}

/// failures 23 (bifrost#3548): what `flush` answered for is there after the process was killed, without any ending.
async fn what_was_acknowledged_survives_a_crash(mut under: Under) {
    funded(&under, "u").await;
    under.store.flush(batch(1, vec![settled("u", 2, 1, 1_000_000)])).await.unwrap();
    if under.server.is_none() {
        // The files as a killed process leaves them: database and log, nothing checkpointed.
        let crashed = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(under.dir.path()).unwrap() {
            let entry = entry.unwrap();
            if !entry.file_name().to_string_lossy().ends_with("-shm") {
                std::fs::copy(entry.path(), crashed.path().join(entry.file_name())).unwrap();
            }
        }
        under.store.close().await;
        under.dir = crashed;
    }
    under.store = store::open(&under.settings, under.dir.path()).await.unwrap();
    assert_eq!(under.store.cursor(0).await.unwrap().counter, 2);
    assert_eq!(under.sql("SELECT seq, balance FROM credits"), ["2|4000000"]);
    assert_books(&under);
}

async fn a_closed_store_is_unavailable(under: Under) {
    under.store.close().await;
    under.store.close().await;
    let answer = under.store.user(&id("u")).await;
    assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
}

/// failures 24, 46: a database whose replies are lost, or that is gone. Every question ends within its time as
/// "unavailable", what was asked may have happened all the same, and afterwards everything works without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn an_absent_postgres_is_unavailable_and_comes_back() {
    let server = tokio::task::spawn_blocking(Postgres::own).await.unwrap();
    let direct: std::net::SocketAddr = server.url().split(['@', '/']).nth(3).unwrap().parse().unwrap();
    let proxy = ChaosProxy::start(direct);
    let url = server.url().replace(&direct.to_string(), &proxy.addr().to_string());
    let settings = config::Store { url, timeout_ms: 1_500, ..config::Store::default() };
    let store = store::open(&settings, Path::new("/nonexistent")).await.unwrap();
    store.create_user(new_user("u", 5)).await.unwrap();
    let patience = Duration::from_secs(30);
    let unavailable = async |counter| {
        let asked = tokio::time::timeout(patience, store.flush(batch(counter, vec![]))).await;
        assert!(matches!(asked, Ok(Err(StoreError::Unavailable(_)))), "{asked:?}");
        let asked = tokio::time::timeout(patience, store.ping()).await;
        assert!(matches!(asked, Ok(Err(StoreError::Unavailable(_)))), "{asked:?}");
    };
    let back = async || eventually(patience, "the store answers", async || store.ping().await.ok()).await;

    proxy.swallow_replies(true);
    unavailable(0).await;
    proxy.swallow_replies(false);
    proxy.cut();
    back().await;
    // Whether the flush happened, the cursor tells; trying again is safe either way.
    let again = store.flush(batch(0, vec![])).await;
    assert!(matches!(again, Ok(_) | Err(StoreError::CursorMoved)), "{again:?}");
    assert_eq!(store.cursor(0).await.unwrap().counter, 1);

    server.kill();
    unavailable(1).await;
    server.restart();
    back().await;
    store.flush(batch(1, vec![applied("u", 1, 1)])).await.unwrap();
    assert_eq!(store.load_account(&id("u")).await.unwrap().unwrap().grants.len(), 1);
    store.close().await;
}

#[tokio::test]
async fn a_postgres_that_requires_tls_is_not_spoken_to_without() {
    let server = tokio::task::spawn_blocking(Postgres::start).await.unwrap();
    let url = format!("{}?sslmode=require", server.url());
    let settings = config::Store { url, ..config::Store::default() };
    let refused = store::open(&settings, Path::new("/nonexistent")).await.map(drop);
    assert!(matches!(&refused, Err(StoreError::Unavailable(why)) if why.contains("TLS")), "{refused:?}");
}
