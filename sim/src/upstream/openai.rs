//! Chat completions, embeddings, images, models.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde_json::{Value, json};

use super::answer::{Answer, Event, failure};
use super::knobs::{Knobs, UsageForm};
use super::text::{ToolCall, count, count_input, count_tools, sentence, words};

/// A PNG of one pixel.
const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
const MODELS: [&str; 4] = ["sim-1", "sim-mini", "gpt-4o-mini", "claude-sim"];
const CREATED: u64 = 1_760_000_000;
/// Most choices of one answer.
const CHOICES_MAX: u64 = 128;
const EMBEDDING_LENGTH: u64 = 8;
const EMBEDDING_LENGTH_MAX: u64 = 4_096;
const IMAGES_MAX: u64 = 10;
/// Output tokens of an image, as its usage reports them.
const IMAGE_TOKENS: u64 = 100;

pub(super) fn models() -> Answer {
    let data = MODELS.map(model_object);
    Answer::Plain(StatusCode::OK, json!({ "object": "list", "data": data, "has_more": false }))
}

pub(super) fn model(id: &str) -> Answer {
    match MODELS.iter().find(|&&model| model == id) {
        Some(model) => Answer::Plain(StatusCode::OK, model_object(model)),
        None => failure(false, StatusCode::NOT_FOUND, "no such model"),
    }
}

fn model_object(id: &str) -> Value {
    json!({ "id": id, "object": "model", "created": CREATED, "owned_by": "sim" })
}

/// How many output tokens, and whether the limit cut them.
pub(super) fn output(knobs: &Knobs, limits: &[&Value]) -> (u64, bool) {
    let limit = limits.iter().filter_map(|limit| limit.as_u64()).min().unwrap_or(u64::MAX);
    (knobs.tokens.min(limit), knobs.tokens > limit)
}

/// Usage of the chat form; `None` where none shall be reported.
pub(super) fn usage(input: u64, output: u64, knobs: &Knobs) -> Option<Value> {
    let report = |input: u64, output: u64| {
        json!({
            "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output,
            "prompt_tokens_details": { "cached_tokens": knobs.cached.min(input), "audio_tokens": 0 },
            "completion_tokens_details": { "reasoning_tokens": 0, "audio_tokens": 0 },
        })
    };
    match knobs.usage {
        UsageForm::None => None,
        UsageForm::Zero => Some(report(0, 0)),
        UsageForm::Garbage => {
            Some(json!({ "prompt_tokens": "many", "completion_tokens": [1.5], "total_tokens": null }))
        }
        UsageForm::Negative => Some(json!({ "prompt_tokens": -5, "completion_tokens": -7, "total_tokens": -12 })),
        UsageForm::Huge => {
            Some(json!({ "prompt_tokens": u64::MAX, "completion_tokens": 1e300, "total_tokens": 1e301 }))
        }
        UsageForm::Exact | UsageForm::Early | UsageForm::Double => Some(report(input, output)),
    }
}

/// What one chat answer says, for all of its choices alike.
struct Chat {
    model: Value,
    choices: u64,
    tokens: u64,
    finish: &'static str,
    call: Option<ToolCall>,
    input: u64,
    output: u64,
}

pub(super) fn chat(body: &Value, knobs: &Knobs) -> Answer {
    if body["messages"].as_array().is_none_or(Vec::is_empty) {
        return failure(false, StatusCode::BAD_REQUEST, "messages: a list of at least one message is required");
    }
    let call = ToolCall::wanted(body.get("tools"), body.get("tool_choice"), &body["messages"]);
    let (tokens, cut) = output(knobs, &[&body["max_tokens"], &body["max_completion_tokens"]]);
    let choices = body["n"].as_u64().unwrap_or(1).clamp(1, CHOICES_MAX);
    let (finish, each) = match &call {
        Some(call) => ("tool_calls", count(&call.name) + count(&call.arguments)),
        None => (if cut { "length" } else { "stop" }, tokens),
    };
    let chat = Chat {
        model: body["model"].clone(),
        choices,
        tokens,
        finish,
        call,
        input: count_input(&body["messages"]) + count_tools(body.get("tools")),
        output: each * choices,
    };
    if body["stream"] == true { chat.stream(body, knobs) } else { chat.plain(knobs) }
}

impl Chat {
    fn plain(&self, knobs: &Knobs) -> Answer {
        let message = match &self.call {
            Some(call) => {
                json!({ "role": "assistant", "content": null, "tool_calls": [tool_call(call)], "refusal": null })
            }
            None => json!({ "role": "assistant", "content": sentence(self.tokens), "refusal": null }),
        };
        let choice =
            |index: u64| json!({ "index": index, "message": message, "logprobs": null, "finish_reason": self.finish });
        let mut answer = json!({
            "id": "chatcmpl-sim", "object": "chat.completion", "created": CREATED, "model": self.model,
            "choices": (0..self.choices).map(choice).collect::<Vec<_>>(),
        });
        if let Some(usage) = usage(self.input, self.output, knobs) {
            answer["usage"] = usage;
        }
        Answer::Plain(StatusCode::OK, answer)
    }

