//! What passes from a client to an upstream and back, and what does not.

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use super::target::Target;
use crate::config::RouteKind;
use crate::credits::Credits;
use crate::ledger::{LIMIT_WINDOW_US, Limits, Reserved, limit_increment};

pub(super) static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
static X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(super) static X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
static CREDITS_RESERVED: HeaderName = HeaderName::from_static("x-credits-reserved");
static CREDITS_LOW: HeaderName = HeaderName::from_static("x-credits-low");
static CREDITS_REMAINING: HeaderName = HeaderName::from_static("x-credits-remaining");
static CREDITS_COST: HeaderName = HeaderName::from_static("x-credits-cost");
static LIMIT_REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
static LIMIT_TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// Longest `x-request-id` of a client that is kept.
const MAX_CLIENT_REQUEST_ID: usize = 128;
/// Names in `Connection` that are looked at; a request that lists more is refused.
pub(super) const MAX_CONNECTION_OPTIONS: usize = 16;

/// The names that a message's `Connection` header lists.
///
/// RFC 9110 §7.6.1: "Intermediaries MUST parse a received Connection header field before a message is forwarded and, for
/// each connection-option in this field, remove any header field(s) from the message with the same name as the
/// connection-option".
#[derive(Debug, Default)]
pub(super) struct ConnectionOptions(SmallVec<[HeaderName; 2]>);

/// More options than anybody needs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooManyOptions;

impl ConnectionOptions {
    pub(super) fn of(headers: &HeaderMap) -> Result<ConnectionOptions, TooManyOptions> {
        let mut options = ConnectionOptions::default();
        for value in headers.get_all(header::CONNECTION) {
            for option in value.as_bytes().split(|byte| *byte == b',') {
                let option = option.trim_ascii();
                let known = [&b"keep-alive"[..], b"close", b"upgrade", b"te", b""];
                if known.iter().any(|known| option.eq_ignore_ascii_case(known)) {
                    continue;
                }
                if options.0.len() >= MAX_CONNECTION_OPTIONS {
                    return Err(TooManyOptions);
                }
                if let Ok(name) = HeaderName::from_bytes(option) {
                    options.0.push(name);
                }
            }
        }
        Ok(options)
    }

    fn name(&self, name: &HeaderName) -> bool {
        !self.0.is_empty() && self.0.contains(name)
    }
}

/// The sessions of the billing page and the console.
const OUR_COOKIES: [&[u8]; 4] = [b"fg_session=", b"__Host-fg_session=", b"fg_console=", b"__Host-fg_console="];

/// What forwarding a request depends on.
pub(super) struct Forwarding<'a> {
    pub(super) client: &'a HeaderMap,
    pub(super) options: &'a ConnectionOptions,
    pub(super) kind: RouteKind,
    pub(super) peer: IpAddr,
    pub(super) https: bool,
    pub(super) version: http::Version,
    pub(super) request_id: &'a HeaderValue,
    /// The answer is read for its usage, so it must not come compressed.
    pub(super) read: bool,
    /// The request has no body: its own word about that is kept.
    pub(super) empty: bool,
    /// The protocol to change to.
    pub(super) upgrade: Option<&'a HeaderValue>,
}

/// The fields of a request to an upstream, one after another: the client's, without those of its connection, its
/// credentials and our own; with the upstream's key.
pub(super) fn forward(what: &Forwarding<'_>, target: &Target, mut put: impl FnMut(&HeaderName, &HeaderValue)) {
    for (name, value) in what.client {
        if !passes_forward(name, what) {
            continue;
        }
        match stripped(name, value) {
            None => put(name, value),
            Some(rest) if rest.is_empty() => {}
            Some(rest) => put(name, &rest),
        }
    }
    match what.kind {
        RouteKind::Anthropic => {
            if let Some(key) = &target.key {
                put(&X_API_KEY, key);
            }
        }
        RouteKind::Openai | RouteKind::Http => {
            if let Some(bearer) = &target.bearer {
                put(&header::AUTHORIZATION, bearer);
            }
        }
    }
    if what.read {
        put(&header::ACCEPT_ENCODING, &HeaderValue::from_static("identity"));
    }
    put(&X_REQUEST_ID, what.request_id);
    put(&header::VIA, &via(what.version));
    if what.kind == RouteKind::Http {
        forwarded(what, put);
    }
}

