//! Access tokens: who gets in, as whom, and with what.

use std::time::Duration;

use faregate::config::{Issuer, Unproven};
use faregate::identity::TokenFault;
use faregate_sim::stack_auth::{Draft, Person};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};

use super::{Ground, StackAuth, ann, check, settings, shown, signals, trusting};
use crate::api::rig::headers;
use crate::support::{Faregate, Options, Sim, eventually};

/// Every header that the SDK fills, on the control plane.
#[tokio::test]
async fn every_form_of_the_sdk_opens() {
    let issuer = StackAuth::start();
    let (ground, _) = Ground::model(trusting(&issuer)).await;
    let rig = ground.replica();
    let token = issuer.token(&ann());
    let json = json!({"accessToken": token, "refreshToken": "r"}).to_string();
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &json);
    for (name, value) in [
        ("x-stack-access-token", token.clone()),
        ("x-stack-auth", json),
        ("authorization", format!("Bearer {token}")),
        ("authorization", format!("Bearer stackauth_{encoded}")),
        ("x-api-key", token.clone()),
    ] {
        let answer = rig.api(Method::GET, "/api/credits/check", "").header(name, &value).send().await;
        assert_eq!(answer.status, StatusCode::OK, "{name}: {}", answer.text());
        assert_eq!(answer.json()["available"].to_string(), "5", "{name}");
    }
    let user = shown(&rig, &ann().id).await;
    assert_eq!((&user["plan"], &user["email"]), (&json!("free"), &json!("ann@example.com")));
}

const FAULTS: [TokenFault; 12] = [
    TokenFault::Malformed,
    TokenFault::TooLong,
    TokenFault::Algorithm,
    TokenFault::Critical,
    TokenFault::Issuer,
    TokenFault::UnknownKey,
    TokenFault::Signature,
    TokenFault::Expired,
    TokenFault::NotYet,
    TokenFault::Audience,
    TokenFault::Flags,
    TokenFault::Subject,
];

/// A reason that is new does not compile here: it wants its place above, and a token that is wrong so.
fn listed(fault: TokenFault) -> bool {
    match fault {
        TokenFault::Malformed
        | TokenFault::TooLong
        | TokenFault::Algorithm
        | TokenFault::Critical
        | TokenFault::Issuer
        | TokenFault::UnknownKey
        | TokenFault::Signature
        | TokenFault::Expired
        | TokenFault::NotYet
        | TokenFault::Audience
        | TokenFault::Flags
        | TokenFault::Subject => true,
    }
}

