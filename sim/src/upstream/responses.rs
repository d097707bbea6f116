//! The responses endpoint.

use http::StatusCode;
use serde_json::{Value, json};

use super::answer::{Answer, Event, failure};
use super::knobs::Knobs;
use super::openai::{output, responses_usage};
use super::text::{ToolCall, count, count_input, count_tools, sentence, words};

pub(super) fn respond(body: &Value, knobs: &Knobs) -> Answer {
    if body["input"].is_null() {
        return failure(false, StatusCode::BAD_REQUEST, "input: field required");
    }
    let call = ToolCall::wanted(body.get("tools"), body.get("tool_choice"), &body["input"]);
    let (tokens, cut) = output(knobs, &[&body["max_output_tokens"]]);
    let (item, output_tokens) = match &call {
        Some(call) => (call_item(call, &call.arguments, "completed"), count(&call.name) + count(&call.arguments)),
        None => (message_item(&sentence(tokens), "completed"), tokens),
    };
    let input = count_input(&body["input"]) + count_input(&body["instructions"]) + count_tools(body.get("tools"));
    let cut = cut && call.is_none();
    let mut response = envelope(body, if cut { "incomplete" } else { "completed" });
    response["output"] = json!([item]);
    if cut {
        response["incomplete_details"] = json!({ "reason": "max_output_tokens" });
    }
    if let Some(usage) = responses_usage(input, output_tokens, knobs) {
        response["usage"] = usage;
    }
    if body["stream"] == true {
        stream(body, response, call, tokens, knobs)
    } else {
        Answer::Plain(StatusCode::OK, response)
    }
}

fn envelope(body: &Value, status: &str) -> Value {
    json!({
        "id": "resp_sim", "object": "response", "created_at": 1_760_000_000, "status": status, "error": null,
        "incomplete_details": null, "instructions": body["instructions"], "max_output_tokens": body["max_output_tokens"],
        "model": body["model"], "output": [], "parallel_tool_calls": true, "previous_response_id": null, "store": false,
        "temperature": 1.0, "tool_choice": body.get("tool_choice").cloned().unwrap_or("auto".into()),
        "tools": body.get("tools").cloned().unwrap_or(json!([])), "top_p": 1.0, "metadata": {}, "usage": null,
    })
}

fn text_part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

fn message_item(text: &str, status: &str) -> Value {
    json!({ "id": "msg_sim", "type": "message", "role": "assistant", "status": status, "content": [text_part(text)] })
}

fn call_item(call: &ToolCall, arguments: &str, status: &str) -> Value {
    json!({
        "id": "fc_sim", "type": "function_call", "call_id": "call_sim", "status": status,
        "name": call.name, "arguments": arguments,
    })
}

fn stream(body: &Value, response: Value, call: Option<ToolCall>, tokens: u64, knobs: &Knobs) -> Answer {
    let begun = envelope(body, "in_progress");
    let opening =
        [("response.created", json!({ "response": begun })), ("response.in_progress", json!({ "response": begun }))];
    let middle: Box<dyn Iterator<Item = (&'static str, Value)> + Send> = match call {
        Some(call) => Box::new(call_events(&call).into_iter()),
        None => Box::new(text_events(tokens, knobs.chunk_tokens)),
    };
    let end = if response["status"] == "incomplete" { "response.incomplete" } else { "response.completed" };
    let closing = std::iter::once((end, json!({ "response": response })));
    let numbered = opening.into_iter().chain(middle).chain(closing).enumerate().map(|(number, (name, mut data))| {
        data["type"] = name.into();
        data["sequence_number"] = number.into();
        Event::named(name, &data)
    });
    Answer::Events(Box::new(numbered))
}

fn text_events(tokens: u64, step: u64) -> impl Iterator<Item = (&'static str, Value)> + Send {
    let mut opened = message_item("", "in_progress");
    opened["content"] = json!([]);
    let at = |more: Value| {
        let mut event = json!({ "item_id": "msg_sim", "output_index": 0, "content_index": 0 });
        if let (Some(event), Value::Object(more)) = (event.as_object_mut(), more) {
            event.extend(more);
        }
        event
    };
    let text = sentence(tokens);
    let opening = [
        ("response.output_item.added", json!({ "output_index": 0, "item": opened })),
        ("response.content_part.added", at(json!({ "part": text_part("") }))),
    ];
    let deltas = (0..tokens.div_ceil(step)).map(move |piece| {
        let delta = words(piece * step, step.min(tokens - piece * step));
        ("response.output_text.delta", at(json!({ "delta": delta, "logprobs": [] })))
    });
    let closing = [
        ("response.output_text.done", at(json!({ "text": text, "logprobs": [] }))),
        ("response.content_part.done", at(json!({ "part": text_part(&text) }))),
        ("response.output_item.done", json!({ "output_index": 0, "item": message_item(&text, "completed") })),
    ];
    opening.into_iter().chain(deltas).chain(closing)
}

fn call_events(call: &ToolCall) -> Vec<(&'static str, Value)> {
    let arguments = &call.arguments;
    vec![
        ("response.output_item.added", json!({ "output_index": 0, "item": call_item(call, "", "in_progress") })),
        (
            "response.function_call_arguments.delta",
            json!({ "item_id": "fc_sim", "output_index": 0, "delta": arguments }),
        ),
        (
            "response.function_call_arguments.done",
            json!({ "item_id": "fc_sim", "output_index": 0, "name": call.name, "arguments": arguments }),
        ),
        ("response.output_item.done", json!({ "output_index": 0, "item": call_item(call, arguments, "completed") })),
    ]
}
