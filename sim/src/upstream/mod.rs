//! A demo AI upstream: OpenAI- and Anthropic-compatible, on loopback, with answers and usage that can be foretold.
//!
//! **Endpoints**, with or without `/v1`: `POST /chat/completions`, `/completions`, `/responses`, `/embeddings`,
//! `/images/generations`, `/messages`, `/messages/count_tokens`, `GET /models`, `/models/{id}`; `/echo…` answers what
//! was received; an upgrade to WebSocket is echoed frame by frame on any path. Anything else: 404.
//!
//! **Tokens** are counted so that a test can do the same: a text has one token for each four bytes or part of four; a
//! message costs four more; an image 85; the JSON text of each tool as a text. The answer is as many tokens as asked
//! for ([`knobs`], default 13), at most the request's output limit: then it ends with `length` (or `max_tokens`,
//! `incomplete`). Each output token is one word of a fixed sentence. With `tools`, a last message that says `tool` or a
//! tool's name (or a `tool_choice` that demands it) is answered with a call of it.
//!
//! **Misbehaviour** is asked for by headers or by the model's name: see [`knobs`].

mod answer;
mod anthropic;
mod completions;
mod knobs;
mod openai;
mod responses;
mod server;
mod stats;
mod text;
mod websocket;

pub use knobs::{Knobs, UsageForm};
pub use server::{Upstream, bind};
pub use stats::{Seen, Stats};
pub use text::{count as count_tokens, sentence};
