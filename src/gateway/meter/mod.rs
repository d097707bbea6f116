//! What a request may use and what it used, read from bodies and streams. Pure code: no I/O, no clocks, and no bytes
//! that make it panic.
//!
//! A request's way through here: [`endpoint::classify`] says what kind of call it is; [`request::Inspection`] reads the
//! body and bounds what it may use; [`stream::StreamMeter`] or [`answer::AnswerMeter`] reads what it did use.

pub mod answer;
pub mod endpoint;
pub mod invariants;
pub mod request;
pub mod stream;

mod anthropic;
mod body;
mod content;
mod edit;
mod json;
mod openai;
mod prompt;
mod responses;
mod scan;
mod sse;
mod usage;

pub use answer::AnswerMeter;
pub use endpoint::{Endpoint, Refused, classify};
pub use request::{BadRequest, Inspection};
pub use stream::{Output, StreamMeter};

use crate::pricing::Tokens;

/// What an answer used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    pub tokens: Tokens,
    /// As the upstream reported it; otherwise estimated from what was delivered.
    pub reported: bool,
    /// The answer came to the end that its protocol knows.
    pub complete: bool,
    /// The upstream gave an error instead of an answer, or ended the answer with one. Where `tokens.output` and
    /// `tokens.images` are zero as well, nothing was delivered and nothing is owed.
    pub failed: bool,
}
