//! Notifications: numbered, told once, read, and claimed for delivery.

use faregate::store::billing::{Decision, Effect};
use faregate::store::notifications::{Delivered, Marked, Notice, NoticeKind};
use serde_json::json;

use super::*;

suite!(
    notifications_are_told_once_and_numbered,
    notifications_come_in_pages_and_are_marked,
    a_freeze_tells_its_user,
    a_decision_tells_in_its_own_transaction,
    deliveries_are_claimed_by_one_at_a_time,
    a_delivery_given_up_is_a_dead_letter,
    standings_follow_an_account,
);

fn notice(user: &str, key: &str) -> Notice {
    let data = json!({ "key": key });
    Notice { user: id(user), kind: NoticeKind::CreditsLow, data, dedupe_key: key.to_owned() }
}

async fn numbers(under: &Under, user: &str, unread: bool) -> Vec<u64> {
    let page = under.store.notifications(&id(user), unread, PageRequest::default()).await.unwrap();
    page.data.iter().map(|row| row.number).collect()
}

/// Many at once, each key several times: each is told once, and the numbers have no gap.
async fn notifications_are_told_once_and_numbered(under: Under) {
    funded(&under, "u").await;
    let mut tasks = tokio::task::JoinSet::new();
    for attempt in 0..40 {
        let store = under.store.clone();
        tasks.spawn(async move { store.notify(notice("u", &format!("k{}", attempt % 10))).await.unwrap() });
    }
    let fresh = tasks.join_all().await.into_iter().filter(|fresh| *fresh).count();
    assert_eq!(fresh, 10);
    assert_eq!(numbers(&under, "u", false).await, (1..=10).rev().collect::<Vec<_>>());
    let nobody = under.store.notify(notice("nobody", "k")).await;
    assert!(matches!(nobody, Err(StoreError::NotFound(_))), "{nobody:?}");
    let after = under.store.notifications_after(&id("u"), 8, 100).await.unwrap();
    assert_eq!(after.iter().map(|row| row.number).collect::<Vec<_>>(), [9, 10]);
}

