//! What all workers know of an upstream: its address, its key, its settings.

use http::{HeaderValue, Uri, uri};

use super::breaker::Breaker;
use super::connect::{self, Dial};
use crate::config;
use crate::telemetry::Metrics;

/// What all workers know of an upstream.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) settings: config::Upstream,
    pub(super) dial: Dial,
    pub(super) breaker: Breaker,
    /// `Bearer <key>`, and the key alone; marked sensitive.
    pub(super) bearer: Option<HeaderValue>,
    pub(super) key: Option<HeaderValue>,
    /// The value of `Host`.
    pub(super) host: HeaderValue,
    pub(super) scheme: uri::Scheme,
    pub(super) authority: uri::Authority,
    /// What the URL has before the request's path; no slash at its end.
    base: String,
}

/// Why an upstream's settings are no use. The text names the setting.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("upstream `{0}`: `url` must be http:// or https:// with a host, without query or credentials")]
    Url(String),
    #[error("upstream `{0}`: `api_key` cannot be sent in a header")]
    Key(String),
    #[error("upstream `{0}`: {1}")]
    Tls(String, connect::TlsError),
}

impl Target {
    pub(super) fn new(name: &str, settings: &config::Upstream, metrics: &Metrics) -> Result<Target, TargetError> {
        let bad_url = || TargetError::Url(name.to_owned());
        let url: Uri = settings.url.parse().map_err(|_| bad_url())?;
        let (Some(scheme), Some(authority)) = (url.scheme().cloned(), url.authority().cloned()) else {
            return Err(bad_url());
        };
        let known = scheme == uri::Scheme::HTTP || scheme == uri::Scheme::HTTPS;
        if !known || url.query().is_some() || authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(bad_url());
        }
        let secret = |text: String| {
            let mut value = HeaderValue::from_str(&text).map_err(|_| TargetError::Key(name.to_owned()))?;
            value.set_sensitive(true);
            Ok(value)
        };
        let key = settings.api_key.as_ref().map(|key| key.reveal()).filter(|key| !key.is_empty());
        let dial =
            Dial::new(&scheme, &authority, settings).map_err(|error| TargetError::Tls(name.to_owned(), error))?;
        let gauge = metrics.upstream_open.with_label_values(&[name]);
        Ok(Target {
            name: name.to_owned(),
            dial,
            breaker: Breaker::new(settings.breaker_failures, settings.breaker_open_ms, gauge),
            bearer: key.map(|key| secret(format!("Bearer {key}"))).transpose()?,
            key: key.map(|key| secret(key.to_owned())).transpose()?,
            host: HeaderValue::from_str(authority.as_str()).map_err(|_| bad_url())?,
            base: url.path().trim_end_matches('/').to_owned(),
            settings: settings.clone(),
            scheme,
            authority,
        })
    }

    /// The path and query to ask for: the URL's own, then the request's, a doubled `/v1` collapsed.
    pub(super) fn path(&self, asked: &uri::PathAndQuery) -> Option<uri::PathAndQuery> {
        if self.base.is_empty() {
            return Some(asked.clone());
        }
        let text = asked.as_str();
        let rest = match text.strip_prefix("/v1") {
            Some(rest) if self.base.ends_with("/v1") && (rest.is_empty() || rest.starts_with(['/', '?'])) => rest,
            _ => text,
        };
        uri::PathAndQuery::try_from(format!("{}{rest}", self.base)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(url: &str, asked: &str) -> String {
        let settings = config::Upstream { url: url.into(), ..config::Upstream::default() };
        let target = Target::new("test", &settings, &Metrics::new().unwrap()).unwrap();
        target.path(&asked.parse().unwrap()).unwrap().to_string()
    }

    #[test]
    fn paths_are_joined_and_a_doubled_v1_collapses() {
        assert_eq!(joined("https://ai.example", "/v1/models?a=b"), "/v1/models?a=b");
        assert_eq!(joined("https://ai.example/", "/v1/models"), "/v1/models");
        assert_eq!(joined("https://ai.example/v1", "/v1/models?a=b"), "/v1/models?a=b");
        assert_eq!(joined("https://ai.example/v1/", "/v1"), "/v1");
        assert_eq!(joined("https://ai.example/v1", "/v1beta/models"), "/v1/v1beta/models");
        assert_eq!(joined("https://ai.example/base", "/v1/models"), "/base/v1/models");
    }

    #[test]
    fn odd_urls_are_refused() {
        for url in ["", "ftp://host", "http://", "/path", "http://user:secret@host", "http://host/?q=1"] {
            let settings = config::Upstream { url: url.into(), ..config::Upstream::default() };
            assert!(Target::new("test", &settings, &Metrics::new().unwrap()).is_err(), "{url}");
        }
    }
}