    fn stream(self, body: &Value, knobs: &Knobs) -> Answer {
        let asked = body["stream_options"]["include_usage"] == true;
        let usage = usage(self.input, self.output, knobs);
        let early = usage.clone().filter(|_| knobs.usage == UsageForm::Early);
        let model = self.model;
        let chunk = move |choices: Value| {
            let mut chunk = json!({ "id": "chatcmpl-sim", "object": "chat.completion.chunk", "created": CREATED, "model": model, "choices": choices });
            if asked {
                chunk["usage"] = early.clone().unwrap_or(Value::Null);
            }
            chunk
        };
        let delta = |index: u64, delta: Value, finish: Option<&str>| json!([{ "index": index, "delta": delta, "logprobs": null, "finish_reason": finish }]);
        let choices = self.choices;
        let opening = (0..choices).map(move |index| delta(index, json!({ "role": "assistant", "content": "" }), None));
        let calls: Vec<Value> = self.call.iter().flat_map(|call| call_deltas(call, choices)).collect();
        let tokens = if self.call.is_some() { 0 } else { self.tokens };
        let step = knobs.chunk_tokens;
        let texts = (0..tokens.div_ceil(step)).flat_map(move |piece| {
            let text = words(piece * step, step.min(tokens - piece * step));
            (0..choices).map(move |index| delta(index, json!({ "content": text }), None))
        });
        let finish = self.finish;
        let closing = (0..choices).map(move |index| delta(index, json!({}), Some(finish)));
        let last = chunk.clone();
        let times = if knobs.usage == UsageForm::Double { 2 } else { 1 };
        let counted = usage.filter(|_| asked).into_iter().flat_map(move |usage| vec![usage; times]).map(move |usage| {
            let mut chunk = last(json!([]));
            chunk["usage"] = usage;
            Event::data(&chunk)
        });
        let done = std::iter::once(Event { name: None, data: "[DONE]".to_owned() });
        let chunks = opening.chain(calls).chain(texts).chain(closing).map(move |choices| Event::data(&chunk(choices)));
        Answer::Events(Box::new(chunks.chain(counted).chain(done)))
    }
}

fn tool_call(call: &ToolCall) -> Value {
    json!({ "id": "call_sim", "type": "function", "function": { "name": call.name, "arguments": call.arguments } })
}

/// A call in two pieces: its name, then its arguments.
fn call_deltas(call: &ToolCall, choices: u64) -> Vec<Value> {
    let mut name = tool_call(call);
    name["index"] = 0.into();
    name["function"]["arguments"] = "".into();
    let arguments = json!({ "index": 0, "function": { "arguments": call.arguments } });
    let pieces = [name, arguments];
    let all = (0..choices).flat_map(|index| pieces.iter().map(move |piece| (index, piece)));
    all.map(|(index, piece)| {
        json!([{ "index": index, "delta": { "tool_calls": [piece] }, "logprobs": null, "finish_reason": null }])
    })
    .collect()
}

pub(super) fn embeddings(body: &Value, knobs: &Knobs) -> Answer {
    let many = body["input"].as_array().filter(|items| items.iter().all(|item| !item.is_number()));
    let count = many.map_or(1, Vec::len);
    if body["input"].is_null() || count == 0 {
        return failure(false, StatusCode::BAD_REQUEST, "input: field required");
    }
    let length = body["dimensions"].as_u64().unwrap_or(EMBEDDING_LENGTH).clamp(1, EMBEDDING_LENGTH_MAX);
    let vector: Vec<f32> = (0..length).map(|index| if index == 0 { 1.0 } else { 0.0 }).collect();
    let embedding = if body["encoding_format"] == "base64" {
        let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
        Value::from(STANDARD.encode(bytes))
    } else {
        Value::from(vector)
    };
    let data = (0..count).map(|index| json!({ "object": "embedding", "index": index, "embedding": embedding }));
    let mut answer = json!({ "object": "list", "model": body["model"], "data": data.collect::<Vec<_>>() });
    if let Some(mut usage) = usage(count_input(&body["input"]), 0, knobs) {
        if let Some(fields) = usage.as_object_mut() {
            fields.retain(|name, _| matches!(name.as_str(), "prompt_tokens" | "total_tokens"));
        }
        answer["usage"] = usage;
    }
    Answer::Plain(StatusCode::OK, answer)
}

pub(super) fn images(body: &Value, knobs: &Knobs) -> Answer {
    let Some(prompt) = body["prompt"].as_str() else {
        return failure(false, StatusCode::BAD_REQUEST, "prompt: field required");
    };
    let count_asked = body["n"].as_u64().unwrap_or(1).clamp(1, IMAGES_MAX);
    let image = if body["response_format"] == "url" {
        json!({ "url": "http://127.0.0.1/sim.png" })
    } else {
        json!({ "b64_json": PNG })
    };
    let data: Vec<Value> = (0..count_asked).map(|_| image.clone()).collect();
    let mut answer = json!({ "created": CREATED, "data": data });
    if let Some(usage) = responses_usage(count(prompt), IMAGE_TOKENS * count_asked, knobs) {
        answer["usage"] = usage;
    }
    Answer::Plain(StatusCode::OK, answer)
}

/// Usage as the responses and images endpoints name it.
pub(super) fn responses_usage(input: u64, output: u64, knobs: &Knobs) -> Option<Value> {
    let usage = usage(input, output, knobs)?;
    let mut renamed = json!({
        "input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"], "total_tokens": usage["total_tokens"],
    });
    renamed["input_tokens_details"] = json!({ "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"] });
    renamed["output_tokens_details"] = json!({ "reasoning_tokens": 0 });
    Some(renamed)
}