async fn notifications_come_in_pages_and_are_marked(under: Under) {
    funded(&under, "u").await;
    funded(&under, "v").await;
    for key in ["a", "b", "c", "d"] {
        assert!(under.store.notify(notice("u", key)).await.unwrap());
    }
    under.store.notify(notice("v", "a")).await.unwrap();
    let first = under.store.notifications(&id("u"), false, PageRequest { limit: 3, cursor: None }).await.unwrap();
    assert_eq!(first.data.iter().map(|row| row.number).collect::<Vec<_>>(), [4, 3, 2]);
    assert_eq!((first.data[0].kind.as_str(), first.data[0].data.as_str()), ("credits_low", r#"{"key":"d"}"#));
    let rest = PageRequest { limit: 3, cursor: first.next };
    let rest = under.store.notifications(&id("u"), false, rest).await.unwrap();
    assert_eq!((rest.data.len(), rest.next), (1, None));
    let mark = async |which| under.store.mark_read(&id("u"), which).await.unwrap();
    assert_eq!(mark(Marked::Numbers(vec![2, 3, 3, 99])).await, 2);
    assert_eq!(mark(Marked::Numbers(vec![2])).await, 0, "it was read");
    assert_eq!(numbers(&under, "u", true).await, [4, 1]);
    assert_eq!(mark(Marked::All).await, 2);
    assert_eq!(numbers(&under, "u", true).await, [0; 0]);
    assert_eq!(numbers(&under, "v", true).await, [1], "another's are another's");
}

async fn a_freeze_tells_its_user(under: Under) {
    funded(&under, "u").await;
    let freeze = |scope| Change::Freeze { scope };
    under.store.add_change(change("u", freeze(Scope::Account), "f1")).await.unwrap();
    under.store.add_change(change("u", freeze(Scope::Account), "f2")).await.unwrap();
    under.store.add_change(change("u", freeze(Scope::Grant { grant: GrantId(1) }), "f3")).await.unwrap();
    under.store.add_change(change("u", Change::Unfreeze { scope: Scope::Account }, "f4")).await.unwrap();
    let page = under.store.notifications(&id("u"), false, PageRequest::default()).await.unwrap();
    let kinds: Vec<&str> = page.data.iter().map(|row| row.kind.as_str()).collect();
    assert_eq!(kinds, ["account_unfrozen", "account_frozen"]);
}

async fn a_decision_tells_in_its_own_transaction(under: Under) {
    funded(&under, "u").await;
    let version = under.store.billing_account(&id("u")).await.unwrap().version;
    let tell = |key: &str| Effect::Notify {
        kind: NoticeKind::SubscriptionChanged,
        data: json!({ "plan": "pro" }),
        dedupe_key: key.to_owned(),
    };
    let decision = |version, effects| Decision { user: id("u"), version, actor: "test".into(), effects, event: None };
    let both = vec![Effect::Plan("free".into()), tell("s1"), tell("s1")];
    assert!(under.store.apply_decision(decision(version, both)).await.unwrap().is_some());
    // Void, and so is what it would have told.
    assert!(under.store.apply_decision(decision(version, vec![tell("s2")])).await.unwrap().is_none());
    assert_eq!(numbers(&under, "u", false).await, [1]);
}

async fn deliveries_are_claimed_by_one_at_a_time(under: Under) {
    funded(&under, "u").await;
    under.store.notify(notice("u", "before")).await.unwrap();
    let claim = async |lease_us| under.store.claim_deliveries(10, lease_us).await.unwrap();
    assert_eq!(claim(0).await, [], "nobody is to be told");
    under.store.open_outlet(true).await.unwrap();
    for key in ["a", "b", "c"] {
        under.store.notify(notice("u", key)).await.unwrap();
    }
    assert_eq!(under.store.deliveries_waiting().await.unwrap(), 3);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let store = under.store.clone();
        tasks.spawn(async move { store.claim_deliveries(2, 60_000_000).await.unwrap() });
    }
    let mut claimed: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    while claimed.len() < 3 {
        claimed.extend(claim(60_000_000).await);
    }
    let mut numbers: Vec<u64> = claimed.iter().map(|delivery| delivery.notification.number).collect();
    numbers.sort_unstable();
    assert_eq!((numbers, claimed[0].attempt), (vec![2, 3, 4], 1), "what was raised before is not told");
    // A lease that ran out: the next attempt is another's, and the first one's word no longer counts.
    let stale = claimed.remove(0);
    under.sql(match under.server {
        None => "UPDATE notifications SET due_at = 1 WHERE due_at IS NOT NULL",
        Some(_) => "UPDATE notifications SET due_at = now() - interval '1 second' WHERE due_at IS NOT NULL",
    });
    let again = claim(60_000_000).await;
    assert_eq!((again.len(), again[0].attempt), (3, 2));
    under.store.finish_delivery(&stale, Delivered::Done).await.unwrap();
    assert_eq!(under.store.deliveries_waiting().await.unwrap(), 3);
    for delivery in &again {
        under.store.finish_delivery(delivery, Delivered::Done).await.unwrap();
    }
    assert_eq!(under.store.deliveries_waiting().await.unwrap(), 0);
    under.store.notify(notice("u", "late")).await.unwrap();
    under.store.open_outlet(false).await.unwrap();
    assert_eq!(claim(0).await, [], "closed");
}

async fn a_delivery_given_up_is_a_dead_letter(under: Under) {
    funded(&under, "u").await;
    under.store.open_outlet(true).await.unwrap();
    under.store.notify(notice("u", "a")).await.unwrap();
    let delivery = under.store.claim_deliveries(1, 60_000_000).await.unwrap().remove(0);
    let dead = || Delivered::Dead { error: "status 500".into() };
    under.store.finish_delivery(&delivery, dead()).await.unwrap();
    under.store.finish_delivery(&delivery, dead()).await.unwrap();
    let letters = under.store.dead_letters(PageRequest::default()).await.unwrap().data;
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!((letter.reason.as_str(), letter.detail.as_str(), letter.seq), ("undelivered", "status 500", 1));
    assert_eq!(letter.event, r#"{"attempts":1,"data":{"key":"a"},"kind":"credits_low","notification":1}"#);
    assert_books(&under);
}

async fn standings_follow_an_account(under: Under) {
    funded(&under, "u").await;
    let standing = async || under.store.standings(&[id("nobody"), id("u")]).await.unwrap().remove(0);
    let before = standing().await;
    assert_eq!((before.seq, before.notices, before.billing_version), (1, 0, 0));
    under.store.flush(batch(1, vec![settled("u", 2, 1, 10)])).await.unwrap();
    under.store.notify(notice("u", "a")).await.unwrap();
    let account = under.store.billing_account(&id("u")).await.unwrap();
    let effects = vec![Effect::Flagged(true)];
    let decision = Decision { user: id("u"), version: account.version, actor: "test".into(), effects, event: None };
    under.store.apply_decision(decision).await.unwrap();
    let after = standing().await;
    assert_eq!((after.seq, after.notices), (2, 1));
    assert!(after.billing_version > before.billing_version);
}
