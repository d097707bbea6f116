//! The OpenAPI documents: what the main listener serves, and what the admin listener serves.
//!
//! They are kept by hand under `openapi/`, in parts, with a shorthand that is spelled out here: `json`, `problem`, `text`
//! and `stream` in place of a body's `content`; `errors`, such as `{"Problem": [400, 401]}`, for the responses
//! `Problem400` and `Problem401` of the components; and every response carries x-request-id.

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde_json::{Map, Value, json};

use super::problem::Problem;

const COMMON: &str = include_str!("openapi/common.json");
const USER: [&str; 6] = [
    COMMON,
    include_str!("openapi/user.json"),
    include_str!("openapi/user-schemas.json"),
    include_str!("openapi/notify.json"),
    include_str!("openapi/proxy.json"),
    include_str!("openapi/insight-user.json"),
];
const ADMIN: [&str; 4] = [
    COMMON,
    include_str!("openapi/admin.json"),
    include_str!("openapi/admin-schemas.json"),
    include_str!("openapi/insight.json"),
];
/// The prefix of the API as the files have it.
const WRITTEN_PREFIX: &str = "/api/";
/// A body's shorthands and what they stand for.
const KINDS: [(&str, &str); 4] = [
    ("json", "application/json"),
    ("problem", "application/problem+json"),
    ("text", "text/plain"),
    ("stream", "text/event-stream"),
];

/// A document, ready to be sent.
#[derive(Clone)]
pub(crate) struct Document(Option<Bytes>);

impl Document {
    /// Of the main listener, whose API is under `prefix` (without a slash at its end).
    pub(crate) fn of_users(prefix: &str) -> Document {
        Document::new(user(prefix))
    }

    pub(crate) fn of_operators() -> Document {
        Document::new(admin())
    }

    fn new(document: Result<Value, serde_json::Error>) -> Document {
        let text = document.and_then(|document| serde_json::to_vec(&document));
        if let Err(error) = &text {
            tracing::error!(%error, "the OpenAPI document cannot be read");
        }
        Document(text.ok().map(Bytes::from))
    }
}

impl IntoResponse for Document {
    fn into_response(self) -> Response {
        let Some(text) = self.0 else { return Problem::internal().into_response() };
        (StatusCode::OK, [(CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
    }
}

/// What the main listener serves.
pub fn user(prefix: &str) -> Result<Value, serde_json::Error> {
    let mut document = assemble(&USER)?;
    if let Some(Value::Object(paths)) = document.get_mut("paths") {
        let moved = std::mem::take(paths).into_iter().map(|(path, item)| match path.strip_prefix(WRITTEN_PREFIX) {
            Some(rest) => (format!("{prefix}/{rest}"), item),
            None => (path, item),
        });
        *paths = moved.collect();
    }
    Ok(document)
}

/// What the admin listener serves.
pub fn admin() -> Result<Value, serde_json::Error> {
    assemble(&ADMIN)
}

fn assemble(parts: &[&str]) -> Result<Value, serde_json::Error> {
    let mut whole = Value::Object(Map::new());
    for part in parts {
        merge(&mut whole, serde_json::from_str(part)?);
    }
    if let Some(Value::Object(info)) = whole.get_mut("info") {
        info.insert("version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
    }
    for operation in operations(&mut whole) {
        spell_out(operation);
    }
    if let Some(Value::Object(shared)) = whole.pointer_mut("/components/responses") {
        shared.values_mut().for_each(response);
    }
    Ok(whole)
}

/// Lays `part` over `whole`, member by member.
fn merge(whole: &mut Value, part: Value) {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            for (name, value) in part {
                merge(whole.entry(name).or_insert(Value::Null), value);
            }
        }
        (whole, part) => *whole = part,
    }
}

fn operations(document: &mut Value) -> impl Iterator<Item = &mut Map<String, Value>> {
    let paths = document.get_mut("paths").and_then(Value::as_object_mut);
    let items = paths.into_iter().flat_map(Map::values_mut).filter_map(Value::as_object_mut);
    items.flat_map(Map::values_mut).filter_map(Value::as_object_mut)
}

fn spell_out(operation: &mut Map<String, Value>) {
    let errors = operation.remove("errors");
    if let Some(Value::Object(body)) = operation.get_mut("requestBody") {
        content(body);
    }
    let Some(Value::Object(responses)) = operation.get_mut("responses") else { return };
    responses.values_mut().for_each(response);
    for (form, statuses) in errors.as_ref().and_then(Value::as_object).into_iter().flatten() {
        for status in statuses.as_array().into_iter().flatten() {
            let name = format!("#/components/responses/{form}{status}");
            responses.insert(status.to_string(), json!({ "$ref": name }));
        }
    }
}

fn response(response: &mut Value) {
    let Value::Object(response) = response else { return };
    if response.contains_key("$ref") {
        return;
    }
    content(response);
    let headers = response.entry("headers").or_insert_with(|| json!({}));
    merge(headers, json!({ "x-request-id": { "$ref": "#/components/headers/RequestId" } }));
}

fn content(body: &mut Map<String, Value>) {
    for (short, kind) in KINDS {
        if let Some(schema) = body.remove(short) {
            merge(body.entry("content").or_insert(Value::Null), json!({ kind: { "schema": schema } }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` of a document.
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str));
                members.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn what_is_referred_to_is_there_and_what_is_there_is_referred_to() {
        for document in [user("/api").unwrap(), admin().unwrap()] {
            let mut found = Vec::new();
            references(&document, &mut found);
            assert!(found.len() > 100, "{}", found.len());
            for reference in &found {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
            }
        }
        let (mut users, mut operators) = (user("/api").unwrap(), admin().unwrap());
        for document in [&mut users, &mut operators] {
            let mut ids: Vec<String> =
                operations(document).filter_map(|operation| Some(operation.get("operationId")?.to_string())).collect();
            let count = ids.len();
            ids.sort();
            ids.dedup();
            assert_eq!(ids.len(), count, "an operationId is there twice");
        }
        for (kind, documents) in [("schemas", [&users, &operators]), ("responses", [&users, &operators])] {
            for document in documents {
                let text = document.to_string();
                for name in document["components"][kind].as_object().unwrap().keys() {
                    let shared = document["info"] != users["info"] || kind == "responses" || name == "Time";
                    let used = text.contains(&format!("\"#/components/{kind}/{name}\""));
                    assert!(used || shared, "{kind}/{name} is used by nothing");
                }
            }
        }
    }

    #[test]
    fn the_shorthand_is_spelled_out() {
        let document = user("/money").unwrap();
        let deduct = &document["paths"]["/money/credits/deduct"]["post"];
        let reference = |name: &str| json!({ "$ref": name });
        assert_eq!(deduct["responses"]["402"], reference("#/components/responses/Problem402"));
        assert_eq!(
            deduct["requestBody"]["content"]["application/json"]["schema"],
            reference("#/components/schemas/Deduct")
        );
        assert_eq!(deduct["responses"]["200"]["headers"]["x-request-id"], reference("#/components/headers/RequestId"));
        assert!(deduct.get("errors").is_none());
        assert!(document["paths"].get("/v1/messages").is_some(), "only the API moves with its prefix");
    }
}
