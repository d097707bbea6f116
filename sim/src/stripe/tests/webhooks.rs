//! Deliveries: signed, retried, and wrong in every way that was asked for.

use serde_json::json;

use super::rig::{Listener, Rig, WAIT, id};
use crate::stripe::{Act, Order, Rule, State, Twist, signature_header};

#[tokio::test]
async fn deliveries_are_signed_with_every_secret_and_in_order() {
    let rig = Rig::start().await;
    let listener = Listener::start(&[]).await;
    let endpoint = rig.control.endpoint(&listener.url, &["whsec_a", "whsec_b"]);
    rig.subscribe("price_small", "").await;
    rig.control.set_secrets(&endpoint, &["whsec_b"]);
    assert!(rig.control.delivered(WAIT).await);
    let sent = listener.payloads();
    let types: Vec<&str> = sent.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let made: Vec<String> = rig.types();
    assert_eq!(types, made[made.len() - types.len()..]);
    assert_eq!(types.first(), Some(&"customer.created"));
    for (headers, body) in listener.got.lock().unwrap().iter() {
        let header = headers["stripe-signature"].to_str().unwrap();
        let time: i64 = header.split(',').next().unwrap().strip_prefix("t=").unwrap().parse().unwrap();
        let one = ["whsec_b".to_owned()];
        let both = ["whsec_a".to_owned(), "whsec_b".to_owned()];
        assert!(header == signature_header(&both, time, body) || header == signature_header(&one, time, body));
    }
    rig.stop().await;
}

#[tokio::test]
async fn what_is_refused_comes_again() {
    let rig = Rig::start().await;
    let listener = Listener::start(&[500, 302]).await;
    rig.control.endpoint(&listener.url, &["whsec_a"]);
    rig.customer().await;
    let undelivered = rig.get("/v1/events?delivery_success=false&types[]=customer.created").await;
    assert_eq!(undelivered["data"].as_array().unwrap().len(), 1);
    assert!(rig.control.delivered(WAIT).await);
    assert_eq!(listener.got.lock().unwrap().len(), 3);
    let undelivered = rig.get("/v1/events?delivery_success=false").await;
    assert_eq!(undelivered["data"].as_array().unwrap().len(), 0);
    rig.stop().await;
}

#[tokio::test]
async fn deliveries_are_held_reordered_doubled_and_dropped() {
    let rig = Rig::start().await;
    let listener = Listener::start(&[]).await;
    rig.control.endpoint(&listener.url, &["whsec_a"]);
    rig.control.hold_webhooks();
    rig.control.rule(Rule { event: "customer.created".to_owned(), act: Act::Copies(3), times: 1 });
    let first = rig.customer().await;
    rig.control.rule(Rule { event: "customer.*".to_owned(), act: Act::Drop, times: 1 });
    let second = rig.customer().await;
    let third = rig.customer().await;
    assert!(rig.control.delivered(WAIT).await && listener.payloads().is_empty());
    assert_eq!(rig.control.release_webhooks(Order::Reversed), 4);
    assert!(rig.control.delivered(WAIT).await);
    let order: Vec<String> = listener.payloads().iter().map(|event| id(&event["data"]["object"])).collect();
    assert_eq!(order, [third, first.clone(), first.clone(), first]);
    let lost = rig.get("/v1/events?delivery_success=false").await;
    assert_eq!(id(&lost["data"][0]["data"]["object"]), second);
    assert_eq!(rig.control.deliveries().iter().filter(|sent| sent.state == State::Dropped).count(), 1);
    rig.control.deliver(&id(&lost["data"][0]), Twist::default());
    assert!(rig.control.delivered(WAIT).await);
    assert_eq!(rig.get("/v1/events?delivery_success=false").await["data"], json!([]));
    rig.stop().await;
}

#[tokio::test]
async fn payloads_lie_as_asked() {
    let rig = Rig::start().await;
    let listener = Listener::start(&[]).await;
    rig.subscribe("price_small", "").await;
    rig.control.endpoint(&listener.url, &["whsec_a"]);
    let event = id(&rig.control.events("invoice.paid")[0]);
    let twists = [
        Twist { wrong_livemode: true, ..Twist::default() },
        Twist { old_shape: true, ..Twist::default() },
        Twist { thin: true, ..Twist::default() },
        Twist { wrong_secret: true, ..Twist::default() },
        Twist { altered: true, ..Twist::default() },
        Twist { skew_s: -1_000, ..Twist::default() },
    ];
    for twist in twists {
        rig.control.deliver(&event, twist);
    }
    assert!(rig.control.delivered(WAIT).await);
    let got = listener.got.lock().unwrap().clone();
    let body = |at: usize| serde_json::from_slice::<serde_json::Value>(&got[at].1).unwrap();
    let signed = |at: usize, skew: i64| {
        let header = got[at].0["stripe-signature"].to_str().unwrap();
        let time: i64 = header.split(',').next().unwrap().strip_prefix("t=").unwrap().parse().unwrap();
        let is_now = (crate::stripe::server::wall() + skew - time).abs() < 60;
        is_now && header == signature_header(&["whsec_a".to_owned()], time, &got[at].1)
    };
    assert_eq!((&body(0)["livemode"], signed(0, 0)), (&json!(true), true));
    assert!(body(1)["data"]["object"]["subscription"].is_string() && body(1)["api_version"] == "2022-11-15");
    assert_eq!((&body(2)["object"], &body(2)["related_object"]["type"]), (&json!("v2.core.event"), &json!("invoice")));
    assert!(!signed(3, 0) && !signed(4, 0) && signed(5, -1_000));
    rig.stop().await;
}
