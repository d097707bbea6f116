//! One request, done once, however often it is sent.
//!
//! Deductions and reservations carry their Idempotency-Key into the ledger, as a record that answers for 24 h: exact even
//! when this process dies. Everything else that creates keeps its answer in the store.

use std::future::Future;

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::extract::json_text;
use super::problem::Problem;
use crate::ledger::{AccountId, RecordId, RecordKey};
use crate::store::{Idempotent, SharedStore};

const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Digest of the parts, each apart from the next.
fn digest(parts: &[&str]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().into()
}

/// What a request says, as a number below 2^53.
pub fn fingerprint(parts: &[&str]) -> u64 {
    let digest = digest(parts);
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first) >> 11
}

/// An id that the same caller makes again from the same key.
pub fn derived_id(parts: &[&str]) -> Uuid {
    let digest = digest(parts);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    // RFC 9562 5.8: version 8 is for ids whose bits are made in a way of one's own.
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    Uuid::from_bytes(bytes)
}

/// The ledger's record of one operation of an account under an Idempotency-Key.
pub(super) fn record_key(operation: &str, account: &AccountId, key: &str, fingerprint: u64) -> RecordKey {
    RecordKey { id: RecordId(derived_id(&["record", operation, account.as_str(), key])), fingerprint }
}

pub(crate) fn replayed(mut response: Response) -> Response {
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

/// An answer, and what is kept of it for repetition.
pub struct Created {
    pub status: StatusCode,
    pub body: String,
    /// Differs from `body` where something is shown only once.
    pub kept: String,
}

impl Created {
    pub fn new<T: Serialize>(status: StatusCode, body: &T) -> Result<Created, Problem> {
        let body = text(body)?;
        Ok(Created { status, kept: body.clone(), body })
    }

    /// Keeps another text than the one that is shown now.
    pub fn keeping<T: Serialize>(self, kept: &T) -> Result<Created, Problem> {
        Ok(Created { kept: text(kept)?, ..self })
    }
}

fn text<T: Serialize>(body: &T) -> Result<String, Problem> {
    serde_json::to_string(body).map_err(|error| {
        tracing::error!(%error, "an answer cannot be written");
        Problem::internal()
    })
}

/// Who asks for what, under which key.
pub struct Once {
    pub scope: String,
    pub key: Option<String>,
    pub fingerprint: u64,
}

/// Does the work once for its key, and answers repetitions from what was kept. Only success is kept: after a failure the
/// same key may try again. It all goes on when its caller hangs up, so that no key is left running.
pub async fn once<F>(store: SharedStore, tasks: &TaskTracker, once: Once, work: F) -> Result<Response, Problem>
where
    F: Future<Output = Result<Created, Problem>> + Send + 'static,
{
    let Once { scope, key, fingerprint } = once;
    let done = tasks.spawn(async move {
        let Some(key) = key else { return Ok(work.await?.into_response()) };
        match store.idempotency_begin(&scope, &key, fingerprint).await? {
            Idempotent::Begun => {}
            Idempotent::Running => return Err(Problem::still_running()),
            Idempotent::Mismatch => return Err(Problem::key_reused()),
            Idempotent::Finished { status, body } => {
                let status = StatusCode::from_u16(status).map_err(|_| Problem::internal())?;
                return Ok(replayed(json_text(status, body)));
            }
        }
        let result = work.await;
        let noted = match &result {
            Ok(created) => store.idempotency_finish(&scope, &key, created.status.as_u16(), &created.kept).await,
            Err(_) => store.idempotency_forget(&scope, &key).await,
        };
        if let Err(error) = noted {
            tracing::warn!(%error, "an answer could not be kept for its Idempotency-Key");
        }
        result.map(Created::into_response)
    });
    done.await.unwrap_or_else(|_| Err(Problem::internal()))
}

impl IntoResponse for Created {
    fn into_response(self) -> Response {
        json_text(self.status, self.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_stable_and_apart() {
        let account = AccountId::parse("u").unwrap();
        let id = |operation, key| record_key(operation, &account, key, 1).id.0;
        assert_eq!(id("deduct", "k"), id("deduct", "k"));
        assert_ne!(id("deduct", "k"), id("reserve", "k"));
        assert_ne!(derived_id(&["ab", "c"]), derived_id(&["a", "bc"]));
        assert_eq!(id("deduct", "k").get_version_num(), 8);
        assert!(fingerprint(&["a"]) < 1 << 53);
        assert_ne!(fingerprint(&["a"]), fingerprint(&["b"]));
    }
}
