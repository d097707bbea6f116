//! The detail of one use: made by the gateway (or the credits API), opaque to the ledger, a row in the store.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What was used and how it went. The credits charged are not here: the event says them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Usage {
    /// Ours (UUIDv7): the key of the usage row.
    pub request_id: Uuid,
    /// What the client called it, if it did; at most 128 characters.
    pub client_request_id: Option<String>,
    pub key_id: Option<String>,
    /// The route's name; `api` for charges through the credits API.
    pub route: String,
    pub upstream: Option<String>,
    pub model: Option<String>,
    /// The HTTP status that the client got.
    pub status: u16,
    pub input_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
    /// The tokens were estimated from what was delivered, not reported by the upstream.
    pub estimated: bool,
    pub streamed: bool,
    /// From the request's first byte to the answer's last.
    pub latency_ms: u64,
    /// When the request came, milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    /// A charge's reason, given by its caller.
    pub reason: Option<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("a usage detail cannot be read: {0}")]
pub struct UnreadableUsage(#[from] rmp_serde::decode::Error);

impl Usage {
    /// As bytes for the ledger (MessagePack, by position).
    pub fn encode(&self) -> Bytes {
        // Writing plain data into memory cannot fail; an empty detail would become a dead letter, not a lost charge.
        rmp_serde::to_vec(self).map(Bytes::from).unwrap_or_default()
    }

    pub fn decode(bytes: &[u8]) -> Result<Usage, UnreadableUsage> {
        Ok(rmp_serde::from_slice(bytes)?)
    }
}
