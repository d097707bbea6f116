//! What kind of call a request is, by its route's kind, method and path.
//!
//! Both AI kinds know both protocols' paths, because upstreams serve either under one base URL. What is not on the
//! list is never free by accident: it is [`Endpoint::Unlisted`], which only a flat price can charge. Objects that live
//! in the operator's account at the upstream (files, batches, threads, lists of stored answers) are refused, because
//! every user shares that account. A single stored answer is free to fetch and delete: its id cannot be guessed, it
//! was paid for when it was made, and none is made in the background.

use http::Method;

use crate::config::RouteKind;

/// What a request is, as far as its price goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    Chat,
    Completions,
    Responses,
    Embeddings,
    /// Images made from a prompt.
    Images,
    /// Anthropic messages.
    Messages,
    /// Authenticated, not charged.
    Free,
    /// Charged per request whatever it says: every request of kind http.
    PerRequest,
    /// Nothing here can be metered: charged per request where the price is flat, refused elsewhere.
    Unlisted,
    /// Never forwarded.
    Refused(Refused),
}

/// Why a request is never forwarded, whatever the price.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("work in the background outlives its request and cannot be metered")]
    Background,
    #[error("batches run after their request and cannot be metered")]
    Batch,
    #[error("realtime sessions cannot be metered")]
    Realtime,
    #[error("this belongs to the account that all users of this service share")]
    Shared,
    #[error("the path can be read in more than one way")]
    UnclearPath,
}

/// Classifies a request. `path` is the whole path without the query, `prefix` its route's; what the prefix holds
/// before a `/v1` is no part of the protocol (`/openai/v1/…`), the rest is (`/v1/messages`). `/v1` may come once, twice
/// or not at all.
pub fn classify(kind: RouteKind, method: &Method, prefix: &str, path: &str) -> Endpoint {
    if kind == RouteKind::Http {
        return Endpoint::PerRequest;
    }
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    if unclear(path) {
        return Endpoint::Refused(Refused::UnclearPath);
    }
    let mut segments = path.split('/').peekable();
    for own in prefix.split('/').filter(|segment| !segment.is_empty()).take_while(|segment| *segment != "v1") {
        segments.next_if_eq(&own);
    }
    for _ in 0..2 {
        segments.next_if_eq(&"v1");
    }
    // No path of the lists below is longer; what is cut off only makes a longer one unlisted.
    let mut parts = [""; 5];
    for (part, segment) in parts.iter_mut().zip(segments) {
        *part = segment;
    }
    let get = *method == Method::GET || *method == Method::HEAD;
    let post = *method == Method::POST;
    let parts: &[&str] = &parts[..parts.iter().take_while(|part| !part.is_empty()).count()];
    if let Some(refused) = refused(parts) {
        return Endpoint::Refused(refused);
    }
    match parts {
        ["chat", "completions"] if post => Endpoint::Chat,
        ["completions"] if post => Endpoint::Completions,
        ["responses"] if post => Endpoint::Responses,
        ["embeddings"] if post => Endpoint::Embeddings,
        ["images", "generations"] if post => Endpoint::Images,
        ["messages"] if post => Endpoint::Messages,
        ["messages", "count_tokens"] | ["responses", "input_tokens"] if post => Endpoint::Free,
        ["models", ..] if get => Endpoint::Free,
        ["responses" | "completions", _] | ["chat", "completions", _] if get || *method == Method::DELETE => {
            Endpoint::Free
        }
        ["responses", _, "input_items"] | ["chat", "completions", _, "messages"] if get => Endpoint::Free,
        ["responses", _, "cancel"] if post => Endpoint::Free,
        ["responses" | "completions"] | ["chat", "completions"] if !post => Endpoint::Refused(Refused::Shared),
        _ => Endpoint::Unlisted,
    }
}

fn refused(parts: &[&str]) -> Option<Refused> {
    Some(match parts {
        ["batches", ..] | ["messages", "batches", ..] => Refused::Batch,
        ["realtime", ..] => Refused::Realtime,
        ["videos", ..] | ["fine_tuning" | "fine-tunes", ..] | ["evals", ..] => Refused::Background,
        [
            "assistants" | "threads" | "files" | "uploads" | "vector_stores" | "containers" | "conversations"
            | "skills" | "organization" | "organizations" | "projects",
            ..,
        ] => Refused::Shared,
        _ => return None,
    })
}

/// Paths that this gateway and an upstream might read differently: a free one here could be a paid one there.
fn unclear(path: &str) -> bool {
    let dots = |segment: &str| {
        let plain = segment.replace("%2e", ".").replace("%2E", ".");
        plain == "." || plain == ".."
    };
    let encoded = |text: &str, what: &str| {
        text.as_bytes().windows(what.len()).any(|window| window.eq_ignore_ascii_case(what.as_bytes()))
    };
    path.bytes().any(|byte| {
        byte == b'\\' || byte == b';' || byte == b'?' || byte == b'#' || byte.is_ascii_control() || byte == b' '
    }) || encoded(path, "%5c")
        || encoded(path, "%2f..")
        || encoded(path, "..%2f")
        || encoded(path, "%00")
        || (!path.is_empty() && path.split('/').any(|segment| segment.is_empty() || dots(segment)))
}

impl Endpoint {
    /// Whether its body and its answer say what it uses, so that [`super::Inspection`] and the meters read them.
    pub fn metered(self) -> bool {
        use Endpoint::{Chat, Completions, Embeddings, Images, Messages, Responses};
        matches!(self, Chat | Completions | Responses | Embeddings | Images | Messages)
    }

    /// Whether errors take Anthropic's form, on whatever route it was called.
    pub fn speaks_anthropic(self) -> bool {
        self == Endpoint::Messages
    }
}
