//! Streams of responses, and of images, which speak in events of the same kind.

use serde::Deserialize;
use serde_json::json;

use super::Tally;
use super::json::{Count, Name, Object, TextLength};
use super::sse::Event;
use super::stream::{Verdict, event};
use super::usage::{Progress, Usage};

/// What a stream of events said so far.
#[derive(Debug, Default)]
pub(super) struct Events {
    id: Option<Box<str>>,
    model: Option<Box<str>>,
    created_at: u64,
    /// The next event's number.
    sequence: u64,
}

#[derive(Deserialize)]
struct Message<'b> {
    #[serde(default, borrow, rename = "type")]
    kind: Name<'b>,
    #[serde(default)]
    sequence_number: Count,
    #[serde(default)]
    delta: TextLength,
    #[serde(default, borrow)]
    response: Object<Response<'b>>,
    #[serde(default)]
    usage: Object<Usage>,
}

#[derive(Deserialize)]
struct Response<'b> {
    #[serde(default, borrow)]
    id: Name<'b>,
    #[serde(default, borrow)]
    model: Name<'b>,
    #[serde(default)]
    created_at: Count,
    #[serde(default)]
    usage: Object<Usage>,
}

impl Events {
    pub(super) fn event(&mut self, event: &Event<'_>, progress: &mut Progress) -> Verdict {
        let Some(data) = event.data.as_deref() else { return Verdict::Pass };
        if data.trim_ascii() == b"[DONE]" {
            return Verdict::Last;
        }
        let Ok(message) = serde_json::from_slice::<Message<'_>>(data) else {
            progress.delta(1);
            return Verdict::Pass;
        };
        if let Some(number) = message.sequence_number.get() {
            self.sequence = number.saturating_add(1);
        }
        if let Some(response) = &message.response.0 {
            response.id.keep(&mut self.id);
            response.model.keep(&mut self.model);
            self.created_at = response.created_at.get().unwrap_or(self.created_at);
        }
        match message.kind.as_str() {
            "response.completed" | "response.incomplete" => progress.complete = true,
            "response.failed" => progress.failed = true,
            "error" => {
                progress.failed = true;
                return Verdict::Pass;
            }
            kind if kind.ends_with(".delta") && kind != "response.audio.delta" => {
                progress.delta(message.delta.0);
                return Verdict::Pass;
            }
            _ => return Verdict::Pass,
        }
        if let Some(usage) = message.response.0.and_then(|response| response.usage.0) {
            progress.report(&usage, true);
        }
        Verdict::Last
    }

    /// Ends the response as incomplete. It says what was used, and leaves the output to the events that carried it.
    pub(super) fn cut(&self, model: &str, tally: &Tally) -> Vec<u8> {
        let tokens = tally.tokens;
        let usage = json!({
            "input_tokens": tokens.input,
            "input_tokens_details": {"cached_tokens": tokens.cached},
            "output_tokens": tokens.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens.input.saturating_add(tokens.output),
        });
        let incomplete = json!({
            "type": "response.incomplete",
            "sequence_number": self.sequence,
            "response": {
                "id": self.id.as_deref().unwrap_or("resp_cut"),
                "object": "response",
                "created_at": self.created_at,
                "status": "incomplete",
                "error": null,
                "incomplete_details": {"reason": "max_output_tokens"},
                "instructions": null,
                "metadata": {},
                "model": self.model.as_deref().unwrap_or(model),
                "output": [],
                "parallel_tool_calls": true,
                "temperature": null,
                "tool_choice": "auto",
                "tools": [],
                "top_p": null,
                "usage": usage,
            },
        });
        let mut ending = Vec::new();
        event(&mut ending, Some("response.incomplete"), &incomplete);
        ending
    }
}

/// Reads an event of a stream of images: partial pictures pass, each finished one counts.
pub(super) fn image_event(event: &Event<'_>, progress: &mut Progress) -> Verdict {
    let Some(data) = event.data.as_deref() else { return Verdict::Pass };
    if data.trim_ascii() == b"[DONE]" {
        return Verdict::Last;
    }
    let Ok(message) = serde_json::from_slice::<Message<'_>>(data) else { return Verdict::Pass };
    match message.kind.as_str() {
        "error" => progress.failed = true,
        kind if kind.ends_with(".completed") => {
            progress.images = progress.images.saturating_add(1);
            progress.complete = true;
            if let Some(usage) = &message.usage.0 {
                progress.report(usage, true);
            }
            return Verdict::Last;
        }
        _ => {}
    }
    Verdict::Pass
}
