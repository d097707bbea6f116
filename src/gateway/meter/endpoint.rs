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
    let odd = |byte: u8| matches!(byte, b'\\' | b';' | b'?' | b'#' | b' ') || byte.is_ascii_control();
    let dots = |segment: &str| segment.is_empty() || segment == "." || segment == "..";
    if path.is_empty() {
        return false;
    }
    if path.bytes().any(odd) || path.split('/').any(dots) {
        return true;
    }
    if !path.contains('%') {
        return false;
    }
    let decoded = path.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "\\");
    decoded.contains('\\') || decoded.split('/').any(dots)
}

impl Endpoint {
    /// Whether its body and its answer say what it uses, so that [`super::Inspection`] and the meters read them.
    pub fn metered(self) -> bool {
        use Endpoint::{Chat, Completions, Embeddings, Images, Messages, Responses};
        matches!(self, Chat | Completions | Responses | Embeddings | Images | Messages)
    }

    /// As the GenAI conventions of OpenTelemetry call it (`gen_ai.operation.name`), where they have a word for it.
    pub fn operation(self) -> Option<&'static str> {
        Some(match self {
            Endpoint::Chat | Endpoint::Responses | Endpoint::Messages => "chat",
            Endpoint::Completions => "text_completion",
            Endpoint::Embeddings => "embeddings",
            Endpoint::Images => "generate_content",
            _ => return None,
        })
    }

    /// Whether errors take Anthropic's form, on whatever route it was called.
    pub fn speaks_anthropic(self) -> bool {
        self == Endpoint::Messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(path: &str) -> Endpoint {
        classify(RouteKind::Openai, &Method::POST, "/v1", path)
    }

    fn get(path: &str) -> Endpoint {
        classify(RouteKind::Anthropic, &Method::GET, "", path)
    }

    #[test]
    fn knows_the_calls_of_both_protocols() {
        assert_eq!(post("/v1/chat/completions"), Endpoint::Chat);
        assert_eq!(post("/v1/chat/completions/"), Endpoint::Chat);
        assert_eq!(post("/v1/v1/completions"), Endpoint::Completions);
        assert_eq!(post("/responses"), Endpoint::Responses);
        assert_eq!(post("/v1/embeddings"), Endpoint::Embeddings);
        assert_eq!(post("/v1/images/generations"), Endpoint::Images);
        assert_eq!(post("/v1/messages"), Endpoint::Messages);
        assert_eq!(classify(RouteKind::Http, &Method::POST, "/", "/v1/messages"), Endpoint::PerRequest);
    }

    #[test]
    fn a_prefix_is_no_part_of_the_protocol_up_to_its_v1() {
        let post = |prefix, path| classify(RouteKind::Openai, &Method::POST, prefix, path);
        assert_eq!(post("/openai", "/openai/v1/chat/completions"), Endpoint::Chat);
        assert_eq!(post("/openai/v1", "/openai/v1/chat/completions"), Endpoint::Chat);
        assert_eq!(post("/openai/", "/openai/chat/completions"), Endpoint::Chat);
        assert_eq!(post("/v1/messages", "/v1/messages"), Endpoint::Messages);
        assert_eq!(post("/v1/messages", "/v1/messages/count_tokens"), Endpoint::Free);
        assert_eq!(post("/openai", "/other/v1/chat/completions"), Endpoint::Unlisted);
    }

    #[test]
    fn lists_of_models_and_token_counts_are_free() {
        assert_eq!(get("/v1/models"), Endpoint::Free);
        assert_eq!(get("/v1/models/meta-llama%2FLlama-3.1"), Endpoint::Free);
        assert_eq!(get("/v1/models/meta-llama/Llama-3.1"), Endpoint::Free);
        assert_eq!(post("/v1/models"), Endpoint::Unlisted);
        assert_eq!(post("/v1/messages/count_tokens"), Endpoint::Free);
        assert_eq!(post("/v1/responses/input_tokens"), Endpoint::Free);
        assert_eq!(get("/v1/responses/resp_1"), Endpoint::Free);
        assert_eq!(get("/v1/responses/resp_1/input_items"), Endpoint::Free);
    }

    /// failures 8: passthrough routes go unmetered (bifrost#2873).
    #[test]
    fn nothing_is_free_by_accident() {
        assert_eq!(post("/v1/audio/speech"), Endpoint::Unlisted);
        assert_eq!(post("/v1/images/edits"), Endpoint::Unlisted);
        assert_eq!(post("/V1/Chat/Completions"), Endpoint::Unlisted);
        assert_eq!(post("/v1/chat%2Fcompletions"), Endpoint::Unlisted);
        assert_eq!(post("/v1/v1/v1/chat/completions"), Endpoint::Unlisted);
        assert_eq!(post("/v1/a/b/c/d/e/f/g"), Endpoint::Unlisted);
        assert_eq!(post(""), Endpoint::Unlisted);
        assert_eq!(post("/v1/responses/compact"), Endpoint::Unlisted);
        assert_eq!(post("/v1/batches"), Endpoint::Refused(Refused::Batch));
        assert_eq!(post("/v1/messages/batches"), Endpoint::Refused(Refused::Batch));
        assert_eq!(get("/v1/messages/batches/b/results"), Endpoint::Refused(Refused::Batch));
        assert_eq!(get("/v1/realtime"), Endpoint::Refused(Refused::Realtime));
        assert_eq!(post("/v1/threads/t/runs"), Endpoint::Refused(Refused::Shared));
        assert_eq!(get("/v1/files"), Endpoint::Refused(Refused::Shared));
        assert_eq!(get("/v1/chat/completions"), Endpoint::Refused(Refused::Shared));
        assert_eq!(post("/v1/fine_tuning/jobs"), Endpoint::Refused(Refused::Background));
    }

    #[test]
    fn a_path_that_an_upstream_may_read_otherwise_is_refused() {
        for path in [
            "/v1/models/../chat/completions",
            "/v1/models/%2e%2E/chat/completions",
            "/v1/models/x%2f..%2F..%2fchat/completions",
            "/v1//chat/completions",
            "/v1/models\\..\\chat",
            "/v1/models/%5C..",
            "/v1/models;x/y",
            "//evil/v1/models",
        ] {
            assert_eq!(get(path), Endpoint::Refused(Refused::UnclearPath), "{path}");
        }
    }
}
