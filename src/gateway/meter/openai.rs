//! Streams of chat completions and completions.

use serde::Deserialize;
use serde_json::json;

use super::json::{Count, Each, Name, Object, Present, TextLength};
use super::sse::Event;
use super::stream::{Verdict, event};
use super::usage::{Progress, Usage};
use super::{Endpoint, Tally};

/// Choices beyond these are not told apart; the request allows no more.
const MAX_CHOICES: u64 = 128;

/// Base64 bytes of streamed audio (16 bit at 24 kHz) in a token, and what a token is in bytes of text.
const AUDIO_BYTES_PER_TEXT_BYTE: u64 = 800;

/// What a stream of chunks said so far.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    completions: bool,
    /// The client asked for the chunk of usage.
    wants_usage: bool,
    id: Option<Box<str>>,
    model: Option<Box<str>>,
    created: u64,
    /// A bit for each choice seen, and for each that is finished.
    seen: u128,
    finished: u128,
}

#[derive(Deserialize)]
struct Chunk<'b> {
    #[serde(default, borrow)]
    id: Name<'b>,
    #[serde(default, borrow)]
    model: Name<'b>,
    #[serde(default)]
    created: Count,
    #[serde(default)]
    choices: Each<Choice>,
    #[serde(default)]
    usage: Object<Usage>,
    #[serde(default)]
    error: Present,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: Count,
    #[serde(default)]
    delta: Object<Delta>,
    #[serde(default)]
    text: TextLength,
    #[serde(default)]
    finish_reason: Present,
}

#[derive(Deserialize)]
pub(super) struct Delta {
    #[serde(default)]
    content: TextLength,
    #[serde(default)]
    refusal: TextLength,
    #[serde(default)]
    reasoning: TextLength,
    #[serde(default)]
    reasoning_content: TextLength,
    #[serde(default)]
    tool_calls: TextLength,
    #[serde(default)]
    function_call: TextLength,
    #[serde(default)]
    audio: Object<Audio>,
}

#[derive(Deserialize)]
struct Audio {
    #[serde(default)]
    transcript: TextLength,
    #[serde(default)]
    data: TextLength,
}

impl Delta {
    /// Bytes of text in it, or what stands for them.
    pub(super) fn length(&self) -> u64 {
        let audio = self
            .audio
            .0
            .as_ref()
            .map_or(0, |audio| audio.transcript.0.saturating_add(audio.data.0.div_ceil(AUDIO_BYTES_PER_TEXT_BYTE)));
        // Some upstreams spell the same thought both ways.
        [self.content.0, self.refusal.0, self.tool_calls.0, self.function_call.0, audio]
            .into_iter()
            .fold(self.reasoning.0.max(self.reasoning_content.0), u64::saturating_add)
    }
}

impl Chunks {
    pub(super) fn new(endpoint: Endpoint, wants_usage: bool) -> Chunks {
        Chunks { completions: endpoint == Endpoint::Completions, wants_usage, ..Chunks::default() }
    }

    pub(super) fn event(&mut self, event: &Event<'_>, progress: &mut Progress) -> Verdict {
        let Some(data) = event.data.as_deref() else { return Verdict::Pass };
        if data.trim_ascii() == b"[DONE]" {
            return Verdict::Last;
        }
        let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(data) else {
            progress.delta(1);
            return Verdict::Pass;
        };
        if chunk.error.0 {
            progress.failed = true;
            return Verdict::Pass;
        }
        chunk.id.keep(&mut self.id);
        chunk.model.keep(&mut self.model);
        self.created = chunk.created.get().unwrap_or(self.created);
        for choice in &chunk.choices.0 {
            let bit = choice.index.get().filter(|index| *index < MAX_CHOICES).map_or(0, |index| 1_u128 << index);
            self.seen |= bit;
            if choice.finish_reason.0 {
                self.finished |= bit;
            }
            progress.delta(choice.delta.0.as_ref().map_or(0, Delta::length).saturating_add(choice.text.0));
        }
        let all_finished = self.seen != 0
            && self.finished == self.seen
            && u64::from(self.seen.count_ones()) >= progress.choices().min(MAX_CHOICES);
        progress.complete |= all_finished;
        let Some(usage) = chunk.usage.0 else { return Verdict::Pass };
        let only_usage = chunk.choices.0.is_empty();
        progress.report(&usage, all_finished || (only_usage && progress.began()));
        if only_usage && !self.wants_usage { Verdict::Hide } else { Verdict::Pass }
    }

    /// Finishes the choices that are open for reason `length`.
    pub(super) fn cut(&self, model: &str, choices: u64, tally: &Tally) -> Vec<u8> {
        let asked = 1_u128.checked_shl(choices.min(MAX_CHOICES) as u32).map_or(u128::MAX, |bit| bit - 1);
        let open = (self.seen | asked) & !self.finished;
        let choice = |index: u64| match self.completions {
            true => json!({"index": index, "text": "", "logprobs": null, "finish_reason": "length"}),
            false => json!({"index": index, "delta": {}, "logprobs": null, "finish_reason": "length"}),
        };
        let choices = (0..MAX_CHOICES).filter(|index| open >> index & 1 == 1).map(choice);
        let (object, fallback) = match self.completions {
            true => ("text_completion", "cmpl-cut"),
            false => ("chat.completion.chunk", "chatcmpl-cut"),
        };
        let mut chunk = json!({
            "id": self.id.as_deref().unwrap_or(fallback),
            "object": object,
            "created": self.created,
            "model": self.model.as_deref().unwrap_or(model),
            "choices": choices.collect::<Vec<_>>(),
        });
        let mut ending = Vec::new();
        event(&mut ending, None, &chunk);
        if self.wants_usage
            && let Some(members) = chunk.as_object_mut()
        {
            let tokens = tally.tokens;
            members.insert("choices".to_owned(), json!([]));
            members.insert(
                "usage".to_owned(),
                json!({
                    "prompt_tokens": tokens.input,
                    "completion_tokens": tokens.output,
                    "total_tokens": tokens.input.saturating_add(tokens.output),
                }),
            );
            event(&mut ending, None, &chunk);
        }
        ending.extend_from_slice(b"data: [DONE]\n\n");
        ending
    }
}
