//! Keys, and what every replica is told of users; answers kept under a key.

use super::*;

suite!(
    a_revoked_key_is_told_to_every_replica,
    a_frozen_user_is_told_to_every_replica,
    a_new_plan_is_told_to_every_replica,
    keys_belong_to_users,
    an_idempotency_key_answers_once,
);

async fn a_revoked_key_is_told_to_every_replica(under: Under) {
    let store = &under.store;
    store.create_user(new_user("u", 0)).await.unwrap();
    store.create_key(key("k1", Some("u"))).await.unwrap();
    store.create_key(key("k2", Some("u"))).await.unwrap();
    let (start, changes) = store.identity_changes(0).await.unwrap();
    assert!(start > 0 && changes.is_empty());
    assert_eq!(store.identity_changes(start).await.unwrap(), (start, vec![]));
    for stranger in [Some(id("v")), Some(id("u"))] {
        let wrong = if stranger == Some(id("u")) { "k9" } else { "k1" };
        assert!(matches!(store.revoke_key(stranger.as_ref(), wrong).await, Err(StoreError::NotFound(_))));
    }
    let revoked = store.revoke_key(Some(&id("u")), "k1").await.unwrap();
    assert!(revoked.revoked_at.is_some());
    assert_eq!(store.key_by_hash(&revoked.hash).await.unwrap(), Some(revoked.clone()));
    let (next, changes) = store.identity_changes(start).await.unwrap();
    assert_eq!((next > start, changes), (true, vec![IdentityChange::Key { hash: revoked.hash }]));
    // Again: the same answer, and nothing to tell.
    assert_eq!(store.revoke_key(None, "k1").await.unwrap(), revoked);
    assert_eq!(store.identity_changes(next).await.unwrap(), (next, vec![]));
    store.revoke_key(None, "k2").await.unwrap();
    assert_eq!(store.identity_changes(start).await.unwrap().1.len(), 2);
    assert_eq!(store.identity_changes(0).await.unwrap(), (store.identity_changes(next).await.unwrap().0, vec![]));
}

async fn a_frozen_user_is_told_to_every_replica(under: Under) {
    funded(&under, "u").await;
    let (start, _) = under.store.identity_changes(0).await.unwrap();
    under.store.add_change(change("u", Change::Freeze { scope: Scope::Account }, "")).await.unwrap();
    assert_eq!(under.store.user(&id("u")).await.unwrap().unwrap().status, UserStatus::Frozen);
    let (next, changes) = under.store.identity_changes(start).await.unwrap();
    assert_eq!(changes, [IdentityChange::User { id: id("u") }]);
    under.store.add_change(change("u", Change::Unfreeze { scope: Scope::Account }, "")).await.unwrap();
    assert_eq!(under.store.user(&id("u")).await.unwrap().unwrap().status, UserStatus::Active);
    assert_eq!(under.store.identity_changes(next).await.unwrap().1.len(), 1);
}

/// What a plan allows is kept by every replica: a new plan is told to them all.
async fn a_new_plan_is_told_to_every_replica(under: Under) {
    let store = &under.store;
    store.create_user(new_user("u", 0)).await.unwrap();
    let (since, _) = store.identity_changes(0).await.unwrap();
    let moved = store.set_plan(&id("u"), "pro", "stripe").await.unwrap();
    assert_eq!((moved.plan.as_str(), store.user(&id("u")).await.unwrap()), ("pro", Some(moved.clone())));
    let (next, told) = store.identity_changes(since).await.unwrap();
    assert_eq!(told, [IdentityChange::User { id: id("u") }]);
    // The same plan again is no change.
    assert_eq!(store.set_plan(&id("u"), "pro", "stripe").await.unwrap(), moved);
    assert_eq!(store.identity_changes(next).await.unwrap().1, []);
    assert_eq!(under.sql("SELECT actor, detail FROM audit_log WHERE action = 'user.plan'"), ["stripe|pro"]);
    let nobody = store.set_plan(&id("nobody"), "pro", "stripe").await;
    assert!(matches!(nobody, Err(StoreError::NotFound(_))), "{nobody:?}");
    under.sql("UPDATE users SET status = 'closed'");
    let closed = store.set_plan(&id("u"), "free", "stripe").await;
    assert!(matches!(closed, Err(StoreError::Conflict(_))), "{closed:?}");
}

async fn keys_belong_to_users(under: Under) {
    let store = &under.store;
    let orphan = store.create_key(key("k1", Some("nobody"))).await;
    assert!(matches!(orphan, Err(StoreError::NotFound(_))), "{orphan:?}");
    store.create_user(new_user("u", 0)).await.unwrap();
    let (mine, service) = (key("k1", Some("u")), key("s1", None));
    store.create_key(mine.clone()).await.unwrap();
    store.create_key(service.clone()).await.unwrap();
    let again = store.create_key(KeyRow { id: "k2".into(), ..mine.clone() }).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
    assert_eq!(store.key_by_hash(&mine.hash).await.unwrap(), Some(mine.clone()));
    assert_eq!(store.key_by_hash(&[9; 32]).await.unwrap(), None);
    assert_eq!(store.keys_of(Some(&id("u"))).await.unwrap(), [mine]);
    assert_eq!(store.keys_of(None).await.unwrap(), [service]);
}

async fn an_idempotency_key_answers_once(under: Under) {
    let store = &under.store;
    let begin = async |scope: &str, fingerprint| store.idempotency_begin(scope, "k", fingerprint).await.unwrap();
    let fingerprint = u64::MAX - 1;
    assert_eq!(begin("u", fingerprint).await, Idempotent::Begun);
    assert_eq!(begin("u", fingerprint).await, Idempotent::Running);
    assert_eq!(begin("u", 2).await, Idempotent::Mismatch);
    assert_eq!(begin("v", 2).await, Idempotent::Begun);
    store.idempotency_finish("u", "k", 201, "{}").await.unwrap();
    let finished = Idempotent::Finished { status: 201, body: "{}".into() };
    assert_eq!(begin("u", fingerprint).await, finished);
    assert_eq!(begin("u", 2).await, Idempotent::Mismatch);
    // A late second end does not change the answer.
    store.idempotency_finish("u", "k", 500, "late").await.unwrap();
    store.idempotency_forget("u", "k").await.unwrap();
    assert_eq!(begin("u", fingerprint).await, finished);
    store.idempotency_forget("v", "k").await.unwrap();
    assert_eq!(begin("v", 3).await, Idempotent::Begun);
    // One that never ended is free after a minute, an answer after a day.
    under.age("idempotency_keys", "begun_at", 61);
    assert_eq!(begin("v", 4).await, Idempotent::Begun);
    assert_eq!(begin("u", fingerprint).await, finished);
    under.age("idempotency_keys", "begun_at", 24 * 3600);
    assert_eq!(begin("u", 5).await, Idempotent::Begun);
    // Of many at once, one begins.
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let store = store.clone();
        tasks.spawn(async move { store.idempotency_begin("w", "k", 1).await.unwrap() });
    }
    let begun = tasks.join_all().await.into_iter().filter(|answer| *answer == Idempotent::Begun).count();
    assert_eq!(begun, 1);
}
