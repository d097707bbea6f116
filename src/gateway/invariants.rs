//! What holds for any headers and any answer whatever: called by fuzz targets, and by property tests of the same.

mod http1_answer;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

pub use self::http1_answer::http1_answer;
use super::headers::{ConnectionOptions, Forwarding, client_request_id, forward, strip_answer};
use super::meter::invariants::{Violation, holds};
use super::target::Target;
use crate::config::{self, RouteKind};
use crate::telemetry::Metrics;

const OURS: &str = "0198c0de-0000-7000-8000-000000000000";

thread_local! {
    static TARGET: Option<Target> = target();
}

fn target() -> Option<Target> {
    let settings = config::Upstream {
        url: "https://ai.example/base".into(),
        api_key: Some(config::Secret::new("the-key-of-the-upstream")),
        ..config::Upstream::default()
    };
    Target::new("any", &settings, &Metrics::new().ok()?).ok()
}

/// Takes the first byte as choices, the rest as lines of `name: value`.
///
/// # Errors
/// What did not hold.
pub fn headers(data: &[u8]) -> Result<(), Violation> {
    let [choices, lines @ ..] = data else { return Ok(()) };
    let kind = [RouteKind::Openai, RouteKind::Anthropic, RouteKind::Http][usize::from(choices % 3)];
    let mut client = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            client.append(name, value);
        }
    }
    if let Some(id) = client_request_id(&client) {
        holds("a client's id can be logged", id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_graphic()))?;
    }
    let Ok(options) = ConnectionOptions::of(&client) else { return Ok(()) };
    let upgrade = HeaderValue::from_static("websocket");
    let request_id = HeaderValue::from_static(OURS);
    let what = Forwarding {
        client: &client,
        options: &options,
        kind,
        peer: std::net::IpAddr::from([192, 0, 2, 7]),
        https: choices & 0x10 != 0,
        version: http::Version::HTTP_11,
        request_id: &request_id,
        read: choices & 0x20 != 0,
        empty: choices & 0x40 != 0,
        upgrade: (choices & 0x80 != 0).then_some(&upgrade),
    };
    TARGET.with(|target| {
        let Some(target) = target else { return Err(Violation("the upstream's settings are good")) };
        let mut sent = HeaderMap::new();
        forward(&what, target, |name, value| {
            sent.append(name.clone(), value.clone());
        });
        forwarded(&what, &sent)
    })?;
    let mut answer = client.clone();
    strip_answer(&mut answer, kind, choices & 0x40 != 0);
    answered(&client, &answer, kind)
}

fn forwarded(what: &Forwarding<'_>, sent: &HeaderMap) -> Result<(), Violation> {
    let (key, bearer) = match what.kind {
        RouteKind::Anthropic => (Some("the-key-of-the-upstream"), None),
        RouteKind::Openai | RouteKind::Http => (None, Some("Bearer the-key-of-the-upstream")),
    };
    let only = |name: &str, value: Option<&str>| {
        let mut sent = sent.get_all(name).iter();
        sent.next().map(HeaderValue::as_bytes) == value.map(str::as_bytes) && sent.next().is_none()
    };
    holds("only the upstream's own key is sent", only("x-api-key", key) && only("authorization", bearer))?;
    holds("the id is ours", only("x-request-id", Some(OURS)))?;
    for name in
        ["transfer-encoding", "keep-alive", "proxy-authorization", "host", "expect", "x-faregate-user", "api-key"]
    {
        holds("what belongs to the connection or to us stays here", !sent.contains_key(name))?;
    }
    if what.kind != RouteKind::Http {
        for name in ["cookie", "connection", "upgrade", "te"] {
            holds("an AI service sees neither cookies nor upgrades", !sent.contains_key(name))?;
        }
    }
    if what.read {
        holds("what is read is not compressed", only("accept-encoding", Some("identity")))?;
    }
    holds("a body's length is sent once", what.empty || !sent.contains_key(header::CONTENT_LENGTH))
}

fn answered(upstream: &HeaderMap, answer: &HeaderMap, kind: RouteKind) -> Result<(), Violation> {
    for name in answer.keys() {
        let text = name.as_str();
        holds("nothing is made up", upstream.get_all(name).iter().eq(answer.get_all(name)))?;
        holds("only we speak of credits", !text.starts_with("x-credits-") && text != "x-request-id")?;
        let hop = ["connection", "keep-alive", "transfer-encoding", "upgrade", "te"].contains(&text);
        holds("what belongs to the connection stays", !hop)?;
        let theirs = text == "set-cookie" || text.starts_with("x-ratelimit-") || text == "openai-organization";
        holds("the operator's affairs stay", kind == RouteKind::Http || !theirs)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_headers_are_forwarded_safely(
            choices in any::<u8>(),
            lines in prop::collection::vec(
                prop_oneof![
                    "[a-zA-Z-]{1,12}: [ -~]{0,20}",
                    "(connection|Connection|CONNECTION): (close|x-api-key|authorization|te|a|,| ){0,6}",
                    "(x-api-key|authorization|cookie|te|x-request-id|content-length|x-faregate-user|host): [a-z0-9]{0,9}",
                    "(transfer-encoding|upgrade|expect|set-cookie|x-credits-cost|x-ratelimit-limit|accept-encoding): [a-z]{0,9}",
                ],
                0..20,
            ),
        ) {
            let data = [&[choices][..], lines.join("\n").as_bytes()].concat();
            prop_assert_eq!(headers(&data), Ok(()));
        }

        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(headers(&bytes), Ok(()));
        }
    }
}