/// One test for each way in which a token can be wrong.
#[tokio::test]
async fn each_wrong_token_is_refused_with_its_reason() {
    let issuer = StackAuth::start();
    let (ground, _) = Ground::model(trusting(&issuer)).await;
    let rig = ground.replica();
    let other = StackAuth::start();
    let project = issuer.project();
    let change = |edit: &dyn Fn(&mut Draft)| {
        let mut draft = issuer.draft(&ann());
        edit(&mut draft);
        issuer.signed(&draft)
    };
    let claim = |name: &str, value: Value| change(&|draft| draft.claims[name] = value.clone());
    let header = |name: &str, value: Value| change(&|draft| draft.header[name] = value.clone());
    let now = jiff::Timestamp::now().as_second();
    let good = issuer.token(&ann());
    let altered = {
        let (head, rest) = good.split_once('.').unwrap();
        let forged = issuer.signed(&{
            let mut draft = issuer.draft(&ann());
            draft.claims["sub"] = "3b2f6d9e-0001-4000-8000-00000000000b".into();
            draft
        });
        let payload = forged.split('.').nth(1).unwrap();
        format!("{head}.{payload}.{}", rest.split_once('.').unwrap().1)
    };
    let unsigned = {
        let draft = issuer.draft(&ann());
        let part = |value: &Value| {
            base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, value.to_string())
        };
        format!("{}.{}.", part(&json!({"alg": "none", "kid": draft.header["kid"]})), part(&draft.claims))
    };
    let foreign = {
        let mut draft = other.draft(&ann());
        draft.header["kid"] = issuer.draft(&ann()).header["kid"].clone();
        draft.claims["iss"] = issuer.draft(&ann()).claims["iss"].clone();
        other.signed(&draft)
    };
    let anonymous = |name: &str| issuer.draft(&Person { anonymous: true, ..ann() }).claims[name].clone();
    let cases: [(&str, String, &str); 24] = [
        ("not a token", "a.b.c".into(), "not a signed JSON Web Token"),
        ("cut off", good[..good.len() - 2].to_owned(), "signature is wrong"),
        ("too long", format!("{good}{}", "x".repeat(9_000)), "too long"),
        ("no signature", unsigned, "algorithm"),
        ("by a secret", header("alg", "HS256".into()), "algorithm"),
        ("by another kind of key", header("alg", "RS256".into()), "algorithm"),
        ("unknown extensions", header("crit", json!(["exp"])), "extensions"),
        ("altered", altered, "signature is wrong"),
        ("by somebody else", foreign, "signature is wrong"),
        ("by an unknown key", header("kid", "garbage".into()), "does not publish"),
        ("without the key's name", header("kid", Value::Null), "does not publish"),
        ("of another issuer", other.token(&ann()), "issuer is not one of ours"),
        ("of another project", claim("project_id", "other".into()), "another audience"),
        ("for another audience", claim("aud", "other".into()), "another audience"),
        ("for several audiences", claim("aud", json!([project, "other"])), "another audience"),
        ("for the anonymous", claim("aud", anonymous("aud")), "another audience"),
        ("expired", claim("exp", (now - 1).into()), "has expired"),
        ("without an end", claim("exp", Value::Null), "has expired"),
        ("from the future", claim("iat", (now + 3_600).into()), "not valid yet"),
        ("not yet", claim("nbf", (now + 3_600).into()), "not valid yet"),
        ("restricted, and not by its audience", claim("is_restricted", true.into()), "do not fit together"),
        ("anonymous, and not by its audience", claim("is_anonymous", true.into()), "do not fit together"),
        ("without a user", claim("sub", "".into()), "names no user"),
        ("with a user that is none", claim("sub", "x".repeat(200).into()), "names no user"),
    ];
    // Every reason that there is has its cases.
    for fault in FAULTS {
        let told = fault.to_string();
        let named = listed(fault) && cases.iter().any(|(_, _, reason)| told.contains(reason));
        assert!(named, "no token here is wrong because {told}");
    }
    for (what, token, reason) in cases {
        let answer = check(&rig, &token).await;
        let problem = answer.json();
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{what}: {}", answer.text());
        assert!(problem["detail"].as_str().unwrap().contains(reason), "{what}: {problem}");
        assert!(answer.headers.contains_key("www-authenticate"), "{what}");
    }
    // An anonymous user is restricted, whatever else it says.
    let mut draft = issuer.draft(&Person { anonymous: true, ..ann() });
    draft.claims["is_restricted"] = false.into();
    let answer = check(&rig, &issuer.signed(&draft)).await;
    assert!(answer.text().contains("do not fit together"), "{}", answer.text());
    assert!(check(&rig, &good).await.status.is_success());
    assert_eq!(rig.admin(Method::GET, "/admin/v1/users").send().await.json()["data"].as_array().unwrap().len(), 1);
}

/// A token counts until it says otherwise, and not a moment longer, however well it is known.
#[tokio::test]
async fn a_known_token_ends_when_it_says() {
    let issuer = StackAuth::start();
    let (ground, _) = Ground::model(trusting(&issuer)).await;
    let rig = ground.replica();
    let mut draft = issuer.draft(&ann());
    draft.claims["exp"] = (jiff::Timestamp::now().as_second() + 2).into();
    let token = issuer.signed(&draft);
    assert!(check(&rig, &token).await.status.is_success());
    let refused = async || {
        let answer = check(&rig, &token).await;
        (answer.status == StatusCode::UNAUTHORIZED).then(|| answer.text())
    };
    let text = eventually(Duration::from_secs(5), "the token has expired", refused).await;
    assert!(text.contains("has expired"), "{text}");
}

