//! One notification to the product's backend, as a Standard Webhook: signed, sent once, and judged by its status alone.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Request, Uri};
use http_body_util::Full;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::rt::TokioTimer;
use ring::hmac;
use serde::Serialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Secret, Webhook};
use crate::ledger::Micros;
use crate::outbound::{Dial, Drivers};
use crate::store::notifications::NotificationRow;

/// How long an idle connection is kept.
const IDLE_CONNECTION: Duration = Duration::from_secs(30);
/// What of a failure's words is kept.
const MAX_REASON_CHARS: usize = 200;

/// A message as it is sent; the same at every attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The same for every attempt: receivers tell repetitions by it. Without a dot, which the signature uses.
    pub id: String,
    pub body: Bytes,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'a str,
    timestamp: jiff::Timestamp,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    user: &'a str,
    id: u64,
    data: Option<&'a RawValue>,
}

impl Message {
    pub fn of(row: &NotificationRow) -> Message {
        let digest = Sha256::digest(format!("{}\0{}", row.user, row.number));
        let id = digest[..16].iter().fold(String::from("msg_"), |id, byte| format!("{id}{byte:02x}"));
        let body = Body {
            r#type: &row.kind,
            timestamp: timestamp(row.created_at),
            data: Data { user: row.user.as_str(), id: row.number, data: serde_json::from_str(&row.data).ok() },
        };
        Message { id, body: serde_json::to_vec(&body).unwrap_or_default().into() }
    }

    /// One that tells nothing, to try the way.
    pub fn test(now: Micros) -> Message {
        let body = serde_json::json!({ "type": "test", "timestamp": timestamp(now), "data": {} });
        Message { id: format!("msg_test{now}"), body: body.to_string().into() }
    }
}

fn timestamp(micros: Micros) -> jiff::Timestamp {
    jiff::Timestamp::from_microsecond(i64::try_from(micros).unwrap_or(i64::MAX)).unwrap_or(jiff::Timestamp::MAX)
}

/// Signs with every secret there is, so that one can be replaced by another.
pub struct Signer {
    keys: Vec<hmac::Key>,
}

impl Signer {
    /// `None` where a secret is not `whsec_` and base64.
    pub fn new(secrets: &[Secret]) -> Option<Signer> {
        let key = |secret: &Secret| {
            let bytes = STANDARD.decode(secret.reveal().strip_prefix("whsec_")?).ok()?;
            Some(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
        };
        Some(Signer { keys: secrets.iter().map(key).collect::<Option<_>>()? })
    }

    /// The value of `webhook-signature`.
    pub fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let signed = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
        let signatures = self.keys.iter().map(|key| format!("v1,{}", STANDARD.encode(hmac::sign(key, &signed))));
        signatures.collect::<Vec<_>>().join(" ")
    }
}

/// The way to the product's backend.
pub struct Sender {
    pool: Pool<Dial, Full<Bytes>>,
    url: Uri,
    signer: Signer,
    timeout: Duration,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl Sender {
    /// `None` without a URL. Connections are driven by tasks of `tasks` until `stop`.
    pub fn new(settings: &Webhook, tasks: TaskTracker, stop: CancellationToken) -> Option<Sender> {
        if settings.url.is_empty() {
            return None;
        }
        let dial =
            Dial::new().inspect_err(|error| tracing::error!(%error, "TLS to the backend cannot be set up")).ok()?;
        let pool = Pool::builder(Drivers { tasks, stop })
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_CONNECTION)
            .pool_max_idle_per_host(settings.max_calls)
            .build(dial);
        Some(Sender {
            pool,
            url: settings.url.parse().ok()?,
            signer: Signer::new(&settings.secrets)?,
            timeout: Duration::from_millis(settings.timeout_ms),
        })
    }

    /// Sends it once. Any 2xx is an acknowledgement; what else the answer says is not read, and no redirect is followed:
    /// only the operator says where messages go.
    ///
    /// # Errors
    /// Why it is not delivered, for people; without the URL.
    pub async fn send(&self, message: &Message, now: Micros) -> Result<(), String> {
        let seconds = now / 1_000_000;
        let signature = self.signer.sign(&message.id, seconds, &message.body);
        let request = Request::post(self.url.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(USER_AGENT, HeaderValue::from_static(concat!("faregate/", env!("CARGO_PKG_VERSION"))))
            .header("webhook-id", &message.id)
            .header("webhook-timestamp", seconds)
            .header("webhook-signature", signature)
            .body(Full::new(message.body.clone()))
            .map_err(|error| error.to_string())?;
        match tokio::time::timeout(self.timeout, self.pool.request(request)).await {
            Ok(Ok(response)) if response.status().is_success() => Ok(()),
            Ok(Ok(response)) => Err(format!("status {}", response.status().as_u16())),
            Ok(Err(error)) => Err(reason(&error)),
            Err(_) => Err(format!("no answer within {} ms", self.timeout.as_millis())),
        }
    }
}

fn reason(error: &hyper_util::client::legacy::Error) -> String {
    let source = std::error::Error::source(error).map(ToString::to_string);
    source.unwrap_or_else(|| error.to_string()).chars().take(MAX_REASON_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::AccountId;

    fn row() -> NotificationRow {
        NotificationRow {
            user: AccountId::parse("ann.b@c").unwrap(),
            number: 7,
            kind: "credits_low".into(),
            data: r#"{"balance":1.5}"#.into(),
            created_at: 1_760_000_000_000_000,
            read_at: None,
        }
    }

    /// The vector of the Standard Webhooks libraries' own tests.
    #[test]
    fn a_signature_is_that_of_standard_webhooks() {
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let signer = Signer::new(std::slice::from_ref(&secret)).unwrap();
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        let signature = signer.sign(id, 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let other = Secret::new("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
        let both = Signer::new(&[other, secret]).unwrap().sign(id, 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(both.split(' ').count(), 2);
        assert!(both.ends_with(&signature));
        assert!(Signer::new(&[Secret::new("whsec_!")]).is_none());
        assert!(Signer::new(&[Secret::new("sk_x")]).is_none());
    }

    #[test]
    fn a_message_is_the_same_at_every_attempt() {
        let message = Message::of(&row());
        assert_eq!(message, Message::of(&row()));
        assert!(!message.id.contains('.') && message.id.len() == 36, "{}", message.id);
        assert_ne!(message.id, Message::of(&NotificationRow { number: 8, ..row() }).id);
        let expected = r#"{"type":"credits_low","timestamp":"2025-10-09T08:53:20Z","data":{"user":"ann.b@c","id":7,"data":{"balance":1.5}}}"#;
        assert_eq!(std::str::from_utf8(&message.body).unwrap(), expected);
    }
}