/// A cookie line without the sessions of our own pages, which open the user's account; `None` where it has none.
fn stripped(name: &HeaderName, value: &HeaderValue) -> Option<HeaderValue> {
    let ours = |pair: &&[u8]| OUR_COOKIES.iter().any(|cookie| pair.trim_ascii().starts_with(cookie));
    let pairs = || value.as_bytes().split(|byte| *byte == b';');
    if name != header::COOKIE || !pairs().any(|pair| ours(&pair)) {
        return None;
    }
    let rest: Vec<&[u8]> = pairs().filter(|pair| !ours(pair)).map(<[u8]>::trim_ascii).collect();
    // A part of a value that was one.
    Some(HeaderValue::from_bytes(&rest.join(&b"; "[..])).unwrap_or(HeaderValue::from_static("")))
}

fn passes_forward(name: &HeaderName, what: &Forwarding<'_>) -> bool {
    if what.options.name(name) {
        return false;
    }
    let http = what.kind == RouteKind::Http;
    let text = name.as_str();
    match text {
        // Of the connection, or set anew by whoever sends.
        "connection"
        | "keep-alive"
        | "proxy-connection"
        | "proxy-authenticate"
        | "proxy-authorization"
        | "te"
        | "transfer-encoding"
        | "upgrade"
        | "http2-settings"
        | "host"
        | "expect" => false,
        "content-length" => what.empty,
        "trailer" => http,
        // Credentials and names that are the gateway's business.
        "authorization" | "x-api-key" | "api-key" | "x-request-id" | "x-forwarded-host" | "x-forwarded-proto" => false,
        "openai-organization" | "openai-project" => http,
        // A request is priced by its own method and path, so nothing may name others.
        "x-http-method-override" | "x-http-method" | "x-method-override" | "x-original-url" | "x-rewrite-url" => http,
        "cookie" | "forwarded" | "x-forwarded-for" | "x-real-ip" => http,
        "accept-encoding" => !what.read,
        _ => !text.starts_with("x-faregate-") && !text.starts_with("x-stack-") && !text.starts_with("x-hexclave-"),
    }
}

/// RFC 9110 §7.6.3: "An HTTP-to-HTTP gateway MUST send an appropriate Via header field in each inbound request message".
fn via(version: http::Version) -> HeaderValue {
    HeaderValue::from_static(match version {
        http::Version::HTTP_2 => "2 faregate",
        http::Version::HTTP_10 => "1.0 faregate",
        _ => "1.1 faregate",
    })
}

/// Who asks, for an upstream of one's own; an AI service is not told where its callers' users sit.
fn forwarded(what: &Forwarding<'_>, mut put: impl FnMut(&HeaderName, &HeaderValue)) {
    if let Ok(peer) = HeaderValue::from_str(&what.peer.to_string()) {
        put(&X_FORWARDED_FOR, &peer);
    }
    let proto = if what.https { "https" } else { "http" };
    put(&X_FORWARDED_PROTO, &HeaderValue::from_static(proto));
    if let Some(host) = what.client.get(header::HOST) {
        put(&X_FORWARDED_HOST, host);
    }
    if let Some(protocol) = what.upgrade {
        put(&header::CONNECTION, &HeaderValue::from_static("upgrade"));
        put(&header::UPGRADE, protocol);
    } else if what.client.get_all(header::TE).iter().any(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers")) {
        // RFC 9110 §10.1.4: "A sender of TE MUST also send a "TE" connection option". HTTP/2 has no such field.
        put(&header::TE, &HeaderValue::from_static("trailers"));
        put(&header::CONNECTION, &HeaderValue::from_static("te"));
    }
}

