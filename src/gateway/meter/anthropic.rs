//! Streams of Anthropic messages.

use serde::Deserialize;
use serde_json::json;

use super::Tally;
use super::json::{Count, Name, Object, TextLength};
use super::sse::Event;
use super::stream::{Verdict, event};
use super::usage::{Progress, Usage};

/// Content blocks beyond these are not closed by a cut.
const MAX_BLOCKS: u64 = 128;

/// What a stream of events said so far.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    started: bool,
    /// A bit for each content block that is open.
    open: u128,
}

#[derive(Deserialize)]
struct Message<'b> {
    #[serde(default, borrow, rename = "type")]
    kind: Name<'b>,
    #[serde(default)]
    index: Count,
    #[serde(default)]
    message: Object<Start>,
    #[serde(default, borrow)]
    content_block: Object<Block<'b>>,
    #[serde(default)]
    delta: Object<Delta>,
    #[serde(default)]
    usage: Object<Usage>,
}

#[derive(Deserialize)]
struct Start {
    #[serde(default)]
    usage: Object<Usage>,
}

#[derive(Deserialize)]
struct Block<'b> {
    #[serde(default, borrow)]
    name: Name<'b>,
    #[serde(default)]
    text: TextLength,
    #[serde(default)]
    thinking: TextLength,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    text: TextLength,
    #[serde(default)]
    thinking: TextLength,
    #[serde(default)]
    partial_json: TextLength,
}

impl Blocks {
    pub(super) fn event(&mut self, event: &Event<'_>, progress: &mut Progress) -> Verdict {
        let Some(data) = event.data.as_deref() else { return Verdict::Pass };
        let Ok(message) = serde_json::from_slice::<Message<'_>>(data) else {
            progress.delta(1);
            return Verdict::Pass;
        };
        let bit = message.index.get().filter(|index| *index < MAX_BLOCKS).map_or(0, |index| 1_u128 << index);
        match message.kind.as_str() {
            "message_start" => {
                self.started = true;
                if let Some(usage) = message.message.0.and_then(|start| start.usage.0) {
                    progress.report(&usage, false);
                }
            }
            "content_block_start" => {
                self.open |= bit;
                if let Some(block) = message.content_block.0 {
                    let name = block.name.as_str().len() as u64;
                    progress.delta(name.saturating_add(block.text.0).saturating_add(block.thinking.0));
                }
            }
            "content_block_delta" => {
                if let Some(delta) = message.delta.0 {
                    let text = delta.text.0.saturating_add(delta.thinking.0);
                    progress.delta(text.saturating_add(delta.partial_json.0));
                }
            }
            "content_block_stop" => self.open &= !bit,
            "message_delta" => {
                if let Some(usage) = message.usage.0 {
                    progress.report(&usage, true);
                }
            }
            "message_stop" => {
                progress.complete = true;
                return Verdict::Last;
            }
            "error" => progress.failed = true,
            _ => {}
        }
        Verdict::Pass
    }

    /// Closes the open blocks and ends the message for reason `max_tokens`.
    pub(super) fn cut(&self, model: &str, tally: &Tally) -> Vec<u8> {
        let tokens = tally.tokens;
        let mut ending = Vec::new();
        if !self.started {
            let start = json!({"type": "message_start", "message": {
                "id": "msg_cut", "type": "message", "role": "assistant", "model": model, "content": [],
                "stop_reason": null, "stop_sequence": null,
                "usage": {"input_tokens": tokens.input, "output_tokens": 0},
            }});
            event(&mut ending, Some("message_start"), &start);
        }
        for index in (0..MAX_BLOCKS).filter(|index| self.open >> index & 1 == 1) {
            let stop = json!({"type": "content_block_stop", "index": index});
            event(&mut ending, Some("content_block_stop"), &stop);
        }
        let delta = json!({
            "type": "message_delta",
            "delta": {"stop_reason": "max_tokens", "stop_sequence": null},
            "usage": {"output_tokens": tokens.output},
        });
        event(&mut ending, Some("message_delta"), &delta);
        event(&mut ending, Some("message_stop"), &json!({"type": "message_stop"}));
        ending
    }
}
