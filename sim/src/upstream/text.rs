//! Texts and tokens, so simple that a test can count along.

use serde_json::Value;

/// What every answer says, a token a word, over and over.
pub(super) const SENTENCE: [&str; 13] =
    ["The", " gate", " is", " open", ",", " take", " your", " seat", " and", " enjoy", " the", " ride", "."];

/// Tokens of an image in the input.
const IMAGE: u64 = 85;
/// Tokens that each message costs beside its text.
const MESSAGE: u64 = 4;

/// The first `tokens` words.
pub fn sentence(tokens: u64) -> String {
    words(0, tokens)
}

/// Words `from ..from + count`.
pub(super) fn words(from: u64, count: u64) -> String {
    (from..from + count).map(word).collect()
}

fn word(index: u64) -> &'static str {
    let place = usize::try_from(index).unwrap_or(0) % SENTENCE.len();
    // A second sentence begins after a space.
    if place == 0 && index > 0 { " The" } else { SENTENCE[place] }
}

/// Tokens of a text: one for each four bytes or part of four.
pub fn count(text: &str) -> u64 {
    (text.len() as u64).div_ceil(4)
}

/// Tokens of messages, inputs, prompts: strings, content parts, and messages of them.
pub(super) fn count_input(value: &Value) -> u64 {
    match value {
        Value::String(text) => count(text),
        // A list of token ids is as many tokens.
        Value::Array(items) => items.iter().map(|item| if item.is_number() { 1 } else { count_input(item) }).sum(),
        Value::Object(fields) => {
            let kind = fields.get("type").and_then(Value::as_str).unwrap_or("");
            if kind.contains("image") {
                return IMAGE;
            }
            let own = if fields.contains_key("role") { MESSAGE } else { 0 };
            let inner = ["content", "text", "input_text", "output", "arguments"];
            own + inner.iter().filter_map(|&name| fields.get(name)).map(count_input).sum::<u64>()
        }
        _ => 0,
    }
}

/// Tokens of tools: each one's JSON text.
pub(super) fn count_tools(tools: Option<&Value>) -> u64 {
    let tools = tools.and_then(Value::as_array);
    tools.map_or(0, |tools| tools.iter().map(|tool| count(&tool.to_string())).sum())
}

/// A tool that the request wants called: its name, and arguments made to fit its schema.
pub(super) struct ToolCall {
    pub(super) name: String,
    pub(super) arguments: String,
}

impl ToolCall {
    /// `tools` in any of the three forms; `messages` to see what the last one says.
    pub(super) fn wanted(tools: Option<&Value>, choice: Option<&Value>, messages: &Value) -> Option<ToolCall> {
        let tools = tools.and_then(Value::as_array)?;
        if choice.and_then(Value::as_str) == Some("none") {
            return None;
        }
        let last = match messages {
            Value::Array(items) => items.last()?.clone(),
            other => serde_json::json!({ "role": "user", "content": other }),
        };
        let text = last.get("content").map(Value::to_string).unwrap_or_default().to_lowercase();
        let from_user = last.get("role").and_then(Value::as_str) == Some("user") && !text.contains("tool_result");
        let demanded = choice.is_some_and(|choice| {
            choice.is_object() && choice["type"] != "auto" && choice["type"] != "none"
                || choice.as_str() == Some("required")
        });
        let named = |tool: &&Value| text.contains(&name_of(tool).to_lowercase());
        let tool = match choice.and_then(|choice| choice["function"]["name"].as_str().or(choice["name"].as_str())) {
            Some(name) => tools.iter().find(|tool| name_of(tool) == name)?,
            None => tools.iter().find(named).or(tools.first())?,
        };
        if !from_user || !(demanded || text.contains("tool") || named(&tool)) {
            return None;
        }
        let schema = [&tool["function"]["parameters"], &tool["parameters"], &tool["input_schema"]];
        let schema = schema.into_iter().find(|schema| schema.is_object()).unwrap_or(&Value::Null);
        Some(ToolCall { name: name_of(tool).to_owned(), arguments: fill(schema, 0).to_string() })
    }
}

fn name_of(tool: &Value) -> &str {
    tool["function"]["name"].as_str().or(tool["name"].as_str()).unwrap_or("tool")
}

/// A value that fits a JSON schema, as far as examples need it.
fn fill(schema: &Value, depth: u32) -> Value {
    if let Some(first) = schema["enum"].as_array().and_then(|values| values.first()) {
        return first.clone();
    }
    match schema["type"].as_str() {
        Some("string") => "Paris".into(),
        Some("integer" | "number") => 1.into(),
        Some("boolean") => true.into(),
        Some("array") => Value::Array(Vec::new()),
        Some("object") if depth < 8 => {
            let fields = schema["properties"].as_object();
            let filled = fields.into_iter().flatten().map(|(name, field)| (name.clone(), fill(field, depth + 1)));
            Value::Object(filled.collect())
        }
        _ => Value::Object(serde_json::Map::new()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_are_counted_as_documented() {
        let messages = json!([
            { "role": "system", "content": "12345678" },
            { "role": "user", "content": [{ "type": "text", "text": "123" }, { "type": "image_url", "image_url": {} }] },
        ]);
        assert_eq!(count_input(&messages), 4 + 2 + 4 + 1 + 85);
        assert_eq!(count_input(&json!([1, 2, 3])), 3);
        assert_eq!(sentence(14), "The gate is open, take your seat and enjoy the ride. The");
    }

    #[test]
    fn a_tool_is_called_when_the_last_message_asks_for_it() {
        let tools = json!([{ "type": "function", "function": { "name": "weather", "parameters": {
            "type": "object", "properties": { "city": { "type": "string" } } } } }]);
        let ask = |text: &str| json!([{ "role": "user", "content": text }]);
        let call = ToolCall::wanted(Some(&tools), None, &ask("Use the weather tool")).unwrap();
        assert_eq!((call.name.as_str(), call.arguments.as_str()), ("weather", r#"{"city":"Paris"}"#));
        assert!(ToolCall::wanted(Some(&tools), None, &ask("Hello")).is_none());
        let result = json!([{ "role": "tool", "content": "the tool says 20" }]);
        assert!(ToolCall::wanted(Some(&tools), None, &result).is_none());
    }
}