/// Takes out of an upstream's answer what is not for the client. `bodiless`: its content length is the upstream's word
/// about a body that is not sent.
pub(super) fn strip_answer(headers: &mut HeaderMap, kind: RouteKind, bodiless: bool) {
    let options = ConnectionOptions::of(headers).unwrap_or_default();
    let http = kind == RouteKind::Http;
    let mut doomed: SmallVec<[HeaderName; 8]> = SmallVec::new();
    for name in headers.keys() {
        let text = name.as_str();
        let passes = match text {
            "connection" | "keep-alive" | "proxy-connection" | "proxy-authenticate" | "te" | "transfer-encoding"
            | "upgrade" | "alt-svc" | "x-request-id" => false,
            "content-length" => bodiless,
            "set-cookie" | "trailer" | "request-id" => http,
            // Whose account it is at the upstream, and how much of its limits is left, is the operator's affair.
            "openai-organization" | "openai-project" | "anthropic-organization-id" => http,
            // Whose browsers may call is our word, not an AI service's.
            _ if text.starts_with("access-control-") => http,
            _ => {
                let limits = text.starts_with("x-ratelimit-") || text.starts_with("anthropic-ratelimit-");
                !text.starts_with("x-credits-") && (http || !limits)
            }
        };
        if !passes || options.name(name) {
            doomed.push(name.clone());
        }
    }
    for name in doomed {
        headers.remove(name);
    }
    if http && headers.contains_key(header::SET_COOKIE) {
        keep_our_cookies(headers);
    }
}

/// An upstream on our host signs nobody in or out on our pages.
fn keep_our_cookies(headers: &mut HeaderMap) {
    let ours = |value: &HeaderValue| {
        let pair = value.as_bytes().trim_ascii_start();
        // RFC 6265 5.2: whitespace around the name is not of the name.
        let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
        OUR_COOKIES.iter().any(|cookie| cookie.strip_suffix(b"=") == Some(name))
    };
    if headers.get_all(header::SET_COOKIE).iter().any(ours) {
        let kept: SmallVec<[HeaderValue; 4]> =
            headers.get_all(header::SET_COOKIE).iter().filter(|value| !ours(value)).cloned().collect();
        headers.remove(header::SET_COOKIE);
        for value in kept {
            headers.append(header::SET_COOKIE, value);
        }
    }
}

/// What the gateway says about a request in its answer.
#[derive(Debug, Clone)]
pub(super) struct Fares {
    pub(super) reserved: Credits,
    pub(super) remaining: Credits,
    /// What remains is low for the plan.
    pub(super) low: bool,
    pub(super) requests_busy_us: u64,
    pub(super) tokens_busy_us: u64,
    pub(super) limits: Limits,
}

impl Fares {
    pub(super) fn new(reserved: &Reserved, held: Credits, limits: Limits, low: bool) -> Fares {
        Fares {
            reserved: held,
            remaining: reserved.available,
            low,
            requests_busy_us: reserved.requests_busy_us,
            tokens_busy_us: reserved.tokens_busy_us,
            limits,
        }
    }
}

/// Puts our own headers into an answer.
pub(super) fn annotate(
    headers: &mut HeaderMap,
    kind: RouteKind,
    request_id: HeaderValue,
    fares: Option<&Fares>,
    cost: Option<Credits>,
) {
    if kind == RouteKind::Anthropic {
        headers.insert(REQUEST_ID.clone(), request_id.clone());
    }
    headers.insert(X_REQUEST_ID.clone(), request_id);
    if let Some(fares) = fares {
        headers.insert(CREDITS_RESERVED.clone(), credits(fares.reserved));
        headers.insert(CREDITS_REMAINING.clone(), credits(fares.remaining));
        if fares.low {
            headers.insert(CREDITS_LOW.clone(), HeaderValue::from_static("true"));
        }
        let limits = fares.limits;
        rate(headers, &LIMIT_REQUESTS, limits.requests_per_minute, fares.requests_busy_us);
        rate(headers, &LIMIT_TOKENS, limits.tokens_per_minute, fares.tokens_busy_us);
    }
    if let Some(cost) = cost {
        headers.insert(CREDITS_COST.clone(), credits(cost));
    }
}

