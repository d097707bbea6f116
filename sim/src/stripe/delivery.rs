//! The sender: takes what is due from the outbox, signs it, posts it, notes what came back.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::calendar;
use super::kind::Kind;
use super::old_shape;
use super::outbox::{Delivery, Twist};
use super::server::Shared;
use super::signature;
use super::world::{World, text};

/// How long an endpoint may take.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// Most of an endpoint's answer that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Longest sleep between two looks at the outbox.
const LOOK: Duration = Duration::from_millis(500);

type Sender = Client<HttpConnector, Full<Bytes>>;

/// A delivery ready to be sent.
struct Post {
    url: String,
    signature: String,
    body: Vec<u8>,
}

/// Sends what falls due, forever; the caller drops it to end.
pub(super) async fn run(shared: &Shared) {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Sender = Client::builder(hyper_util::rt::TokioExecutor::new()).build(connector);
    let mut sending = JoinSet::new();
    loop {
        let mut wait = LOOK;
        while sending.len() < shared.concurrency() {
            let taken = shared
                .with(|world| world.outbox.take(Instant::now()).map(|(id, delivery)| (id, post(world, &delivery))));
            match taken {
                Ok((id, post)) => drop(sending.spawn(send(client.clone(), id, post))),
                Err(at) => {
                    wait = at.map_or(LOOK, |at| at.saturating_duration_since(Instant::now()).min(LOOK));
                    break;
                }
            }
        }
        tokio::select! {
            Some(ended) = sending.join_next() => if let Ok((id, status)) = ended {
                shared.with(|world| world.outbox.finish(id, status, Instant::now()));
            },
            () = shared.woken() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// None when its endpoint is gone.
fn post(world: &World, delivery: &Delivery) -> Option<Post> {
    let endpoint =
        world.get(Kind::WebhookEndpoint, &delivery.endpoint).filter(|endpoint| endpoint["deleted"] != true)?;
    let event = world.get(Kind::Event, &delivery.event)?;
    let version = endpoint["api_version"].as_str().unwrap_or(super::API_VERSION);
    let mut body = serde_json::to_vec(&payload(world, event, version, delivery.twist)).unwrap_or_default();
    let now =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(0));
    let secrets = match delivery.twist.wrong_secret {
        true => vec!["whsec_of_somebody_else".to_owned()],
        false => world.secrets.get(&delivery.endpoint).cloned().unwrap_or_default(),
    };
    let signature = signature::header(&secrets, now.saturating_add(delivery.twist.skew_s), &body);
    if delivery.twist.altered
        && let Some(last) = body.iter_mut().rev().find(|byte| byte.is_ascii_digit())
    {
        *last = if *last == b'9' { b'0' } else { *last + 1 };
    }
    Some(Post { url: text(endpoint, "url").to_owned(), signature, body })
}

fn payload(world: &World, event: &Value, version: &str, twist: Twist) -> Value {
    if twist.thin {
        return thin(event);
    }
    let mut event = super::present::plain(event);
    event["pending_webhooks"] = world.outbox.open(text(&event, "id")).into();
    event["api_version"] = version.into();
    if twist.wrong_livemode {
        let turned = Value::from(event["livemode"] != true);
        event["livemode"] = turned.clone();
        event["data"]["object"]["livemode"] = turned;
    }
    if twist.old_shape || old_shape::is_old(version) {
        event["api_version"] = if twist.old_shape { "2022-11-15" } else { version }.into();
        event = old_shape::render(world, event);
    }
    event
}

/// A v2 event: it only says where to look.
fn thin(event: &Value) -> Value {
    let object = &event["data"]["object"];
    let (id, kind) = (text(object, "id"), text(object, "object"));
    let folder = match kind {
        "checkout.session" => "checkout/sessions",
        "radar.early_fraud_warning" => "radar/early_fraud_warnings",
        other => &format!("{other}s"),
    };
    json!({
        "id": event["id"], "object": "v2.core.event", "type": format!("v1.{}", text(event, "type")), "livemode": event["livemode"],
        "created": calendar::rfc3339(event["created"].as_i64().unwrap_or_default()), "context": null, "reason": null,
        "related_object": { "id": id, "type": kind, "url": format!("/v1/{folder}/{id}") },
    })
}

async fn send(client: Sender, id: u64, post: Option<Post>) -> (u64, Option<u16>) {
    // An endpoint that is gone has nothing left to miss.
    let Some(post) = post else { return (id, Some(200)) };
    let request = Request::post(&post.url)
        .header("content-type", "application/json; charset=utf-8")
        .header("stripe-signature", post.signature)
        .header("user-agent", "Stripe/1.0 (simulated)")
        .body(Full::new(Bytes::from(post.body)));
    let Ok(request) = request else { return (id, None) };
    let answered = async {
        let response = client.request(request).await.ok()?;
        let status = response.status().as_u16();
        // Read to its end, so that the connection can be used again.
        let _ = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        Some(status)
    };
    (id, tokio::time::timeout(ANSWER_MAX, answered).await.ok().flatten())
}
