//! The journal of the SQLite store: what `append` wrote is in the tables once, whatever happens before or during a fold.

use std::path::Path;

use faregate::ledger::{Delta, Event, GrantId, Kept, RecordId, RecordState};
use faregate::store::{self, Cursor, FlushBatch, Journal, PageRequest, SharedStore, StoreError, journal};
use faregate::usage::Usage;
use uuid::Uuid;

use super::{Under, assert_books, batch, dead, event, funded, id, settled};

/// More than one slice of a fold takes.
const MANY: u64 = 1_000;

fn of(store: &SharedStore) -> &dyn Journal {
    store.journal().expect("SQLite has one")
}

async fn fold_all(store: &SharedStore) -> (u64, u64) {
    let mut written = (0, 0);
    while let Some(folded) = of(store).fold(0).await.unwrap() {
        written = (written.0 + folded.usage_rows, written.1 + folded.dead_letters);
    }
    written
}

/// The files as a killed process leaves them: database and log, nothing checkpointed.
fn crashed(dir: &Path) -> tempfile::TempDir {
    let crashed = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if !entry.file_name().to_string_lossy().ends_with("-shm") {
            std::fs::copy(entry.path(), crashed.path().join(entry.file_name())).unwrap();
        }
    }
    crashed
}

/// Leaves off what was written last to the write-ahead log: a commit that the machine did not finish.
fn tear(dir: &Path, bytes: u64) {
    let log = dir.join(format!("{}-wal", store::SQLITE_FILE));
    let file = std::fs::OpenOptions::new().write(true).open(log).unwrap();
    file.set_len(file.metadata().unwrap().len() - bytes).unwrap();
}

async fn open(under: &Under, dir: &Path) -> SharedStore {
    store::open(&under.settings, dir).await.unwrap()
}

