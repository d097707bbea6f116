//! What the issuer tells: in any order, twice, late, or never.

use std::time::Duration;

use faregate_sim::stack_auth::{Message, Person, sign};
use http::{Method, StatusCode};
use serde_json::json;

use super::{Ground, StackAuth, ann, check, shown, signals, trusting};
use crate::api::rig::Rig;
use crate::support::eventually;
use crate::support::http::Answer;
use crate::support::stack_auth::WEBHOOK_SECRET;

const SOON: Duration = Duration::from_secs(10);

async fn tell(rig: &Rig, message: &Message) -> Answer {
    let at = jiff::Timestamp::now().as_second();
    let ask = rig.api(Method::POST, "/api/auth/webhook", "").header("svix-id", &message.id);
    let ask = ask.header("svix-timestamp", &at.to_string());
    let signature = sign(WEBHOOK_SECRET, &message.id, at, &message.body);
    ask.header("svix-signature", &signature).body("application/json", message.body.clone()).send().await
}

/// Tells it and waits until it was worked off.
async fn told(rig: &Rig, message: &Message) {
    let answer = tell(rig, message).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let done = || async {
        let event = rig.store.auth_event(&message.id).await.unwrap().unwrap();
        (event.state != faregate::store::billing::EventState::Pending).then_some(())
    };
    eventually(SOON, "the event is worked off", done).await;
}

pub(super) async fn a_user_is_made_once_however_often_it_is_told(ground: &Ground, issuer: &StackAuth) {
    let (one, two) = (ground.replica(), ground.replica());
    let (first, second) = (issuer.message("user.created", &ann()), issuer.message("user.created", &ann()));
    let sent = [(&one, &first), (&two, &first), (&one, &second), (&two, &second)];
    let token = issuer.token(&ann());
    let tokens = (0..4).map(|_| check(&two, &token));
    let (answers, _) = tokio::join!(
        futures_util::future::join_all(sent.map(|(rig, message)| tell(rig, message))),
        futures_util::future::join_all(tokens),
    );
    assert!(answers.iter().all(|answer| answer.status == StatusCode::OK));
    for message in [&first, &second] {
        told(&one, message).await;
    }
    let user = shown(&one, &ann().id).await;
    assert_eq!(user["grants"].as_array().unwrap().len(), 1, "{user}");
    assert_eq!((user["credits"]["available"].to_string(), &user["email"]), ("5".into(), &json!("ann@example.com")));
}

/// Issue 5, point 4: a sign-up that only the webhook tells of is judged by its risk scores, before its credits can be
/// spent; one with low scores is spared.
pub(super) async fn what_the_issuer_says_of_the_risk_is_judged(ground: &Ground, issuer: &StackAuth) {
    let rig = ground.replica();
    for (name, bot) in [("bot", 90), ("person", 40)] {
        let person = Person::new(name, &format!("{name}@example.com"));
        let mut message = issuer.message("user.created", &person);
        let mut body: serde_json::Value = serde_json::from_str(&message.body).unwrap();
        body["data"]["risk_scores"]["sign_up"]["bot"] = bot.into();
        message.body = body.to_string();
        told(&rig, &message).await;
    }
    assert_eq!(signals(&rig, "bot").await, ["signup_risk"]);
    assert_eq!(signals(&rig, "person").await, [""; 0]);
    assert_eq!(shown(&rig, "bot").await["credits"]["available"].to_string(), "0", "its free credits are held back");
    assert_eq!(shown(&rig, "person").await["credits"]["available"].to_string(), "5");
}

/// Updates overtake each other: the newest counts. A deletion counts whatever comes after it.
pub(super) async fn what_comes_late_changes_nothing(ground: &Ground, issuer: &StackAuth) {
    let rig = ground.replica();
    let created = issuer.message("user.created", &ann());
    let earlier = issuer.message("user.updated", &Person { email: Some("earlier@example.com".into()), ..ann() });
    let later = issuer.message("user.updated", &Person { email: Some("later@example.com".into()), ..ann() });
    for message in [&later, &created, &earlier] {
        told(&rig, message).await;
    }
    assert_eq!(shown(&rig, &ann().id).await["email"], "later@example.com");
    let other = Person::new("never-seen", "never@example.com");
    let (created, deleted) = (issuer.message("user.created", &other), issuer.message("user.deleted", &other));
    for message in [&deleted, &created] {
        told(&rig, message).await;
    }
    assert_eq!(check(&rig, &issuer.token(&other)).await.status, StatusCode::FORBIDDEN);
    assert_eq!(shown(&rig, "never-seen").await["status"], "closed");
}

/// Within a second, on every replica: keys, tokens, credits; and the mail address is forgotten.
pub(super) async fn a_deleted_user_is_out_everywhere_within_a_second(ground: &Ground, issuer: &StackAuth) {
    let (here, elsewhere) = (ground.replica(), ground.replica());
    let token = issuer.token(&ann());
    for rig in [&here, &elsewhere] {
        assert!(check(rig, &token).await.status.is_success());
    }
    let (key, _) = here.key(&ann().id).await;
    let by_key = |rig: &Rig| {
        let (rig, key) = (rig.clone(), key.clone());
        async move { rig.api(Method::GET, "/api/credits/check", &key).send().await.status }
    };
    assert_eq!((by_key(&here).await, by_key(&elsewhere).await), (StatusCode::OK, StatusCode::OK));
    told(&here, &issuer.message("user.deleted", &ann())).await;
    let out = || async {
        let refused = [check(&elsewhere, &token).await.status, by_key(&elsewhere).await, by_key(&here).await];
        refused.iter().all(|status| !status.is_success()).then_some(())
    };
    eventually(Duration::from_secs(1), "the user is out", out).await;
    let user = shown(&here, &ann().id).await;
    assert_eq!((&user["status"], &user["email"]), (&json!("closed"), &json!(null)), "{user}");
    let gone = || async {
        let user = shown(&here, &ann().id).await;
        (user["credits"]["available"] == json!(0)).then_some(())
    };
    eventually(SOON, "what was left is revoked", gone).await;
}

#[tokio::test]
async fn only_the_issuers_own_is_believed() {
    let issuer = StackAuth::start();
    let (ground, _) = Ground::model(trusting(&issuer)).await;
    let rig = ground.replica();
    let message = issuer.message("user.created", &ann());
    let at = jiff::Timestamp::now().as_second();
    let send = async |signature: &str, at: i64, body: &str| {
        let ask = rig.api(Method::POST, "/api/auth/webhook", "").header("svix-id", &message.id);
        let ask = ask.header("svix-timestamp", &at.to_string()).header("svix-signature", signature);
        ask.body("application/json", body.to_owned()).send().await.status
    };
    let good = sign(WEBHOOK_SECRET, &message.id, at, &message.body);
    assert_eq!(send(&good, at, "{}").await, StatusCode::BAD_REQUEST);
    assert_eq!(send(&sign("whsec_b3RoZXI=", &message.id, at, &message.body), at, &message.body).await, 400);
    let old = at - 301;
    assert_eq!(send(&sign(WEBHOOK_SECRET, &message.id, old, &message.body), old, &message.body).await, 400);
    assert_eq!(rig.store.auth_event(&message.id).await.unwrap(), None);
    assert_eq!(send(&good, at, &message.body).await, StatusCode::OK);
    let (ground, _) = Ground::model(crate::api::rig::settings()).await;
    let nowhere = tell(&ground.replica(), &message).await;
    assert_eq!(nowhere.status, StatusCode::SERVICE_UNAVAILABLE, "no secret is set up");
}
