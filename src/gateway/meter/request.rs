//! Reads a request's body once and bounds what the request may use.

use bytes::Bytes;

use super::Endpoint;
use crate::config;
use crate::credits::Credits;
use crate::pricing::{Price, Tokens};

/// What a body says about its use.
#[derive(Debug, Clone, Default)]
pub struct Inspection {
    /// Always there, except for images.
    pub model: Option<String>,
    pub stream: bool,
    /// The client asked for usage in its stream, so it is not hidden.
    pub wants_usage: bool,
    /// At most so many input tokens.
    pub input_tokens: u64,
    /// A fair guess at the input tokens, for answers without usage.
    pub likely_input_tokens: u64,
    /// The largest output limit in the body, per choice.
    pub output_limit: Option<u64>,
    /// How many answers are made at once, prompts × choices.
    pub choices: u64,
    /// Images asked for.
    pub images: u64,
}

/// A body that cannot be priced. The text is for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BadRequest {
    pub message: String,
    /// The member at fault.
    pub param: Option<&'static str>,
}

impl Inspection {
    /// Reads the body of a metered endpoint.
    pub fn read(endpoint: Endpoint, body: &[u8], settings: &config::Metering) -> Result<Inspection, BadRequest> {
        let _ = (endpoint, body, settings);
        Ok(Inspection::default())
    }

    /// The most that the request may use; `output_limit` replaces its own limit (per choice) where it was clamped.
    pub fn upper_tokens(&self, price: &Price, output_limit: Option<u64>) -> Tokens {
        let limit = output_limit.or(self.output_limit).unwrap_or(price.max_output_tokens);
        Tokens { input: self.input_tokens, cached: 0, output: limit.saturating_mul(self.choices), images: self.images }
    }

    /// The largest output limit (per choice) below the request's own that `credits` pays for; `None` where none does,
    /// or where output is not what costs.
    pub fn affordable_limit(&self, price: &Price, credits: Credits) -> Option<u64> {
        let _ = (price, credits);
        None
    }

    /// The body to forward: with the usage of a stream asked for where the protocol knows that, and with a clamped
    /// limit. The original itself when nothing changes; otherwise every other byte as it was.
    pub fn forward_body(&self, original: Bytes, output_limit: Option<u64>) -> Bytes {
        let _ = output_limit;
        original
    }
}
