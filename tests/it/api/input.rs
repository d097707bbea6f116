//! Bad input, and the frame around every answer.

use http::{Method, StatusCode};
use serde_json::json;

use super::rig::{Ground, settings};

const POSTS: [&str; 4] = ["/api/credits/deduct", "/api/credits/reserve", "/api/credits/settle", "/api/credits/release"];

#[tokio::test]
async fn bad_bodies_are_refused_with_what_is_wrong() {
    let (ground, _) = Ground::model(settings()).await;
    let rig = ground.replica();
    let key = rig.user("u", "10").await;
    let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    let long = format!(r#"{{"amount":1,"reason":"{}"}}"#, "x".repeat(257));
    let table: Vec<(&str, &str, &str)> = vec![
        (POSTS[0], "", "line 1"),
        (POSTS[0], "{", "line 1 column 1"),
        (POSTS[0], "{\"amount\":1,\n\"amuont\":2}", "amuont"),
        (POSTS[0], "{\"amount\":1,\"amount\":2}", "duplicate field `amount`"),
        (POSTS[0], "{}", "amount"),
        (POSTS[0], "null", "null"),
        (POSTS[0], "[1]", "line 1"),
        (POSTS[0], "{\"amount\":1} x", "trailing"),
        (POSTS[0], "{\"amount\":0}", "above 0"),
        (POSTS[0], "{\"amount\":-0.0}", "above 0"),
        (POSTS[0], "{\"amount\":-1}", "negative"),
        (POSTS[0], "{\"amount\":\"1\"}", "decimal number"),
        (POSTS[0], "{\"amount\":null}", "decimal number"),
        (POSTS[0], "{\"amount\":true}", "decimal number"),
        (POSTS[0], "{\"amount\":NaN}", "line 1 column"),
        (POSTS[0], "{\"amount\":Infinity}", "line 1 column"),
        (POSTS[0], "{\"amount\":1e400}", "below 9000000000"),
        (POSTS[0], "{\"amount\":9000000000}", "below 9000000000"),
        (POSTS[0], "{\"amount\":9223372036854775808}", "below 9000000000"),
        (POSTS[0], "{\"amount\":0.0000001}", "six decimals"),
        (POSTS[0], "{\"amount\":1,\"reason\":7}", "string"),
        (POSTS[0], "{\"amount\":1,\"reason\":\"\"}", "1 to 256"),
        (POSTS[0], "{\"amount\":1,\"reason\":\"a\\u0000b\"}", "control"),
        (POSTS[0], &long, "1 to 256"),
        (POSTS[1], "{\"amount\":1,\"expires_in\":0}", "expires_in"),
        (POSTS[1], "{\"amount\":1,\"expires_in\":86401}", "expires_in"),
        (POSTS[1], "{\"amount\":1,\"expires_in\":-1}", "-1"),
        (POSTS[1], "{\"amount\":1,\"expires_in\":1.5}", "1.5"),
        (POSTS[1], "{\"amount\":1,\"expires_in\":18446744073709551616}", "whole number"),
        (POSTS[2], "{\"amount\":1}", "id"),
        (POSTS[2], "{\"id\":\"x\",\"amount\":0}", "above 0"),
        (POSTS[3], "{\"id\":7}", "string"),
    ];
    for (path, body, expected) in table {
        let answer = rig.api(Method::POST, path, &key).body("application/json", body.to_owned()).send().await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path} {body}: {}", answer.text());
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(expected), "{path} {body}: {detail:?} does not say {expected:?}");
    }
    for body in [deep.as_bytes(), b"\xff\xfe", b"{\"amount\":1,\"reason\":\"\xff\"}"] {
        let ask = rig.api(Method::POST, POSTS[0], &key).body("application/json; charset=utf-8", body.to_vec());
        let answer = ask.send().await;
        let expected = if body.len() > 64 * 1024 { StatusCode::PAYLOAD_TOO_LARGE } else { StatusCode::BAD_REQUEST };
        assert_eq!(answer.status, expected, "{}", answer.text());
    }
    assert_eq!(rig.credits("u").await.0, "10");
}

