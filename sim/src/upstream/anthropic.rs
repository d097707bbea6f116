//! Anthropic messages.

use http::StatusCode;
use serde_json::{Value, json};

use super::answer::{Answer, Event, failure};
use super::knobs::{Knobs, UsageForm};
use super::openai::output;
use super::text::{ToolCall, count, count_input, count_tools, sentence, words};

fn input_tokens(body: &Value) -> u64 {
    count_input(&body["messages"]) + count_input(&body["system"]) + count_tools(body.get("tools"))
}

pub(super) fn count_tokens(body: &Value) -> Answer {
    match has_messages(body) {
        true => Answer::Plain(StatusCode::OK, json!({ "input_tokens": input_tokens(body) })),
        false => failure(true, StatusCode::BAD_REQUEST, "messages: field required"),
    }
}

fn has_messages(body: &Value) -> bool {
    body["messages"].as_array().is_some_and(|messages| !messages.is_empty())
}

pub(super) fn messages(body: &Value, knobs: &Knobs) -> Answer {
    if !has_messages(body) {
        return failure(true, StatusCode::BAD_REQUEST, "messages: field required");
    }
    if body["max_tokens"].as_u64().is_none_or(|limit| limit == 0) {
        return failure(true, StatusCode::BAD_REQUEST, "max_tokens: field required");
    }
    let call = ToolCall::wanted(body.get("tools"), body.get("tool_choice"), &body["messages"]);
    let (tokens, cut) = output(knobs, &[&body["max_tokens"]]);
    let (stop, output_tokens) = match &call {
        Some(call) => ("tool_use", count(&call.name) + count(&call.arguments)),
        None => (if cut { "max_tokens" } else { "end_turn" }, tokens),
    };
    let input = input_tokens(body);
    if body["stream"] == true {
        return stream(body, knobs, call, Ending { stop, tokens, input, output: output_tokens });
    }
    let block = match call {
        Some(call) => {
            let arguments = serde_json::from_str::<Value>(&call.arguments).unwrap_or_default();
            json!({ "type": "tool_use", "id": "toolu_sim", "name": call.name, "input": arguments })
        }
        None => json!({ "type": "text", "text": sentence(tokens), "citations": null }),
    };
    let mut answer = message(body, json!([block]), Some(stop));
    if let Some(usage) = usage(input, output_tokens, knobs) {
        answer["usage"] = usage;
    }
    Answer::Plain(StatusCode::OK, answer)
}

struct Ending {
    stop: &'static str,
    tokens: u64,
    input: u64,
    output: u64,
}

fn message(body: &Value, content: Value, stop: Option<&str>) -> Value {
    json!({
        "id": "msg_sim", "type": "message", "role": "assistant", "model": body["model"], "content": content,
        "stop_reason": stop, "stop_sequence": null,
    })
}

/// Anthropic's `input_tokens` leaves out what was read from the cache.
fn usage(input: u64, output: u64, knobs: &Knobs) -> Option<Value> {
    let cached = knobs.cached.min(input);
    let report = |input: Value, output: Value, cached: u64| {
        json!({
            "input_tokens": input, "output_tokens": output,
            "cache_creation_input_tokens": 0, "cache_read_input_tokens": cached,
        })
    };
    match knobs.usage {
        UsageForm::None => None,
        UsageForm::Zero => Some(report(0.into(), 0.into(), 0)),
        UsageForm::Garbage => Some(report("many".into(), json!([1.5]), 0)),
        UsageForm::Negative => Some(report((-5).into(), (-7).into(), 0)),
        UsageForm::Huge => Some(report(u64::MAX.into(), 1e300.into(), 0)),
        UsageForm::Exact | UsageForm::Early | UsageForm::Double => {
            Some(report((input - cached).into(), output.into(), cached))
        }
    }
}

fn stream(body: &Value, knobs: &Knobs, call: Option<ToolCall>, ending: Ending) -> Answer {
    let mut started = message(body, json!([]), None);
    if let Some(usage) = usage(ending.input, 1, knobs) {
        started["usage"] = usage;
    }
    let block = match &call {
        Some(call) => json!({ "type": "tool_use", "id": "toolu_sim", "name": call.name, "input": {} }),
        None => json!({ "type": "text", "text": "" }),
    };
    let opening = [
        event("message_start", json!({ "message": started })),
        event("content_block_start", json!({ "index": 0, "content_block": block })),
        event("ping", json!({})),
    ];
    let delta = |delta: Value| event("content_block_delta", json!({ "index": 0, "delta": delta }));
    let (calls, tokens) = match call {
        Some(call) => {
            let half = call.arguments.len() / 2;
            let half = (0..=half).rev().find(|&at| call.arguments.is_char_boundary(at)).unwrap_or(0);
            let (first, second) = call.arguments.split_at(half);
            let pieces = ["", first, second];
            (pieces.map(|json| delta(json!({ "type": "input_json_delta", "partial_json": json }))).into(), 0)
        }
        None => (Vec::new(), ending.tokens),
    };
    let step = knobs.chunk_tokens;
    let texts = (0..tokens.div_ceil(step)).map(move |piece| {
        let text = words(piece * step, step.min(tokens - piece * step));
        delta(json!({ "type": "text_delta", "text": text }))
    });
    let mut last = json!({ "delta": { "stop_reason": ending.stop, "stop_sequence": null } });
    if let Some(usage) = usage(ending.input, ending.output, knobs) {
        last["usage"] = json!({ "output_tokens": usage["output_tokens"] });
    }
    let closing = [
        event("content_block_stop", json!({ "index": 0 })),
        event("message_delta", last),
        event("message_stop", json!({})),
    ];
    Answer::Events(Box::new(opening.into_iter().chain(calls).chain(texts).chain(closing)))
}

fn event(name: &'static str, mut data: Value) -> Event {
    data["type"] = name.into();
    Event::named(name, &data)
}
