//! API holds and kept answers.

use super::*;

suite!(open_holds_come_with_their_account, of_a_record_the_last_state_stands);

fn held(number: u128, until: u64) -> RecordState {
    record(number, until, Some(3))
}

/// failures 15, 16: what a loss leaves is loaded with what is held of it; answers of a day are looked up one by one.
async fn open_holds_come_with_their_account(under: Under) {
    funded(&under, "u").await;
    funded(&under, "v").await;
    let mut first = batch(2, vec![]);
    first.from = under.store.cursor(0).await.unwrap();
    first.to = first.from.counter + 1;
    first.records = vec![(id("u"), held(1, 50)), (id("u"), record(2, 60, None)), (id("v"), held(3, 70))];
    under.store.flush(first).await.unwrap();
    let state = under.store.load_open(&id("u")).await.unwrap().unwrap();
    assert_eq!(state.records, [held(1, 50)]);
    assert_eq!(state.grants.len(), 1);
    let look = async |user: &str, number: u128| {
        under.store.record(&id(user), RecordId(Uuid::from_u128(number))).await.unwrap()
    };
    assert_eq!(look("u", 2).await, Some(record(2, 60, None)));
    assert_eq!((look("v", 2).await, look("u", 9).await), (None, None), "another's is nobody's");
    assert_eq!(under.store.load_open(&id("nobody")).await.unwrap(), None);
}

/// A hold that was made and ended within one batch of the log is one row.
async fn of_a_record_the_last_state_stands(under: Under) {
    funded(&under, "u").await;
    let mut first = batch(0, vec![]);
    first.from = under.store.cursor(0).await.unwrap();
    first.to = first.from.counter + 1;
    first.records = vec![(id("u"), held(1, 50)), (id("u"), held(4, 50)), (id("u"), record(1, 90, None))];
    under.store.flush(first).await.unwrap();
    assert_eq!(under.store.load_open(&id("u")).await.unwrap().unwrap().records, [held(4, 50)]);
    let kept = under.store.record(&id("u"), RecordId(Uuid::from_u128(1))).await.unwrap();
    assert_eq!(kept, Some(record(1, 90, None)));
}
