//! Spans to the collector, in batches.

use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Uri};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

use super::Span;

const MAX_BATCH: usize = 512;
/// A span waits for others so long.
const GATHER: Duration = Duration::from_secs(1);
/// The collector has so long to take a batch; what it does not take is gone.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sends what comes until `stop`, then what is left.
pub async fn run(mut spans: Receiver<Span>, endpoint: Uri, stop: CancellationToken) {
    let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
    let mut batch = Vec::with_capacity(MAX_BATCH);
    let mut failing = false;
    loop {
        let ended = tokio::select! {
            count = spans.recv_many(&mut batch, MAX_BATCH) => count == 0,
            () = stop.cancelled() => {
                spans.close();
                spans.recv_many(&mut batch, MAX_BATCH).await == 0
            }
        };
        if ended {
            return;
        }
        let gathered = async {
            loop {
                let room = MAX_BATCH - batch.len();
                if room == 0 || spans.recv_many(&mut batch, room).await == 0 {
                    return;
                }
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(GATHER, gathered) => {}
            () = stop.cancelled() => {}
        }
        let sent = send(&client, &endpoint, &batch).await;
        // Once for an outage, not once a second.
        match &sent {
            Err(error) if !failing => {
                tracing::warn!(%error, "traces cannot be sent to the collector; they are dropped")
            }
            Ok(()) if failing => tracing::info!("the collector takes traces again"),
            _ => {}
        }
        failing = sent.is_err();
        batch.clear();
    }
}

async fn send(client: &Client<HttpConnector, Full<Bytes>>, endpoint: &Uri, batch: &[Span]) -> Result<(), String> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(endpoint)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::from(body(batch).to_string()))
        .map_err(|error| error.to_string())?;
    let answer = tokio::time::timeout(TIMEOUT, client.request(request)).await;
    let answer = answer.map_err(|_| "it does not answer in time".to_owned())?.map_err(|error| error.to_string())?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("it answers {}", answer.status())) }
}

fn body(batch: &[Span]) -> Value {
    json!({ "resourceSpans": [{
        "resource": { "attributes": [text("service.name", "faregate"), text("service.version", env!("CARGO_PKG_VERSION"))] },
        "scopeSpans": [{
            "scope": { "name": "faregate", "version": env!("CARGO_PKG_VERSION") },
            "spans": batch.iter().map(span).collect::<Vec<Value>>(),
        }],
    }] })
}

/// OTLP as JSON: ids in hexadecimal, 64-bit numbers as texts.
fn span(span: &Span) -> Value {
    const KIND_CLIENT: u8 = 3;
    const STATUS_ERROR: u8 = 2;
    let Span { seed, usage, cost, outcome } = span;
    let id = usage.request_id.as_u128();
    let trace = seed.parent.map_or(id, |parent| parent.trace);
    let start = usage.created_at_ms.saturating_mul(1_000_000);
    let end = start.saturating_add(usage.latency_ms.saturating_mul(1_000_000));
    let operation = seed.operation.unwrap_or("request");
    let name = usage.model.as_ref().map_or_else(|| operation.to_owned(), |model| format!("{operation} {model}"));
    let mut attributes = vec![
        text("faregate.request_id", &usage.request_id.to_string()),
        text("faregate.route", &usage.route),
        text("faregate.credits", &cost.to_string()),
        text("faregate.outcome", outcome),
        number("http.response.status_code", u64::from(usage.status)),
    ];
    attributes.extend(seed.operation.map(|operation| text("gen_ai.operation.name", operation)));
    attributes.extend(seed.provider.map(|provider| text("gen_ai.provider.name", provider)));
    attributes.extend(usage.model.as_ref().map(|model| text("gen_ai.request.model", model)));
    attributes.extend(usage.upstream.as_ref().map(|upstream| text("faregate.upstream", upstream)));
    if seed.operation.is_some() {
        attributes.push(number("gen_ai.usage.input_tokens", usage.input_tokens));
        attributes.push(number("gen_ai.usage.output_tokens", usage.output_tokens));
    }
    let failed = usage.status >= 500;
    if failed {
        attributes.push(text("error.type", &usage.status.to_string()));
    }
    let mut view = json!({
        "traceId": format!("{trace:032x}"),
        // The random half of our id; its variant bits keep it from being zero.
        "spanId": format!("{:016x}", id & u128::from(u64::MAX)),
        "name": name,
        "kind": KIND_CLIENT,
        "startTimeUnixNano": start.to_string(),
        "endTimeUnixNano": end.to_string(),
        "attributes": attributes,
        "status": if failed { json!({ "code": STATUS_ERROR }) } else { json!({}) },
    });
    if let (Some(parent), Some(view)) = (seed.parent, view.as_object_mut()) {
        view.insert("parentSpanId".to_owned(), json!(format!("{:016x}", parent.span)));
    }
    view
}

fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

fn number(key: &str, value: u64) -> Value {
    json!({ "key": key, "value": { "intValue": value.to_string() } })
}