/// failures 2, 44: the 50 first requests of one new user come at once, each with a token of its own, to two replicas.
pub(super) async fn first_tokens_at_once_make_one_user_with_one_grant(ground: &Ground, issuer: &StackAuth) {
    let (one, two) = (ground.replica(), ground.replica());
    let asks = (0..50).map(|number| {
        let rig = if number % 2 == 0 { &one } else { &two };
        // Other tokens of the same user: each has its own signature.
        let ask = rig.api(Method::POST, "/api/credits/deduct", &issuer.token(&ann()));
        ask.json(&json!({"amount": 0.1})).send()
    });
    for answer in &futures_util::future::join_all(asks).await {
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    }
    let user = shown(&one, &ann().id).await;
    assert_eq!(user["grants"].as_array().unwrap().len(), 1, "{user}");
    assert_eq!((user["credits"]["available"].to_string(), &user["plan"]), ("0".to_owned(), &json!("free")), "{user}");
    assert_eq!(one.admin(Method::GET, "/admin/v1/users").send().await.json()["data"].as_array().unwrap().len(), 1);
}

pub(super) async fn who_is_not_verified_gets_nothing_until_they_are(ground: &Ground, issuer: &StackAuth) {
    let rig = ground.replica();
    let anonymous = Person { anonymous: true, email: None, email_verified: false, ..ann() };
    let restricted = Person { restricted: true, email_verified: false, ..ann() };
    for person in [anonymous, restricted] {
        let answer = check(&rig, &issuer.token(&person)).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert_eq!(answer.json()["available"].to_string(), "0");
        let spent = rig.post("/api/credits/deduct", &issuer.token(&person), json!({"amount": 1})).await;
        assert_eq!(spent.status, StatusCode::PAYMENT_REQUIRED);
    }
    // The same user, verified: at the first such token, and once.
    for _ in 0..3 {
        let spent = rig.post("/api/credits/deduct", &issuer.token(&ann()), json!({"amount": 1})).await;
        assert_eq!(spent.status, StatusCode::OK, "{}", spent.text());
    }
    assert_eq!(shown(&rig, &ann().id).await["credits"]["available"].to_string(), "2");
}

/// failures 44 (pollinations#6215): aliases of one address.
pub(super) async fn aliases_of_one_mailbox_get_one_grant(ground: &Ground, issuer: &StackAuth) {
    let rig = ground.replica();
    let mails = ["ann.lee@gmail.com", "annlee+2@gmail.com", "A.N.N.LEE@googlemail.com", "ann.lee@outlook.com"];
    let asks = mails.iter().enumerate().map(|(number, mail)| {
        let (rig, token) = (&rig, issuer.token(&Person::new(&format!("person-{number}"), mail)));
        async move { check(rig, &token).await.json()["available"].to_string() }
    });
    let mut credits = futures_util::future::join_all(asks).await;
    assert_eq!(credits.pop().as_deref(), Some("5"), "another mailbox");
    credits.sort();
    assert_eq!(credits, ["0", "0", "5"], "one of three");
}

/// failures 44 (vm0#15772): the account is deleted, and the same mailbox signs up again.
pub(super) async fn deleted_and_back_there_is_no_second_grant(ground: &Ground, issuer: &StackAuth) {
    let rig = ground.replica();
    let first = Person::new("first", "ann@example.com");
    assert_eq!(check(&rig, &issuer.token(&first)).await.json()["available"].to_string(), "5");
    let id = faregate::ledger::AccountId::parse("first").unwrap();
    assert!(ground.store.close_user(&id, "free", "test").await.unwrap());
    let late = check(&rig, &issuer.token(&first)).await;
    assert_eq!(late.status, StatusCode::FORBIDDEN, "a token issued before, or a late one");
    let second = Person::new("second", "Ann+again@example.com");
    assert_eq!(check(&rig, &issuer.token(&second)).await.json()["available"].to_string(), "0");
    let balanced = || async {
        let books = rig.admin(Method::GET, "/admin/v1/audit/books").send().await.json();
        (books["data"] == json!([]) && books["unfinished"] == json!([])).then_some(())
    };
    eventually(Duration::from_secs(10), "the books of a closed account balance", balanced).await;
}

