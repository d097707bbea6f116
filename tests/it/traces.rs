//! Traces reach an OpenTelemetry collector, one span a request, and a collector that is away hurts nobody.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use crate::support::http::request;
use crate::support::{Faregate, Options, Sim, eventually};

/// The attributes of a span by their keys.
fn attribute(span: &Value, key: &str) -> Option<String> {
    let found = span["attributes"].as_array()?.iter().find(|attribute| attribute["key"] == key)?;
    let value = found["value"].as_object()?.values().next()?;
    Some(value.as_str()?.to_owned())
}

#[tokio::test]
async fn a_request_is_a_span_at_the_collector() {
    // The simulator keeps the last body that it saw, on any path: a collector as far as this goes.
    let (sim, collector) = (Sim::start(), Sim::start());
    let faregate =
        Faregate::start(Options::new().upstream(sim.url()).set("traces.endpoint", format!("{}/echo", collector.url())));
    let key = faregate.user("ann", "5").await;
    let message = json!({"model": "m-1", "messages": [{"role": "user", "content": "Hello"}]});
    let mut ask = request(Method::POST, &faregate.url("/v1/chat/completions"), &key, Some(&message));
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    ask.headers_mut().insert("traceparent", parent.parse().unwrap());
    let answer = faregate.http.call(ask).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let span = eventually(Duration::from_secs(10), "a span at the collector", || async {
        let seen: Value = serde_json::from_slice(&collector.stats().last()?.body).ok()?;
        Some(seen["resourceSpans"][0]["scopeSpans"][0]["spans"][0].clone()).filter(Value::is_object)
    })
    .await;
    assert_eq!(span["traceId"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(span["parentSpanId"], "b7ad6b7169203331");
    assert_eq!(span["name"], "chat m-1");
    let id = answer.header("x-request-id");
    assert_eq!(attribute(&span, "faregate.request_id").as_deref(), Some(id));
    assert_eq!(span["spanId"].as_str().unwrap(), &id.replace('-', "")[16..]);
    for (key, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "openai"),
        ("gen_ai.request.model", "m-1"),
        ("gen_ai.usage.output_tokens", "13"),
        ("http.response.status_code", "200"),
        ("faregate.credits", "1"),
    ] {
        assert_eq!(attribute(&span, key).as_deref(), Some(value), "{key}");
    }
    collector.kill();
    for _ in 0..3 {
        let ask = request(Method::POST, &faregate.url("/v1/chat/completions"), &key, Some(&message));
        assert_eq!(faregate.http.call(ask).await.status, 200);
    }
    assert_eq!(faregate.usage_of("ann", 4).await.len(), 4);
}
