//! Who has the store to itself.

use super::*;

suite!(a_store_has_one_owner_at_a_time);

async fn a_store_has_one_owner_at_a_time(under: Under) {
    let (long, first, second) = (3_600_000_000, u64::MAX, 7);
    assert!(under.store.own(first, long).await.unwrap());
    assert!(under.store.own(first, long).await.unwrap(), "it says so again");
    assert!(!under.store.own(second, long).await.unwrap());
    assert!(under.store.own(second, 0).await.unwrap(), "a gateway takes it from whoever had it");
    under.store.disown(first).await.unwrap();
    assert!(!under.store.own(first, long).await.unwrap(), "it was another's");
    under.store.disown(second).await.unwrap();
    assert!(under.store.own(first, long).await.unwrap());
}