/// Issue 5, point 4: sign-ups by token from one address block are a burst. Addresses inside our own network are not, nor
/// is a block that a user only visits.
pub(super) async fn where_first_tokens_come_from_is_judged(ground: &Ground, issuer: &StackAuth) {
    let rig = ground.replica();
    let from = async |name: &str, address: &str| {
        let token = issuer.token(&Person::new(name, &format!("{name}@example.com")));
        let headers = headers(&[("x-stack-access-token", &token)]);
        rig.identity.authenticate_from(&headers, Some(address.parse().unwrap())).await.unwrap();
    };
    from("visitor", "198.51.100.7").await;
    for number in 0..5 {
        from(&format!("bot{number}"), &format!("203.0.113.{number}")).await;
        from(&format!("inside{number}"), "10.0.0.9").await;
    }
    from("visitor", "203.0.113.200").await;
    // Told of by webhook first, and then seen.
    let profile = faregate::store::sign_ups::SignUp {
        id: faregate::ledger::AccountId::parse("told").unwrap(),
        profile: Default::default(),
        entitled: true,
        plan: "free".into(),
        credits: faregate::credits::Credits::whole(5),
        actor: "test".into(),
    };
    ground.store.sign_up(profile).await.unwrap();
    from("told", "203.0.113.77").await;
    assert_eq!(signals(&rig, "bot2").await, [""; 0], "up to the limit nobody is suspicious");
    for caught in ["bot3", "bot4", "told"] {
        assert_eq!(signals(&rig, caught).await, ["signup_burst"], "{caught}");
    }
    for spared in ["visitor", "inside4"] {
        assert_eq!(signals(&rig, spared).await, [""; 0], "{spared}");
    }
}

#[tokio::test]
async fn policies_say_who_gets_in() {
    let issuer = StackAuth::start();
    let mut config = trusting(&issuer);
    (config.stack.anonymous, config.stack.restricted) = (Unproven::Refuse, Unproven::Credits);
    config.stack.require_verified_email = true;
    let (ground, _) = Ground::model(config).await;
    let rig = ground.replica();
    let answer = check(&rig, &issuer.token(&Person { id: "a".into(), anonymous: true, ..Person::default() })).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", answer.text());
    let available = async |person: &Person| {
        assert!(check(&rig, &issuer.token(person)).await.status.is_success());
        // Not the check's own figure, which may be a second old.
        shown(&rig, &person.id).await["credits"]["available"].to_string()
    };
    assert_eq!(available(&Person { restricted: true, ..Person::new("r", "r@example.com") }).await, "5");
    let unverified = Person { email_verified: false, ..Person::new("u", "u@example.com") };
    assert_eq!(available(&unverified).await, "0");
    assert_eq!(available(&Person { email_verified: true, ..unverified }).await, "5");
}

/// What a token says newer than the store knows it is taken over; what is older is not.
#[tokio::test]
async fn names_follow_the_newest_word() {
    let issuer = StackAuth::start();
    let (ground, _) = Ground::model(trusting(&issuer)).await;
    let rig = ground.replica();
    let now = jiff::Timestamp::now().as_second();
    let said = async |mail: &str, at: i64| {
        let mut draft = issuer.draft(&Person::new("p", mail));
        draft.claims["iat"] = at.into();
        assert!(check(&rig, &issuer.signed(&draft)).await.status.is_success());
        shown(&rig, "p").await["email"].clone()
    };
    assert_eq!(said("one@example.com", now - 50).await, "one@example.com");
    assert_eq!(said("two@example.com", now - 10).await, "two@example.com");
    assert_eq!(said("old@example.com", now - 30).await, "two@example.com");
}

