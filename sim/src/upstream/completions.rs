//! The older text completions.

use http::StatusCode;
use serde_json::{Value, json};

use super::answer::{Answer, Event, failure};
use super::knobs::Knobs;
use super::openai::{output, usage};
use super::text::{count_input, sentence, words};

/// Without a limit of its own, a completion has at most so many tokens.
const DEFAULT_LIMIT: u64 = 16;

pub(super) fn complete(body: &Value, knobs: &Knobs) -> Answer {
    if body["prompt"].is_null() {
        return failure(false, StatusCode::BAD_REQUEST, "prompt: field required");
    }
    let limit = Value::from(body["max_tokens"].as_u64().unwrap_or(DEFAULT_LIMIT));
    let (tokens, cut) = output(knobs, &[&limit]);
    let finish = if cut { "length" } else { "stop" };
    let usage = usage(count_input(&body["prompt"]), tokens, knobs);
    let model = body["model"].clone();
    let answer = move |text: String, finish: Option<&str>| {
        json!({
            "id": "cmpl-sim", "object": "text_completion", "created": 1_760_000_000, "model": model,
            "choices": [{ "index": 0, "text": text, "logprobs": null, "finish_reason": finish }],
        })
    };
    if body["stream"] != true {
        let mut whole = answer(sentence(tokens), Some(finish));
        if let Some(usage) = usage {
            whole["usage"] = usage;
        }
        return Answer::Plain(StatusCode::OK, whole);
    }
    let step = knobs.chunk_tokens;
    let pieces = tokens.div_ceil(step);
    let counted = usage.filter(|_| body["stream_options"]["include_usage"] == true).map(|usage| {
        let mut chunk = answer(String::new(), None);
        chunk["choices"] = json!([]);
        chunk["usage"] = usage;
        Event::data(&chunk)
    });
    let chunks = (0..pieces).map(move |piece| {
        let text = words(piece * step, step.min(tokens - piece * step));
        Event::data(&answer(text, (piece + 1 == pieces).then_some(finish)))
    });
    let done = std::iter::once(Event { name: None, data: "[DONE]".to_owned() });
    Answer::Events(Box::new(chunks.chain(counted).chain(done)))
}
