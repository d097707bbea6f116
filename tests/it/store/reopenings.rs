//! Sessions that end when a shard is opened anew.

use faregate::store::StoreError;
use faregate::store::reopenings::SESSION_CLOSED;

use super::*;

suite!(a_closed_session_stays_closed);

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
