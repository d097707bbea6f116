//! Sessions that end when a shard is opened anew.

use faregate::bridge::StoreEpochs;
use faregate::ledger::SessionId;
use faregate::ledger::redis::Epochs;
use faregate::ledger::redis::wire::decode::Entry;
use faregate::store::StoreError;
use faregate::store::reopenings::SESSION_CLOSED;

use super::*;

suite!(a_closed_session_stays_closed, what_survived_is_charged_once_under_its_key);

/// failures 46, 47: only what was read is closed, doing it again changes nothing, and a batch that comes later lowers nothing.
async fn a_closed_session_stays_closed(under: Under) {
    let flush = FlushBatch { sessions: vec![(7, 3)], ..batch(0, Vec::new()) };
    under.store.flush(flush).await.unwrap();
    let numbers = async || {
        let mut numbers = under.store.session_numbers(0, vec![7, 8, 9]).await.unwrap();
        numbers.sort_unstable();
        numbers
    };
    let moved = under.store.close_sessions(0, vec![(7, 2), (8, 0)]).await;
    assert!(matches!(moved, Err(StoreError::CursorMoved)), "{moved:?}");
    assert_eq!(numbers().await, [(7, 3)], "all or nothing");
    for _ in 0..2 {
        under.store.close_sessions(0, vec![(7, 3), (8, 0)]).await.unwrap();
        assert_eq!(numbers().await, [(7, SESSION_CLOSED), (8, SESSION_CLOSED)]);
    }
    let flush = FlushBatch { sessions: vec![(7, 4)], ..batch(1, Vec::new()) };
    under.store.flush(flush).await.unwrap();
    assert_eq!(numbers().await, [(7, SESSION_CLOSED), (8, SESSION_CLOSED)]);
}

/// An entry that survived: a charge of 10 under a record.
fn survivor(session: u64, number: u64, record: RecordState) -> Entry {
    let event = Event { kind: EventKind::Charged, record: Some(record.id), ..settled("u", 2, 1, 10) };
    Entry {
        counter: 1,
        session: SessionId(session),
        number,
        at: 0,
        events: vec![event],
        records: vec![(id("u"), record)],
        mark: vec![1],
        unreadable: None,
    }
}

/// failures 46, 47: one worker charged under a key, and the store has it; the ledger went back to before that, and another
/// worker charged under the same key before anybody noticed. Of two such survivors one is written as well, and another
/// request under the same key is another charge.
async fn what_survived_is_charged_once_under_its_key(under: Under) {
    funded(&under, "u").await;
    let first = record(1, 90, None);
    let event = Event { kind: EventKind::Charged, record: Some(first.id), ..settled("u", 2, 1, 10) };
    let from = under.store.cursor(0).await.unwrap().counter;
    let records = vec![(id("u"), first.clone())];
    let flush = FlushBatch { sessions: vec![(7, 3)], records, ..batch(from, vec![event]) };
    under.store.flush(flush).await.unwrap();
    let epochs = StoreEpochs::new(under.store.clone());
    let begun = epochs.begin(0, 0).await.unwrap();
    assert!(begun.reopening);
    let charged = || under.number("SELECT charged FROM credits");
    let write = async |entry: Entry| epochs.write(0, begun.at.epoch, vec![entry]).await.unwrap();
    assert_eq!(write(survivor(8, 1, first.clone())).await, Some(1));
    assert_eq!(charged(), 10);
    let second = record(2, 90, None);
    let both = vec![survivor(8, 2, second.clone()), survivor(9, 1, second)];
    assert_eq!(epochs.write(0, begun.at.epoch, both).await.unwrap(), Some(2));
    assert_eq!(charged(), 20);
    let other = RecordState { fingerprint: 5, ..first };
    assert_eq!(write(survivor(9, 2, other)).await, Some(1));
    assert_eq!(charged(), 30);
    epochs.end(0, begun.at.epoch).await.unwrap();
    assert_books(&under);
}