/// Stack Auth is the first issuer, not the only one.
#[tokio::test]
async fn any_other_issuer_with_a_key_set_will_do() {
    let (stack, login) = (StackAuth::start(), StackAuth::start());
    let mut config = trusting(&stack);
    let issuer = Issuer {
        issuer: "https://login.example/".into(),
        jwks_url: format!("{}/api/v1/projects/{}/.well-known/jwks.json", login.url(), login.project()),
        audiences: vec!["my-app".into()],
        user_prefix: "login:".into(),
        require_verified_email: true,
    };
    config.issuers.insert("login".into(), issuer);
    let (ground, _) = Ground::model(config).await;
    let rig = ground.replica();
    let mut draft = login.draft(&Person::new("auth0|5f7c", "x@example.com"));
    draft.claims["iss"] = "https://login.example/".into();
    draft.claims["aud"] = json!(["other-app", "my-app"]);
    let answer = rig.api(Method::GET, "/api/credits/check", &login.signed(&draft)).send().await;
    assert_eq!(answer.json()["available"].to_string(), "5", "{}", answer.text());
    assert_eq!(shown(&rig, "login:auth0+7c5f7c").await["email"], "x@example.com");
    // One issuer's keys do not speak for the other.
    draft.claims["iss"] = stack.draft(&ann()).claims["iss"].clone();
    draft.claims["aud"] = stack.project().into();
    let answer = rig.api(Method::GET, "/api/credits/check", &login.signed(&draft)).send().await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
}

/// Without an issuer in the settings no token opens, and nobody is asked.
#[tokio::test]
async fn tokens_of_nobody_are_nothing() {
    let issuer = StackAuth::start();
    let (ground, _) = Ground::model(settings()).await;
    let answer = check(&ground.replica(), &issuer.token(&ann())).await;
    assert_eq!((answer.status, issuer.asked()), (StatusCode::UNAUTHORIZED, 0));
}

fn of_stack(headers: &HeaderMap) -> Vec<String> {
    let names = headers.keys().map(|name| name.as_str().to_owned());
    names.filter(|name| name.starts_with("x-stack") || name == "authorization" || name == "x-api-key").collect()
}

/// The real program: the start asks nobody, a request rides by a token, and no upstream sees it.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_ride_and_stay_here() {
    let (issuer, upstream) = (StackAuth::start(), Sim::start());
    let options = Options::new().upstream(upstream.url());
    let options = options.set("stack.project_id", issuer.project()).set("stack.base_url", issuer.url());
    let gate = Faregate::start(options);
    assert_eq!(issuer.asked(), 0, "the start asked");
    let token = issuer.token(&ann());
    let session = json!({"accessToken": token, "refreshToken": "the-refresh-token"}).to_string();
    let body = json!({"model": "demo", "messages": [{"role": "user", "content": "hi"}]});
    for (name, value) in [("x-stack-access-token", &token), ("x-stack-auth", &session)] {
        let mut request =
            crate::support::http::request(Method::POST, &gate.url("/v1/chat/completions"), "", Some(&body));
        request.headers_mut().extend(headers(&[(name, value)]));
        let answer = gate.http.call(request).await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
    }
    let answer = gate.http.post(&gate.url("/v1/chat/completions"), &token, &body).await;
    assert_eq!(answer.header("x-credits-remaining"), "2", "{}", answer.text());
    let seen = upstream.stats().last().expect("a request");
    assert_eq!(of_stack(&seen.headers), Vec::<String>::new());
    let wrong = gate.http.post(&gate.url("/v1/chat/completions"), "a.b.c", &body).await;
    assert_eq!((wrong.status.as_u16(), &wrong.json()["error"]["code"]), (401, &json!("invalid_access_token")));
    assert_eq!(gate.usage_of(&ann().id, 3).await.len(), 3);
}
