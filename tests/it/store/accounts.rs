//! Users, their changes and grants, and what a load shows of them.

use super::*;

suite!(
    a_new_user_has_its_signup_credits,
    changes_are_numbered_without_gaps,
    a_source_key_counts_once,
    a_load_shows_what_is_flushed,
    the_schema_refuses_what_must_not_be,
    lists_come_in_pages,
);

async fn a_new_user_has_its_signup_credits(under: Under) {
    let store = &under.store;
    assert!(store.is_empty().await.unwrap());
    let user = store.create_user(NewUser { email: Some("a@b.c".into()), ..new_user("u", 5) }).await.unwrap();
    assert_eq!((user.plan.as_str(), user.status), ("free", UserStatus::Active));
    assert_eq!(store.user(&id("u")).await.unwrap(), Some(user));
    assert!(!store.is_empty().await.unwrap());
    let again = store.create_user(new_user("u", 5)).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
    // The grant is stored, and not in a load before the ledger has applied it.
    let grants = store.grants(&id("u")).await.unwrap();
    assert_eq!(grants.len(), 1);
    assert_eq!(
        (grants[0].id, grants[0].remaining, &*grants[0].source_key),
        (GrantId(1), Credits::whole(5), "signup:u")
    );
    let state = store.load_account(&id("u")).await.unwrap().unwrap();
    assert_eq!((state.change, state.seq, state.grants.len()), (0, 0, 0));
    assert_eq!(store.unapplied_accounts(None, 10).await.unwrap(), [unapplied("u", 1)]);
    assert_eq!(store.load_account(&id("nobody")).await.unwrap(), None);
    assert_eq!(store.create_user(new_user("poor", 0)).await.unwrap().id, id("poor"));
    assert_eq!(store.grants(&id("poor")).await.unwrap(), []);
}

async fn changes_are_numbered_without_gaps(under: Under) {
    for name in ["a", "b"] {
        under.store.create_user(new_user(name, 0)).await.unwrap();
    }
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..50 {
        let store = under.store.clone();
        let account = if index % 2 == 0 { "a" } else { "b" };
        tasks.spawn(async move { store.add_change(change(account, grant(1), "")).await.unwrap() });
    }
    let mut numbers: Vec<(AccountId, u64)> =
        tasks.join_all().await.into_iter().map(|row| (row.account, row.number)).collect();
    numbers.sort();
    let expected: Vec<(AccountId, u64)> =
        ["a", "b"].iter().flat_map(|name| (1..=25).map(|number| (id(name), number))).collect();
    assert_eq!(numbers, expected);
    assert_eq!(under.store.changes_after(&id("a"), 20).await.unwrap().len(), 5);
    let store = &under.store;
    assert_eq!(store.unapplied_accounts(None, 9).await.unwrap(), [unapplied("a", 25), unapplied("b", 25)]);
    assert_eq!(store.unapplied_accounts(None, 1).await.unwrap(), [unapplied("a", 25)]);
    assert_eq!(store.unapplied_accounts(Some(&id("a")), 9).await.unwrap(), [unapplied("b", 25)]);
    assert_eq!(store.unapplied_accounts(Some(&id("b")), 9).await.unwrap(), []);
}

/// failures 30, 31 (opencode#28402, vm0#10668): the guard is in the transaction, so concurrent deliveries grant once.
async fn a_source_key_counts_once(under: Under) {
    for name in ["a", "b"] {
        under.store.create_user(new_user(name, 0)).await.unwrap();
    }
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let store = under.store.clone();
        tasks.spawn(async move { store.add_change(change("a", grant(100), "invoice:1")).await.unwrap() });
    }
    let rows = tasks.join_all().await;
    assert!(rows.iter().all(|row| row.number == 1));
    assert_eq!(rows.iter().filter(|row| row.fresh).count(), 1);
    assert_eq!(under.store.grants(&id("a")).await.unwrap().len(), 1);
    let stolen = under.store.add_change(change("b", grant(100), "invoice:1")).await;
    assert!(matches!(stolen, Err(StoreError::Conflict(_))), "{stolen:?}");
    assert_eq!(under.store.add_change(change("a", grant(1), "")).await.unwrap().number, 2);
}

