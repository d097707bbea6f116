//! Cross-origin calls from the browsers of named origins. Keys and tokens travel in headers, so cookies are never invited
//! along.

use std::collections::HashSet;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method};

use crate::config::Cors;

const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE");
/// What our own clients send; others name theirs.
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, idempotency-key, last-event-id, x-api-key, x-request-id, x-stack-access-token, x-stack-auth",
);
const ANSWER_HEADERS: HeaderValue = HeaderValue::from_static(
    "x-request-id, request-id, retry-after, x-should-retry, idempotent-replayed, x-credits-reserved, x-credits-remaining, \
     x-credits-cost, x-credits-low, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, \
     x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens",
);
/// Browsers keep a preflight's answer for so many seconds.
const PREFLIGHT_KEPT: HeaderValue = HeaderValue::from_static("600");
/// Longer lists of a browser's request headers are not repeated to it.
const MAX_ASKED_BYTES: usize = 2_048;
const OURS: &str = "x-faregate-";

/// The origins that may call from a browser; `*` is any.
#[derive(Debug)]
pub(crate) struct Origins {
    any: bool,
    named: HashSet<String>,
}

impl Origins {
    pub(crate) fn new(settings: &Cors) -> Origins {
        Origins {
            any: settings.origins.iter().any(|origin| origin == "*"),
            named: settings.origins.iter().map(|origin| origin.trim_end_matches('/').to_owned()).collect(),
        }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        !self.any && self.named.is_empty()
    }

    /// What of a request its answer depends on.
    pub(crate) fn asked(&self, method: &Method, headers: &HeaderMap) -> Asked {
        let preflight = method == Method::OPTIONS
            && headers.contains_key(ORIGIN)
            && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        let allowed = self.allowed(headers);
        let named = allowed.as_ref().filter(|_| preflight).and_then(|_| headers.get(ACCESS_CONTROL_REQUEST_HEADERS));
        Asked { allowed, preflight, named: named.and_then(granted) }
    }

    fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(ORIGIN)?;
        if self.any {
            return Some(HeaderValue::from_static("*"));
        }
        // RFC 6454 6.2: a browser sends scheme, host and port in lower case, so that equal origins are equal bytes.
        self.named.contains(origin.to_str().ok()?).then(|| origin.clone())
    }
}

/// Of the request headers that a browser names, those that other sites' scripts may send: ours mark the calls of our own
/// pages and of the product's backend.
fn granted(named: &HeaderValue) -> Option<HeaderValue> {
    let text = named.to_str().ok().filter(|text| text.len() <= MAX_ASKED_BYTES)?;
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    let ours = |name: &str| name.get(..OURS.len()).is_some_and(|start| start.eq_ignore_ascii_case(OURS));
    let granted: Vec<&str> = names.filter(|name| !ours(name)).collect();
    HeaderValue::from_str(&granted.join(", ")).ok()
}

/// What a browser asks, of a request.
#[derive(Debug)]
pub(crate) struct Asked {
    allowed: Option<HeaderValue>,
    /// It only wants to know whether it may ask: answered without anybody's credentials, which it does not send.
    pub(crate) preflight: bool,
    named: Option<HeaderValue>,
}

impl Asked {
    /// Puts what the browser must know into the answer.
    pub(crate) fn answer(self, headers: &mut HeaderMap) {
        // Also without an Origin, or a shared cache could hand one origin's answer to another.
        headers.append(VARY, HeaderValue::from_static("origin"));
        let Some(origin) = self.allowed else { return };
        // An upstream's own word about this would be about itself.
        headers.remove(ACCESS_CONTROL_ALLOW_CREDENTIALS);
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.preflight {
            headers.append(VARY, HeaderValue::from_static("access-control-request-headers"));
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            // Official clients send many of their own, and more with each version.
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, self.named.unwrap_or(REQUEST_HEADERS));
            headers.insert(ACCESS_CONTROL_MAX_AGE, PREFLIGHT_KEPT);
        } else {
            // Beside what an application of one's own exposes.
            headers.append(ACCESS_CONTROL_EXPOSE_HEADERS, ANSWER_HEADERS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn answered(
        origins: &[&str],
        method: &Method,
        asked: &[(&'static str, &'static str)],
        upstream: &[(&'static str, &'static str)],
    ) -> HeaderMap {
        let origins = Origins::new(&Cors { origins: origins.iter().map(|origin| (*origin).to_owned()).collect() });
        let mut answer = headers(upstream);
        origins.asked(method, &headers(asked)).answer(&mut answer);
        answer
    }

    const APP: (&str, &str) = ("origin", "https://app.example");
    const ASKS: (&str, &str) = ("access-control-request-method", "POST");

    #[test]
    fn an_origin_that_is_named_may_call_and_nobody_else() {
        let told =
            answered(&["https://app.example"], &Method::POST, &[APP], &[("access-control-allow-credentials", "true")]);
        assert_eq!(told["access-control-allow-origin"], "https://app.example");
        assert!(told["access-control-expose-headers"].to_str().unwrap().contains("x-credits-remaining"));
        assert!(!told.contains_key("access-control-allow-credentials"), "an upstream's word is not ours");
        for stranger in ["https://app.example.evil", "http://app.example", "https://app.example:444", "null"] {
            let told = answered(&["https://app.example"], &Method::POST, &[("origin", stranger)], &[]);
            assert!(!told.contains_key("access-control-allow-origin"), "{stranger}");
            assert_eq!(told["vary"], "origin");
        }
        assert_eq!(answered(&["*"], &Method::GET, &[APP], &[])["access-control-allow-origin"], "*");
        assert_eq!(answered(&["https://app.example"], &Method::GET, &[], &[])["vary"], "origin");
    }

    #[test]
    fn a_preflight_grants_what_clients_send_but_not_what_marks_our_own_calls() {
        let named =
            ("access-control-request-headers", "authorization,x-stainless-os, X-Faregate-Page ,x-faregate-user");
        let told = answered(&["https://app.example"], &Method::OPTIONS, &[APP, ASKS, named], &[]);
        assert_eq!(told["access-control-allow-headers"], "authorization, x-stainless-os");
        assert!(told.get_all("vary").iter().any(|vary| vary == "access-control-request-headers"));
        let told =
            answered(&["https://app.example"], &Method::OPTIONS, &[("origin", "https://b.example"), ASKS, named], &[]);
        assert!(!told.contains_key("access-control-allow-headers"));
        let plain = answered(&["https://app.example"], &Method::OPTIONS, &[APP, ASKS], &[]);
        assert!(plain["access-control-allow-headers"].to_str().unwrap().contains("x-stack-access-token"));
    }
}