/// Events that take turns between two accounts, one credit micro each.
fn turns(count: u64) -> Vec<Event> {
    (0..count).map(|number| settled(if number % 2 == 0 { "a" } else { "b" }, 2 + number / 2, 1, 1)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_appended_reaches_the_tables_with_the_fold() {
    let under = Under::sqlite().await;
    funded(&under, "u").await;
    assert_eq!(of(&under.store).journal_end(0).await.unwrap(), Cursor { epoch: 0, counter: 1 });
    let written = batch(1, vec![settled("u", 2, 1, 1_000_000), settled("u", 3, 1, 250_000)]);
    of(&under.store).append(written.clone()).await.unwrap();
    for again in [written, batch(0, vec![]), batch(7, vec![])] {
        assert!(matches!(of(&under.store).append(again).await, Err(StoreError::CursorMoved)));
    }
    of(&under.store).append(batch(2, vec![settled("u", 4, 1, 50_000)])).await.unwrap();
    assert_eq!(of(&under.store).journal_end(0).await.unwrap(), Cursor { epoch: 0, counter: 3 });
    assert_eq!(under.store.cursor(0).await.unwrap().counter, 1, "the tables are as they were");
    assert_eq!(under.sql("SELECT seq, balance FROM credits"), ["1|5000000"]);

    let folded = of(&under.store).fold(0).await.unwrap().unwrap();
    assert_eq!((folded.to, folded.usage_rows), (Cursor { epoch: 0, counter: 3 }, 3));
    assert_eq!((folded.dead_letters, folded.full), (0, false));
    assert_eq!(of(&under.store).fold(0).await.unwrap(), None, "a fold is idempotent");
    assert_eq!(under.sql("SELECT seq, balance, charged FROM credits"), ["4|3700000|1300000"]);
    let usage = under.store.usage(&id("u"), PageRequest::default()).await.unwrap();
    assert_eq!(usage.data.iter().map(|row| row.seq).collect::<Vec<_>>(), [4, 3, 2]);
    assert_eq!(under.number("SELECT count(*) FROM ledger_journal"), 0);
    assert_books(&under);
}

/// failures 23 (bifrost#3548): a process killed after `append` answered, and one killed within it.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_was_left_is_folded_at_the_next_start() {
    let mut under = Under::sqlite().await;
    funded(&under, "u").await;
    of(&under.store).append(batch(1, vec![settled("u", 2, 1, 10)])).await.unwrap();
    of(&under.store).append(batch(2, vec![settled("u", 3, 1, 20)])).await.unwrap();
    let (whole, torn) = (crashed(under.dir.path()), crashed(under.dir.path()));
    tear(torn.path(), 100);
    under.store.close().await;
    for (dir, counter, row) in [(torn, 2, "2|4999990"), (whole, 3, "3|4999970")] {
        under.store = open(&under, dir.path()).await;
        under.dir = dir;
        assert_eq!(under.store.cursor(0).await.unwrap().counter, counter);
        assert_eq!(of(&under.store).journal_end(0).await.unwrap().counter, counter);
        assert_eq!(under.sql("SELECT seq, balance FROM credits"), [row]);
        assert_eq!(under.number("SELECT count(*) FROM usage_logs"), i64::try_from(counter).unwrap() - 1);
        assert!(dead(&under).is_empty());
        assert_books(&under);
        under.store.close().await;
    }
}

/// A fold cut off between two of its transactions goes on there: nothing is lost, and nothing counts twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_fold_that_was_cut_off_goes_on() {
    let mut under = Under::sqlite().await;
    for name in ["a", "b"] {
        funded(&under, name).await;
    }
    of(&under.store).append(batch(2, turns(MANY))).await.unwrap();
    // The second slice cannot say that it was written.
    under.sql("CREATE TRIGGER cut BEFORE UPDATE ON ledger_folds BEGIN SELECT RAISE(ABORT, 'cut'); END");
    assert!(of(&under.store).fold(0).await.is_err());
    let done = under.number("SELECT done FROM ledger_folds");
    assert!(0 < done && done < i64::try_from(MANY).unwrap(), "{done}");
    assert_eq!(under.number("SELECT count(*) FROM usage_logs"), done);
    assert_eq!(under.store.cursor(0).await.unwrap().counter, 2, "the cursor moves with the last slice");
    under.sql("DROP TRIGGER cut");
    // More comes before it goes on, in the next process.
    of(&under.store).append(batch(3, vec![settled("a", 2 + MANY / 2, 1, 1)])).await.unwrap();
    let dir = crashed(under.dir.path());
    under.store.close().await;
    under.store = open(&under, dir.path()).await;
    under.dir = dir;
    assert_eq!(under.store.cursor(0).await.unwrap().counter, 4);
    assert_eq!(under.sql("SELECT seq, charged FROM credits ORDER BY user_id"), ["502|501", "501|500"]);
    assert_eq!(under.number("SELECT count(*) FROM usage_logs"), i64::try_from(MANY).unwrap() + 1);
    assert!(dead(&under).is_empty());
    assert_books(&under);
}

/// failures 26 (autumn e0aaf6725): a row that cannot be written stops none behind it at the fold either.
#[tokio::test(flavor = "multi_thread")]
async fn a_poisoned_event_is_a_dead_letter_of_the_fold() {
    let under = Under::sqlite().await;
    for name in ["a", "b"] {
        funded(&under, name).await;
    }
    under.poison("poison");
    let poisoned = Usage { request_id: Uuid::now_v7(), model: Some("poison".into()), ..Usage::default() };
    let poisoned = Event { usage: poisoned.encode(), ..settled("a", 2, 1, 60) };
    let garbage = Event { usage: b"\xc1 no usage".as_slice().into(), ..settled("b", 2, 1, 5) };
    let misfit = Event { deltas: [Delta { grant: GrantId(9), micro: -7 }].into_iter().collect(), ..event("b", 3) };
    of(&under.store).append(batch(2, vec![poisoned, garbage])).await.unwrap();
    of(&under.store).append(batch(3, vec![settled("a", 3, 1, 80), misfit])).await.unwrap();
    assert_eq!(fold_all(&under.store).await, (1, 3));
    assert_eq!(dead(&under), ["a|2|refused", "b|2|unreadable_usage", "b|3|unknown_grant"]);
    assert_eq!(under.sql("SELECT seq, balance, debt FROM credits ORDER BY user_id"), ["3|4999860|0", "3|4999995|7"]);
}