fn rate(headers: &mut HeaderMap, names: &[HeaderName; 3], per_minute: u64, busy_us: u64) {
    if per_minute == 0 {
        return;
    }
    // Below a microsecond each the limit is beyond what can be counted; then it counts as unused.
    let step = limit_increment(1, per_minute).max(1);
    let remaining = LIMIT_WINDOW_US.saturating_sub(busy_us) / step;
    headers.insert(names[0].clone(), number(per_minute));
    headers.insert(names[1].clone(), number(remaining.min(per_minute)));
    let seconds = format!("{}s", busy_us.div_ceil(1_000_000));
    headers.insert(names[2].clone(), HeaderValue::try_from(seconds).unwrap_or(HeaderValue::from_static("0s")));
}

/// A number as a field's value, with one allocation.
fn number(number: impl itoa::Integer) -> HeaderValue {
    HeaderValue::from_str(itoa::Buffer::new().format(number)).unwrap_or(HeaderValue::from_static("0"))
}

fn credits(amount: Credits) -> HeaderValue {
    if amount.is_zero() {
        return HeaderValue::from_static("0");
    }
    if amount.micro() % crate::credits::MICRO == 0 {
        return number(amount.micro() / crate::credits::MICRO);
    }
    HeaderValue::try_from(amount.to_string()).unwrap_or(HeaderValue::from_static("0"))
}

