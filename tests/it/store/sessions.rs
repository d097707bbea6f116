//! Who is signed in on the pages, and links that open once.

use faregate::ledger::Micros;
use faregate::store::sessions::{MAX_SESSIONS, Session};

use super::*;

suite!(a_link_opens_once, what_has_expired_opens_nothing, sessions_are_bounded, users_are_found_by_how_they_begin);

const HOUR_US: Micros = 3_600 * 1_000_000;

fn now() -> Micros {
    Micros::try_from(jiff::Timestamp::now().as_microsecond()).unwrap()
}

async fn a_link_opens_once(under: Under) {
    let store = &under.store;
    funded(&under, "u").await;
    assert!(matches!(store.add_link([1; 32], &id("ghost"), now() + HOUR_US).await, Err(StoreError::NotFound(_))));
    store.add_link([1; 32], &id("u"), now() + HOUR_US).await.unwrap();
    assert_eq!(store.redeem_link([2; 32], [9; 32], now() + HOUR_US).await.unwrap(), None);
    assert_eq!(store.link_user([2; 32]).await.unwrap(), None);
    assert_eq!(store.link_user([1; 32]).await.unwrap(), Some(id("u")), "asking does not use it up");
    let attempts: Vec<_> = (10..18)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move { store.redeem_link([1; 32], [number; 32], now() + HOUR_US).await.unwrap() })
        })
        .collect();
    let mut opened = Vec::new();
    for attempt in attempts {
        opened.extend(attempt.await.unwrap());
    }
    assert_eq!(opened, [id("u")]);
    assert_eq!(store.link_user([1; 32]).await.unwrap(), None);
    assert_eq!(under.number("SELECT count(*) FROM page_sessions"), 1);
    assert_eq!(under.number("SELECT count(*) FROM sign_in_links"), 0);
}

async fn what_has_expired_opens_nothing(under: Under) {
    let store = &under.store;
    funded(&under, "u").await;
    store.add_link([1; 32], &id("u"), now() - 1).await.unwrap();
    assert_eq!(store.link_user([1; 32]).await.unwrap(), None);
    assert_eq!(store.redeem_link([1; 32], [9; 32], now() + HOUR_US).await.unwrap(), None);
    let session = Session { hash: [3; 32], user: Some(id("u")), expires_at: now() + HOUR_US };
    store.begin_session(session.clone()).await.unwrap();
    assert_eq!(store.session([3; 32]).await.unwrap(), Some(session));
    under.age("page_sessions", "expires_at", 3_601);
    assert_eq!(store.session([3; 32]).await.unwrap(), None);
    let operator = Session { hash: [4; 32], user: None, expires_at: now() + HOUR_US };
    store.begin_session(operator.clone()).await.unwrap();
    assert_eq!(under.number("SELECT count(*) FROM page_sessions"), 1, "the old one is gone");
    assert_eq!(store.session([4; 32]).await.unwrap(), Some(operator));
    store.end_session([4; 32]).await.unwrap();
    assert_eq!(store.session([4; 32]).await.unwrap(), None);
}

async fn sessions_are_bounded(under: Under) {
    let store = &under.store;
    funded(&under, "u").await;
    let most = u8::try_from(MAX_SESSIONS).unwrap();
    for number in 0..=most {
        let expires_at = now() + HOUR_US + Micros::from(number);
        store.begin_session(Session { hash: [number; 32], user: Some(id("u")), expires_at }).await.unwrap();
    }
    assert_eq!(under.number("SELECT count(*) FROM page_sessions"), MAX_SESSIONS);
    assert_eq!(store.session([0; 32]).await.unwrap(), None);
    assert!(store.session([most; 32]).await.unwrap().is_some());
    // Operators have theirs apart from users'.
    for number in 0..=most {
        let expires_at = now() + HOUR_US + Micros::from(number);
        store.begin_session(Session { hash: [100 + number; 32], user: None, expires_at }).await.unwrap();
    }
    assert_eq!(under.number("SELECT count(*) FROM page_sessions"), 2 * MAX_SESSIONS);
    assert_eq!(store.session([100; 32]).await.unwrap(), None);
    assert!(store.session([100 + most; 32]).await.unwrap().is_some());
}

async fn users_are_found_by_how_they_begin(under: Under) {
    let store = &under.store;
    for (name, email) in [("ann", "Zoe@example.com"), ("anton", "a@example.com"), ("bob", "annie@example.com")] {
        store.create_user(NewUser { email: Some(email.into()), ..new_user(name, 0) }).await.unwrap();
    }
    let found = async |text: &str| {
        let page = store.find_users(text, PageRequest { limit: 2, cursor: None }).await.unwrap();
        (page.data.iter().map(|user| user.id.to_string()).collect::<Vec<_>>(), page.next)
    };
    let (first, next) = found("an").await;
    assert_eq!(first, ["ann", "anton"]);
    let rest = store.find_users("an", PageRequest { limit: 2, cursor: next }).await.unwrap();
    assert_eq!(rest.data.iter().map(|user| user.id.as_str()).collect::<Vec<_>>(), ["bob"]);
    assert_eq!(found("zoe@EX").await.0, ["ann"]);
    assert_eq!(found("%").await.0, Vec::<String>::new());
    assert_eq!(found("nn").await.0, Vec::<String>::new());
}