async fn a_load_shows_what_is_flushed(under: Under) {
    funded(&under, "u").await;
    under.store.add_change(change("u", grant(7), "second")).await.unwrap();
    under.store.add_change(change("u", Change::Freeze { scope: Scope::Account }, "")).await.unwrap();
    // The ledger has applied neither: it gets them as changes, not by loading.
    let state = under.store.load_account(&id("u")).await.unwrap().unwrap();
    assert_eq!((state.change, state.frozen), (1, false));
    assert_eq!(state.grants.iter().map(|grant| grant.id.0).collect::<Vec<_>>(), [1]);
    under.store.flush(batch(1, vec![applied("u", 2, 2)])).await.unwrap();
    let state = under.store.load_account(&id("u")).await.unwrap().unwrap();
    assert_eq!((state.seq, state.change, state.frozen, state.grants.len()), (2, 2, false, 2));
    assert_eq!(under.store.unapplied_accounts(None, 10).await.unwrap(), [unapplied("u", 1)]);
    under.store.flush(batch(2, vec![applied("u", 3, 3)])).await.unwrap();
    assert!(under.store.load_account(&id("u")).await.unwrap().unwrap().frozen);
    assert_eq!(under.store.unapplied_accounts(None, 10).await.unwrap(), []);
    // A grant with nothing left is not loaded.
    under.store.flush(batch(3, vec![settled("u", 4, 2, 7)])).await.unwrap();
    assert_eq!(under.store.load_account(&id("u")).await.unwrap().unwrap().grants.len(), 1);
    assert_books(&under);
}

async fn the_schema_refuses_what_must_not_be(under: Under) {
    funded(&under, "u").await;
    funded(&under, "v").await;
    for forbidden in [
        "UPDATE credit_grants SET remaining = -1",
        "UPDATE credit_grants SET remaining = amount + 1",
        "UPDATE credits SET debt = -1",
        "UPDATE credit_changes SET source_key = 'same'",
        "UPDATE credit_grants SET source_key = 'same'",
        "DELETE FROM users",
        "DELETE FROM credit_changes",
        "UPDATE users SET status = 'gone'",
        "INSERT INTO credits (user_id) VALUES ('nobody')",
    ] {
        assert!(under.try_sql(forbidden).is_err(), "{forbidden}");
    }
    assert_books(&under);
}

/// failures 27 (litellm#37007): no list is answered whole.
async fn lists_come_in_pages(under: Under) {
    for index in 0..7 {
        under.store.create_user(new_user(&format!("u{index}"), 0)).await.unwrap();
    }
    let (mut seen, mut cursor) = (Vec::new(), None);
    loop {
        let page = under.store.users(PageRequest { limit: 3, cursor }).await.unwrap();
        assert!(page.data.len() <= 3);
        seen.extend(page.data.into_iter().map(|user| user.id.to_string()));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["u0", "u1", "u2", "u3", "u4", "u5", "u6"]);

    under.store.flush(batch(0, (1..=6).map(|seq| settled("u0", seq, 1, 0)).collect())).await.unwrap();
    let first = under.store.usage(&id("u0"), PageRequest { limit: 4, cursor: None }).await.unwrap();
    assert_eq!(first.data.iter().map(|row| row.seq).collect::<Vec<_>>(), [6, 5, 4, 3]);
    // What is settled meanwhile does not shift the next page.
    under.store.flush(batch(1, vec![settled("u0", 7, 1, 0)])).await.unwrap();
    let second = under.store.usage(&id("u0"), PageRequest { limit: 4, cursor: first.next }).await.unwrap();
    assert_eq!(second.data.iter().map(|row| row.seq).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(second.next, None);
    for (limit, cursor) in [(0, None), (501, None), (5, Some("!".to_owned())), (5, Some("YWJj".to_owned()))] {
        let answer = under.store.usage(&id("u0"), PageRequest { limit, cursor }).await;
        assert!(matches!(answer, Err(StoreError::Invalid(_))), "{answer:?}");
    }
    assert!(under.store.usage(&id("nobody"), PageRequest::default()).await.unwrap().data.is_empty());
}