/// A record is answered from its table, by whoever loads the account next: it is not in the journal.
#[tokio::test(flavor = "multi_thread")]
async fn records_do_not_wait_for_the_fold() {
    let under = Under::sqlite().await;
    funded(&under, "u").await;
    let answer = Kept::Released { available_micro: 5 };
    let record =
        RecordState { id: RecordId(Uuid::from_u128(1)), fingerprint: 1, until: u64::MAX >> 2, held: None, answer };
    let records = vec![(id("u"), record.clone())];
    of(&under.store).append(FlushBatch { records, ..batch(1, vec![]) }).await.unwrap();
    assert_eq!(under.store.load_account(&id("u")).await.unwrap().unwrap().records, [record]);
    assert_eq!(fold_all(&under.store).await, (0, 0));
    assert_eq!(under.store.cursor(0).await.unwrap().counter, 2, "an entry without events moves the cursor too");
}

/// What stands in the journal comes before what another ledger would write, and belongs to its epoch.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_passes_a_journal_that_is_not_folded() {
    let under = Under::sqlite().await;
    funded(&under, "u").await;
    of(&under.store).append(batch(1, vec![settled("u", 2, 1, 10)])).await.unwrap();
    let cursor = under.store.cursor(0).await.unwrap();
    assert!(matches!(under.store.flush(batch(1, vec![])).await, Err(StoreError::Unavailable(_))));
    assert!(matches!(under.store.raise_epoch(0, cursor).await, Err(StoreError::CursorMoved)));
    journal::fold_rest(&under.store).await.unwrap();
    let raised = under.store.raise_epoch(0, under.store.cursor(0).await.unwrap()).await.unwrap();
    assert_eq!(raised, Cursor { epoch: 1, counter: 0 });
    // Whoever had the store before appends no more.
    let stale = of(&under.store).append(batch(2, vec![settled("u", 3, 1, 10)])).await;
    assert!(matches!(stale, Err(StoreError::CursorMoved)), "{stale:?}");
    let next = FlushBatch { from: raised, to: 1, events: vec![settled("u", 3, 1, 10)], ..FlushBatch::default() };
    of(&under.store).append(next).await.unwrap();
    assert_eq!(fold_all(&under.store).await, (1, 0));
    assert_eq!(under.sql("SELECT seq, balance FROM credits"), ["3|4999980"]);
}

/// Entries that are missing or cannot be read are money that nobody can account for: nothing goes on over them.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_journal_is_not_passed_over() {
    for damage in
        ["DELETE FROM ledger_journal WHERE last = 2", "UPDATE ledger_journal SET events = x'c1' WHERE last = 2"]
    {
        let under = Under::sqlite().await;
        funded(&under, "u").await;
        of(&under.store).append(batch(1, vec![settled("u", 2, 1, 10)])).await.unwrap();
        of(&under.store).append(batch(2, vec![settled("u", 3, 1, 10)])).await.unwrap();
        under.sql(damage);
        let folded = of(&under.store).fold(0).await;
        assert!(matches!(&folded, Err(StoreError::Unavailable(why)) if why.contains("journal")), "{folded:?}");
        assert_eq!(under.sql("SELECT seq, balance FROM credits"), ["1|5000000"]);
        under.store.close().await;
        assert!(store::open(&under.settings, under.dir.path()).await.is_err(), "nor does a start");
    }
}

/// Folds, group commits and operators at once: nobody waits for long, and the books balance.
#[tokio::test(flavor = "multi_thread")]
async fn appending_goes_on_while_folding() {
    let under = Under::sqlite().await;
    for name in ["a", "b"] {
        funded(&under, name).await;
    }
    let folding = async {
        let mut rows = 0;
        while rows < 50 * 40 {
            match of(&under.store).fold(0).await {
                Ok(Some(folded)) => rows += folded.usage_rows,
                Ok(None) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    let appending = async {
        for (counter, events) in turns(50 * 40).chunks(40).enumerate() {
            of(&under.store).append(batch(2 + counter as u64, events.to_vec())).await.unwrap();
        }
    };
    tokio::join!(folding, appending);
    assert_eq!(under.sql("SELECT seq, charged FROM credits ORDER BY user_id"), ["1001|1000", "1001|1000"]);
    assert_eq!(under.number("SELECT count(*) FROM usage_logs"), 2_000);
    assert!(dead(&under).is_empty());
    assert_books(&under);
}
