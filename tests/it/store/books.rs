//! What keeps the books straight where they are written: bounds, and mending while old rows go.

use faregate::ledger::{Change, GrantId, GrantKind, LIVE_GRANTS_MAX};
use faregate::store::books::MendRequest;
use faregate::store::{PageRequest, Retention, StoreError};
use faregate::usage::Usage;
use uuid::Uuid;

use super::usage_sums::roll_up;
use super::{Under, assert_books, batch, change, funded, grant, id, settled};

suite!(live_grants_are_bounded, a_sum_that_rows_have_left_since_mends_nothing, hostile_cursors_are_refused);

/// `count` grants more, of a micro-credit each, that the ledger has not applied; they expire when `expires` says.
fn fill(under: &Under, count: u32, expires: &str) {
    let from = under.number("SELECT last_change FROM credits WHERE user_id = 'u'");
    let upto = from + i64::from(count);
    let numbers = format!(
        "WITH RECURSIVE n (i) AS (SELECT CAST({from} + 1 AS bigint) UNION ALL SELECT i + 1 FROM n WHERE i < {upto})"
    );
    under.sql(&format!(
        "INSERT INTO credit_changes (user_id, number, payload, actor, created_at) {numbers}
            SELECT user_id, i, payload, actor, created_at FROM credit_changes, n WHERE user_id = 'u' AND number = 1"
    ));
    under.sql(&format!(
        "INSERT INTO credit_grants (user_id, id, kind, amount, remaining, expires_at, created_at) {numbers}
            SELECT user_id, i, kind, 1, 1, {expires}, created_at FROM credit_grants, n WHERE user_id = 'u' AND id = 1"
    ));
    under.sql(&format!("UPDATE credits SET last_change = {upto} WHERE user_id = 'u'"));
}

/// Every operation walks an account's grants: who has too many would keep everybody waiting.
async fn live_grants_are_bounded(under: Under) {
    funded(&under, "u").await;
    let add = async |wanted: Change| under.store.add_change(change("u", wanted, "")).await;
    // What expired more than a minute ago, and created_at is long past, is in nobody's way.
    under.age("credit_grants", "created_at", 3_600);
    fill(&under, 40, "created_at");
    fill(&under, LIVE_GRANTS_MAX - 2, "NULL");
    add(grant(1)).await.unwrap();
    let full = add(grant(1)).await;
    assert!(matches!(&full, Err(StoreError::Conflict(why)) if why.contains("too many grants")), "{full:?}");
    // A rollover brings one for one that leaves; whatever makes no grant passes.
    let rollover = Change::Rollover { from: GrantId(1), cap_micro: 1_000_000, kind: GrantKind::Plan, expires_at: 0 };
    add(rollover.clone()).await.unwrap();
    assert!(matches!(add(rollover).await, Err(StoreError::Conflict(_))));
    add(Change::Revoke { grant: GrantId(1), amount_micro: None }).await.unwrap();
}

/// A row that was pruned after the sum was begun is in the sum, and in what is no longer kept: counted twice it would
/// take credits away.
async fn a_sum_that_rows_have_left_since_mends_nothing(under: Under) {
    funded(&under, "u").await;
    let then = uuid::Timestamp::from_unix(uuid::NoContext, 1_700_000_000, 0);
    let usage = Usage { request_id: Uuid::new_v7(then), route: "chat".into(), status: 200, ..Usage::default() };
    let mut old = settled("u", 2, 1, 30);
    old.usage = usage.encode();
    under.store.flush(batch(1, vec![old, settled("u", 3, 1, 12)])).await.unwrap();
    let request =
        |used, pruned| MendRequest { account: id("u"), upto: 3, used, pruned, hint: None, actor: "test".into() };
    assert!(!under.store.mend(request(42, 0)).await.unwrap());
    roll_up(&under).await;
    let retention = Retention { usage_months: 1, ..Retention::default() };
    assert_eq!(under.store.keep(retention).await.unwrap().usage_rows, 1);
    let late = under.store.mend(request(42, 0)).await;
    assert!(matches!(late, Err(StoreError::CursorMoved)), "{late:?}");
    assert!(!under.store.mend(request(12, 30)).await.unwrap());
    assert_eq!(under.sql("SELECT charged, balance FROM credits"), ["42|4999958"]);
    assert_books(&under);
}

/// A caller's mistake, not the store's: it is told so, and nothing is tried again.
async fn hostile_cursors_are_refused(under: Under) {
    use base64::Engine;
    let encoded = |text: &str| Some(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text));
    for cursor in [Some("%".to_owned()), encoded("a\0b"), encoded("-"), encoded("9223372036854775808")] {
        let page = PageRequest { limit: 1, cursor };
        let usage = under.store.usage(&id("u"), page.clone()).await;
        assert!(matches!(usage, Err(StoreError::Invalid(_))), "{page:?}: {usage:?}");
    }
    let users = under.store.users(PageRequest { limit: 1, cursor: encoded("a\0b") }).await;
    assert!(matches!(users, Err(StoreError::Invalid(_))), "{users:?}");
}
