//! The cookie of a session, and which requests may use it.

use http::header::{COOKIE, HOST, ORIGIN};
use http::{HeaderMap, HeaderValue, Uri};

use crate::config::Secret;

/// How sessions travel.
#[derive(Debug)]
pub(crate) struct CookieJar {
    name: String,
    call_header: &'static str,
    secure: bool,
    /// The authority under which people reach us, where a proxy rewrites the Host.
    authority: Option<String>,
}

impl CookieJar {
    /// `url` is where people open the page; it may be empty.
    pub(crate) fn new(name: &str, call_header: &'static str, secure: bool, url: &str) -> CookieJar {
        // RFC 6265bis 4.1.3.2: a browser takes a __Host- cookie only over TLS, from this very host and for all its
        // paths, so that no sibling domain can plant one.
        let name = if secure { format!("__Host-{name}") } else { name.to_owned() };
        let authority = url.parse::<Uri>().ok().and_then(|url| url.authority().map(|part| part.as_str().to_owned()));
        CookieJar { name, call_header, secure, authority }
    }

    /// The session's secret, where this call comes from the page's own scripts.
    pub(crate) fn secret<'a>(&self, uri: &Uri, headers: &'a HeaderMap) -> Option<&'a str> {
        if self.own_call(uri, headers) { self.cookie(headers) } else { None }
    }

    /// Whether the page's own scripts make this call, and not another site's.
    pub(crate) fn own_call(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        let site = headers.get("sec-fetch-site");
        headers.contains_key(self.call_header)
            && site.is_none_or(|site| site == "same-origin")
            && headers.get(ORIGIN).is_none_or(|origin| self.ours(origin, uri, headers))
    }

    fn ours(&self, origin: &HeaderValue, uri: &Uri, headers: &HeaderMap) -> bool {
        let Some((_, origin)) = origin.to_str().ok().and_then(|origin| origin.split_once("://")) else { return false };
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        // HTTP/2 has the host in the request's target.
        let host = host.or_else(|| uri.authority().map(http::uri::Authority::as_str));
        let is = |known: &str| known.eq_ignore_ascii_case(origin);
        host.is_some_and(is) || self.authority.as_deref().is_some_and(is)
    }

    fn cookie<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
        let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.find(|(name, _)| *name == self.name).map(|(_, value)| value)
    }

    /// The header that gives a session to a browser for so many seconds.
    pub(crate) fn set(&self, secret: &Secret, seconds: u64) -> Option<HeaderValue> {
        let (name, secret) = (&self.name, secret.reveal());
        let secure = if self.secure { "; Secure" } else { "" };
        let text = format!("{name}={secret}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
        let mut value = HeaderValue::try_from(text).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// The header that takes it away.
    pub(crate) fn clear(&self) -> Option<HeaderValue> {
        self.set(&Secret::new(""), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    /// Each line takes one guard's part alone: with any of them gone, a foreign site's call would carry the session.
    #[test]
    fn only_the_pages_own_calls_carry_the_session() {
        let jar = CookieJar::new("fg_session", "x-faregate-page", false, "https://pay.example.com/billing");
        let uri = Uri::from_static("/api/credits/check");
        let own = [("host", "gate:8080"), ("cookie", "a=b; fg_session=s3; c=d"), ("x-faregate-page", "1")];
        let with = |more: &[(&'static str, &'static str)]| {
            let mut all = own.to_vec();
            all.extend_from_slice(more);
            jar.secret(&uri, &headers(&all)).map(str::to_owned)
        };
        assert_eq!(with(&[]).as_deref(), Some("s3"));
        assert_eq!(with(&[("origin", "http://gate:8080"), ("sec-fetch-site", "same-origin")]).as_deref(), Some("s3"));
        assert_eq!(with(&[("origin", "https://pay.example.com")]).as_deref(), Some("s3"));
        assert_eq!(with(&[("origin", "https://evil.example")]), None);
        assert_eq!(with(&[("origin", "null")]), None);
        assert_eq!(with(&[("sec-fetch-site", "same-site")]), None);
        assert_eq!(with(&[("sec-fetch-site", "cross-site")]), None);
        assert_eq!(jar.secret(&uri, &headers(&own[..2])), None);
        assert_eq!(jar.secret(&uri, &headers(&[own[0], own[2], ("cookie", "xfg_session=s3")])), None);
    }

    #[test]
    fn over_tls_the_cookie_is_bound_to_the_host() {
        let jar = CookieJar::new("fg_session", "x-faregate-page", true, "");
        let set = jar.set(&Secret::new("s3"), 60).unwrap();
        let wanted = "__Host-fg_session=s3; Path=/; Max-Age=60; HttpOnly; SameSite=Strict; Secure";
        assert_eq!(set.to_str().unwrap(), wanted);
        let planted = headers(&[("host", "a"), ("cookie", "fg_session=s3"), ("x-faregate-page", "1")]);
        assert_eq!(jar.secret(&Uri::from_static("/"), &planted), None);
        assert!(jar.clear().unwrap().to_str().unwrap().contains("Max-Age=0"));
    }
}
