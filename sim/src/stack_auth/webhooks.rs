//! Webhooks as Svix sends them: signed by the Standard Webhooks scheme.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use sha2::Sha256;

/// How long an endpoint may take.
const ANSWER_MAX: Duration = Duration::from_secs(15);
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What is sent; the id is the same in every delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub id: String,
    pub body: String,
}

/// `svix-signature` over a message at a time (Unix seconds), under a secret of the form `whsec_<base64>`.
pub fn sign(secret: &str, id: &str, at_s: i64, body: &str) -> String {
    let text = secret.strip_prefix("whsec_").unwrap_or(secret);
    let key = STANDARD.decode(text).unwrap_or_default();
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&key) else { return String::new() };
    mac.update(format!("{id}.{at_s}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

pub(super) async fn deliver(endpoints: &[(String, String)], message: &Message) -> Vec<Option<u16>> {
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let mut statuses = Vec::new();
    for (url, secret) in endpoints {
        let at = super::now_s();
        let request = Request::post(url)
            .header("content-type", "application/json")
            .header("user-agent", "Svix-Webhooks/1.0 (simulated)")
            .header("svix-id", &message.id)
            .header("svix-timestamp", at)
            .header("svix-signature", sign(secret, &message.id, at, &message.body))
            .body(Full::new(Bytes::from(message.body.clone())));
        let answered = async {
            let response = client.request(request.ok()?).await.ok()?;
            let status = response.status().as_u16();
            let _ = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            Some(status)
        };
        statuses.push(tokio::time::timeout(ANSWER_MAX, answered).await.ok().flatten());
    }
    statuses
}