#[tokio::test]
async fn bad_frames_are_refused_before_anything_is_done() {
    let (ground, _) = Ground::model(settings()).await;
    let rig = ground.replica();
    let key = rig.user("u", "10").await;
    let body = r#"{"amount":1}"#;
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""] {
        let answer = rig.api(Method::POST, POSTS[0], &key).body(kind, body).send().await;
        assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{kind:?}");
    }
    for kind in ["application/json;charset=utf-8", "Application/JSON", "application/vnd.app+json"] {
        let ask = rig.api(Method::POST, POSTS[0], &key).body(kind, body).header("idempotency-key", "once");
        assert_eq!(ask.send().await.status, StatusCode::OK, "{kind:?}");
    }
    let large = format!("{{\"amount\":1{}}}", " ".repeat(70_000));
    let answer = rig.api(Method::POST, POSTS[0], &key).body("application/json", large).send().await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    let long = "x".repeat(256);
    for bad in ["", " ", "two words", "é", long.as_str()] {
        let ask = rig.api(Method::POST, POSTS[0], &key).json(&json!({"amount": 1})).header("idempotency-key", bad);
        assert_eq!(ask.send().await.status, StatusCode::BAD_REQUEST, "{bad:?}");
    }
    let twice = rig.api(Method::POST, POSTS[0], &key).json(&json!({"amount": 1}));
    let twice = twice.header("idempotency-key", "a").header("idempotency-key", "b").send().await;
    assert_eq!(twice.status, StatusCode::BAD_REQUEST);
    assert_eq!(rig.credits("u").await.0, "9");
}

#[tokio::test]
async fn every_answer_is_a_problem_with_a_request_id_or_a_success_with_one() {
    let (ground, _) = Ground::model(settings()).await;
    let rig = ground.replica();
    let key = rig.user("u", "10").await;
    let cases = [
        (rig.api(Method::GET, "/api/credits/check", &key), 200),
        (rig.api(Method::GET, "/api/credits/check", ""), 401),
        (rig.api(Method::GET, "/api/credits/check", "sk-1"), 401),
        (rig.api(Method::GET, "/api/nowhere", &key), 404),
        (rig.api(Method::GET, "/elsewhere", &key), 404),
        (rig.api(Method::GET, "/api/credits/deduct", &key), 405),
        (rig.api(Method::DELETE, "/api/credits/check", &key), 405),
        (rig.admin(Method::PUT, "/admin/v1/users"), 405),
        (rig.admin(Method::GET, "/admin/v1/nowhere"), 404),
        (rig.admin(Method::GET, "/admin/v2"), 404),
        (rig.open(Method::GET, "/admin/v1/nowhere"), 401),
        (rig.open(Method::GET, "/admin/v1/users"), 401),
        (rig.open(Method::POST, "/healthz"), 405),
    ];
    for (ask, status) in cases {
        let answer = ask.header("x-request-id", "mine").send().await;
        assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
        let id: uuid::Uuid = answer.header("x-request-id").parse().unwrap();
        assert_eq!(id.get_version_num(), 7);
        if status != 200 {
            assert_eq!(answer.header("content-type"), "application/problem+json");
            assert_eq!(answer.json()["status"], status);
        }
        match status {
            401 => assert_eq!(answer.header("www-authenticate"), "Bearer"),
            405 => assert!(!answer.header("allow").is_empty(), "allow is told"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn browsers_of_named_origins_may_call() {
    let (ground, _) = Ground::model(settings()).await;
    let rig = ground.replica();
    let key = rig.user("u", "10").await;
    let preflight = |origin: &'static str| {
        let ask = rig.api(Method::OPTIONS, "/api/credits/check", "").header("origin", origin);
        ask.header("access-control-request-method", "GET").send()
    };
    let allowed = preflight("https://app.example").await;
    assert_eq!(allowed.status, StatusCode::NO_CONTENT);
    assert_eq!(allowed.header("access-control-allow-origin"), "https://app.example");
    assert!(allowed.header("access-control-allow-headers").contains("authorization"));
    assert!(allowed.header("access-control-allow-methods").contains("POST"));
    for stranger in ["https://app.example.evil", "http://app.example", "https://app.example:8443", "null"] {
        let refused = preflight(stranger).await;
        assert_eq!(refused.header("access-control-allow-origin"), "", "{stranger}");
        assert_eq!(refused.header("vary"), "origin");
    }
    let call = rig.api(Method::GET, "/api/credits/check", &key).header("origin", "https://app.example").send().await;
    assert_eq!(call.header("access-control-allow-origin"), "https://app.example");
    assert!(call.header("access-control-expose-headers").contains("x-request-id"));
    assert_eq!(call.header("access-control-allow-credentials"), "");
    let refused = rig.api(Method::GET, "/api/credits/check", "").header("origin", "https://app.example").send().await;
    assert_eq!(refused.header("access-control-allow-origin"), "https://app.example", "errors can be read too");
}
