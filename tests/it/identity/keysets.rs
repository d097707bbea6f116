//! The issuer's key set: rotated, slow, down, and asked by garbage.

use std::time::{Duration, Instant};

use faregate_sim::stack_auth::Person;
use http::StatusCode;

use super::{Ground, StackAuth, ann, check, trusting};
use crate::support::eventually;

const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn keys_rotate_without_anybody_noticing() {
    let issuer = StackAuth::start();
    let (ground, _) = Ground::model(trusting(&issuer)).await;
    let rig = ground.replica();
    let before = issuer.token(&ann());
    assert!(check(&rig, &before).await.status.is_success());
    let asked = issuer.asked();
    issuer.rotate();
    // The other key was in the set already.
    assert!(check(&rig, &issuer.token(&Person::new("b", "b@example.com"))).await.status.is_success());
    assert_eq!(issuer.asked(), asked);
    issuer.rotate();
    let (now, rig) = (issuer.token(&Person::new("c", "c@example.com")), &rig);
    eventually(SOON, "a key that is new", || async { check(rig, &now).await.status.is_success().then_some(()) }).await;
    assert!(issuer.asked() > asked);
    // What was signed by a key that left the set is no longer believed, once its minute in the cache is over.
    issuer.replace_keys();
    let fresh = issuer.token(&Person::new("d", "d@example.com"));
    eventually(SOON, "keys that are all new", || async { check(rig, &fresh).await.status.is_success().then_some(()) })
        .await;
    let other = ground.replica();
    let answer = check(&other, &before).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert!(answer.text().contains("does not publish"), "{}", answer.text());
}

/// Garbage cannot hammer the issuer, nor make many wait for it.
#[tokio::test]
async fn unknown_keys_ask_the_issuer_once_in_a_while() {
    let issuer = StackAuth::start();
    let mut config = trusting(&issuer);
    config.tokens.jwks_min_interval_ms = 3_600_000;
    let (ground, _) = Ground::model(config).await;
    let rig = ground.replica();
    let asks = (0..200).map(|number| {
        let mut draft = issuer.draft(&ann());
        draft.header["kid"] = format!("garbage-{number}").into();
        let (rig, token) = (&rig, issuer.signed(&draft));
        async move { check(rig, &token).await.status }
    });
    let statuses = futures_util::future::join_all(asks).await;
    assert!(statuses.iter().all(|status| *status == StatusCode::UNAUTHORIZED), "{statuses:?}");
    assert_eq!(issuer.asked(), 1);
    assert!(check(&rig, &issuer.token(&ann())).await.status.is_success(), "its own are known all the same");
}

/// While the issuer is down, its known keys go on; nobody unknown gets in, and is told to come back.
#[tokio::test]
async fn an_issuer_that_is_down_takes_nobody_with_it() {
    let issuer = StackAuth::start();
    let (ground, _) = Ground::model(trusting(&issuer)).await;
    let rig = ground.replica();
    issuer.set_down(true);
    let answer = check(&rig, &issuer.token(&ann())).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "never known");
    assert!(answer.headers.contains_key("retry-after"));
    issuer.set_down(false);
    let token = issuer.token(&ann());
    eventually(SOON, "the issuer is back", || async { check(&rig, &token).await.status.is_success().then_some(()) })
        .await;
    issuer.set_down(true);
    assert!(check(&rig, &issuer.token(&Person::new("b", "b@example.com"))).await.status.is_success());
    issuer.replace_keys();
    let unknown = || async {
        let answer = check(&rig, &issuer.token(&ann())).await;
        (answer.status == StatusCode::SERVICE_UNAVAILABLE).then_some(())
    };
    eventually(SOON, "a new key that cannot be read is no wrong token", unknown).await;
}

/// The first tokens wait for a slow issuer together; one that never answers is given up.
#[tokio::test]
async fn a_slow_issuer_is_asked_once() {
    let issuer = StackAuth::start();
    issuer.set_delay(Duration::from_millis(300));
    let (ground, _) = Ground::model(trusting(&issuer)).await;
    let rig = ground.replica();
    let asks = (0..20).map(|number| {
        let (rig, token) = (&rig, issuer.token(&Person::new(&format!("p{number}"), &format!("p{number}@example.com"))));
        async move { check(rig, &token).await.status }
    });
    let statuses = futures_util::future::join_all(asks).await;
    assert!(statuses.iter().all(|status| *status == StatusCode::OK), "{statuses:?}");
    assert_eq!(issuer.asked(), 1);
    let mut config = trusting(&issuer);
    config.tokens.jwks_timeout_ms = 100;
    issuer.set_delay(Duration::from_secs(30));
    let (ground, _) = Ground::model(config).await;
    let begun = Instant::now();
    assert_eq!(check(&ground.replica(), &issuer.token(&ann())).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(begun.elapsed() < Duration::from_secs(20), "it was waited for to the end");
}