/// What the client calls its request, where that can be kept and logged.
pub(super) fn client_request_id(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(&X_REQUEST_ID)?.to_str().ok()?;
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"._:@+-/=".contains(&byte);
    let fits = !text.is_empty() && text.len() <= MAX_CLIENT_REQUEST_ID && text.bytes().all(safe);
    fits.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::telemetry::Metrics;

    fn target() -> Target {
        let settings = config::Upstream {
            url: "https://ai.example".into(),
            api_key: Some(config::Secret::new("upstream-key")),
            ..config::Upstream::default()
        };
        Target::new("test", &settings, &Metrics::new().unwrap()).unwrap()
    }

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn forwarded_headers(kind: RouteKind, pairs: &[(&str, &str)]) -> HeaderMap {
        let client = map(pairs);
        let what = Forwarding {
            client: &client,
            options: &ConnectionOptions::of(&client).unwrap(),
            kind,
            peer: "192.0.2.7".parse().unwrap(),
            https: false,
            version: http::Version::HTTP_11,
            request_id: &HeaderValue::from_static("ours"),
            read: kind != RouteKind::Http,
            empty: false,
            upgrade: None,
        };
        let mut headers = HeaderMap::new();
        forward(&what, &target(), |name, value| {
            headers.append(name.clone(), value.clone());
        });
        headers
    }

    #[test]
    fn credentials_and_connection_headers_stay_here() {
        let client = [
            ("authorization", "Bearer fg_live_x"),
            ("x-api-key", "fg_live_x"),
            ("x-faregate-user", "bob"),
            ("x-stack-access-token", "t"),
            ("cookie", "session=1"),
            ("connection", "keep-alive, X-Secret-Hop"),
            ("x-secret-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("expect", "100-continue"),
            ("accept-encoding", "gzip"),
            ("openai-organization", "org-theirs"),
            ("x-request-id", "theirs"),
            ("anthropic-version", "2023-06-01"),
            ("user-agent", "sdk"),
        ];
        let sent = forwarded_headers(RouteKind::Anthropic, &client);
        let mut names: Vec<&str> = sent.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let expected = ["accept-encoding", "anthropic-version", "user-agent", "via", "x-api-key", "x-request-id"];
        assert_eq!(names, expected);
        assert_eq!(sent["x-api-key"], "upstream-key");
        assert_eq!(sent["accept-encoding"], "identity");
        assert_eq!(sent["x-request-id"], "ours");
        let sent = forwarded_headers(RouteKind::Openai, &client);
        assert_eq!(sent["authorization"], "Bearer upstream-key");
        assert!(!sent.contains_key("x-api-key"));
    }

    #[test]
    fn sessions_of_our_pages_stay_here() {
        let sent = |cookie| forwarded_headers(RouteKind::Http, &[("cookie", cookie)]).get("cookie").cloned();
        let rest = sent("a=1; __Host-fg_session=s3; fg_console=s3;b=2; fg_session=s3; fg_sessions=4").unwrap();
        assert_eq!(rest, "a=1; b=2; fg_sessions=4");
        assert_eq!(sent("fg_session=s3"), None);
        assert_eq!(sent("a=fg_session=1").unwrap(), "a=fg_session=1");
    }

    #[test]
    fn an_upstream_does_not_sign_in_on_our_pages() {
        let mut answer = HeaderMap::new();
        for cookie in
            ["a=1; Path=/", "__Host-fg_session=planted; Secure", " fg_console =planted", "fg_session", "b=fg_session=1"]
        {
            answer.append("set-cookie", cookie.parse().unwrap());
        }
        strip_answer(&mut answer, RouteKind::Http, false);
        let kept: Vec<_> = answer.get_all("set-cookie").iter().collect();
        assert_eq!(kept, ["a=1; Path=/", "b=fg_session=1"]);
    }

    #[test]
    fn kind_http_passes_cookies_and_says_who_asks() {
        let client = [("cookie", "session=1"), ("x-forwarded-for", "198.51.100.1"), ("te", "trailers"), ("host", "us")];
        let sent = forwarded_headers(RouteKind::Http, &client);
        assert_eq!(sent["cookie"], "session=1");
        let hops: Vec<&HeaderValue> = sent.get_all("x-forwarded-for").iter().collect();
        assert_eq!(hops, ["198.51.100.1", "192.0.2.7"]);
        assert_eq!(sent["x-forwarded-host"], "us");
        assert_eq!(sent["te"], "trailers");
        assert_eq!(sent["connection"], "te");
    }

    #[test]
    fn answers_lose_what_is_the_operators_affair() {
        let mut headers = map(&[
            ("set-cookie", "a=b"),
            ("x-ratelimit-remaining-requests", "9"),
            ("openai-organization", "org-ours"),
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("content-length", "3"),
            ("content-type", "text/plain"),
        ]);
        let mut http = headers.clone();
        strip_answer(&mut headers, RouteKind::Openai, false);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["content-type"]);
        strip_answer(&mut http, RouteKind::Http, true);
        assert!(http.contains_key("set-cookie") && http.contains_key("content-length") && !http.contains_key("x-hop"));
    }

    #[test]
    fn a_flood_of_connection_options_is_refused() {
        let many: Vec<String> = (0..40).map(|n| format!("x-{n}")).collect();
        let headers = map(&[("connection", &many.join(","))]);
        assert_eq!(ConnectionOptions::of(&headers).unwrap_err(), TooManyOptions);
    }

    #[test]
    fn limits_and_credits_are_told() {
        let mut headers = HeaderMap::new();
        let limits = Limits { requests_per_minute: 60, tokens_per_minute: 0, concurrency: 0 };
        let fares = Fares {
            reserved: "0.25".parse().unwrap(),
            remaining: Credits::whole(4),
            low: true,
            requests_busy_us: 1_500_000,
            tokens_busy_us: 0,
            limits,
        };
        annotate(&mut headers, RouteKind::Anthropic, HeaderValue::from_static("id"), Some(&fares), Some(Credits::ZERO));
        let expected = [
            ("x-credits-reserved", "0.25"),
            ("x-credits-low", "true"),
            ("x-credits-remaining", "4"),
            ("x-credits-cost", "0"),
            ("x-ratelimit-limit-requests", "60"),
            ("x-ratelimit-remaining-requests", "58"),
            ("x-ratelimit-reset-requests", "2s"),
            ("x-request-id", "id"),
            ("request-id", "id"),
        ];
        for (name, value) in expected {
            assert_eq!(headers[name], value, "{name}");
        }
        assert_eq!(headers.len(), expected.len());
    }

    #[test]
    fn only_plain_client_request_ids_are_kept() {
        let id = |value: &str| client_request_id(&map(&[("x-request-id", value)]));
        assert_eq!(id("a-1").as_deref(), Some("a-1"));
        assert_eq!(id("a b"), None);
        assert_eq!(id(""), None);
        assert_eq!(id(&"x".repeat(129)), None);
    }
}
