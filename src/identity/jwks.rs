//! The key set of one issuer: asked for at the first token, kept, and asked for again when a token names a key that is not in
//! it, but no oftener than the settings say, so that made-up names reach nobody.
//!
//! While the issuer does not answer, the keys that are known go on. A key that left the set leaves here with the next answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Uri;
use parking_lot::RwLock;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::jwk::{Jwk, PublicKey};
use crate::config;
use crate::outbound::{Dial, FetchError};
use crate::telemetry::Metrics;

/// Largest set.
const MAX_BYTES: usize = 256 * 1024;
/// Keys of a set that are looked at.
const MAX_KEYS: usize = 64;
/// Longest name of a key.
const MAX_KID_CHARS: usize = 256;
/// Without any answer for so long, no key is believed any more.
const STALE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Why there is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoKey {
    /// The issuer does not publish it.
    Unknown,
    /// The issuer could not be asked.
    Unavailable,
}

pub(super) struct KeySet {
    url: Uri,
    dial: Dial,
    max_age: Duration,
    min_interval: Duration,
    timeout: Duration,
    held: RwLock<Held>,
    /// One question at a time.
    asking: Mutex<()>,
    metrics: Metrics,
}

#[derive(Default)]
struct Held {
    keys: Arc<Keys>,
    /// When the issuer last answered.
    answered: Option<Instant>,
    /// When it was last asked.
    asked: Option<Instant>,
    /// Whether the last question had no answer.
    failed: bool,
}

#[derive(Debug, Default)]
pub(super) struct Keys {
    named: HashMap<String, Arc<PublicKey>>,
    /// Where there is one key in all, a token need not name it.
    only: Option<Arc<PublicKey>>,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

impl KeySet {
    pub(super) fn new(url: Uri, settings: &config::Tokens, metrics: Metrics) -> Result<KeySet, rustls::Error> {
        Ok(KeySet {
            url,
            dial: Dial::new()?,
            max_age: Duration::from_millis(settings.jwks_max_age_ms),
            min_interval: Duration::from_millis(settings.jwks_min_interval_ms),
            timeout: Duration::from_millis(settings.jwks_timeout_ms),
            held: RwLock::default(),
            asking: Mutex::new(()),
            metrics,
        })
    }

    /// The key of this name.
    pub(super) async fn find(&self, kid: Option<&str>) -> Result<Arc<PublicKey>, NoKey> {
        if kid.is_some_and(|kid| kid.len() > MAX_KID_CHARS) {
            return Err(NoKey::Unknown);
        }
        if let Some(key) = self.known(kid) {
            return Ok(key);
        }
        let _asking = self.asking.lock().await;
        // Whoever was first has asked for all.
        if let Some(key) = self.known(kid) {
            return Ok(key);
        }
        if self.may_ask() {
            self.ask().await;
        }
        match self.known(kid) {
            Some(key) => Ok(key),
            None if self.held.read().failed => Err(NoKey::Unavailable),
            None => Err(NoKey::Unknown),
        }
    }

    /// Asks again before the keys are too old; an issuer whose tokens nobody has sent is not asked at all.
    pub(super) async fn keep_fresh(&self) {
        let due = {
            let held = self.held.read();
            held.answered.is_some_and(|answered| answered.elapsed() >= self.max_age)
        };
        if !due {
            return;
        }
        let _asking = self.asking.lock().await;
        if self.may_ask() {
            self.ask().await;
        }
    }

    fn known(&self, kid: Option<&str>) -> Option<Arc<PublicKey>> {
        let held = self.held.read();
        held.answered.filter(|answered| answered.elapsed() < STALE_MAX)?;
        match kid {
            Some(kid) => held.keys.named.get(kid).cloned(),
            None => held.keys.only.clone(),
        }
    }

    fn may_ask(&self) -> bool {
        self.held.read().asked.is_none_or(|asked| asked.elapsed() >= self.min_interval)
    }

    async fn ask(&self) {
        {
            // Noted before the question: one whose asker gave up counts all the same.
            let mut held = self.held.write();
            held.asked = Some(Instant::now());
            held.failed = true;
        }
        let answer = self.dial.get(&self.url, MAX_BYTES, self.timeout).await;
        match answer.and_then(|body| Keys::read(&body)) {
            Ok(keys) => {
                let count = keys.named.len();
                let mut held = self.held.write();
                *held = Held { keys: Arc::new(keys), answered: Some(Instant::now()), asked: held.asked, failed: false };
                drop(held);
                self.metrics.jwks_fetches.with_label_values(&["ok"]).inc();
                tracing::info!(issuer = %config::places(&self.url.to_string()), keys = count, "the issuer's keys were read");
            }
            Err(error) => {
                self.metrics.jwks_fetches.with_label_values(&["failed"]).inc();
                tracing::warn!(issuer = %config::places(&self.url.to_string()), %error, "the issuer's keys could not be read; known ones go on");
            }
        }
    }
}

impl Keys {
    fn read(body: &[u8]) -> Result<Keys, FetchError> {
        let unreadable = |error: serde_json::Error| FetchError::Unreadable(error.to_string());
        let document: Document = serde_json::from_slice(body).map_err(unreadable)?;
        let mut keys = Keys::default();
        let mut all = Vec::new();
        for value in document.keys.into_iter().take(MAX_KEYS) {
            // A kind of key that is not known here is somebody else's.
            let Ok(jwk) = serde_json::from_value::<Jwk>(value) else { continue };
            let Some(key) = jwk.key().map(Arc::new) else { continue };
            all.push(key.clone());
            if let Some(kid) = jwk.kid {
                keys.named.insert(kid, key);
            }
        }
        if all.is_empty() {
            return Err(FetchError::Unreadable("no key in it can be used".to_owned()));
        }
        keys.only = if let [only] = all.as_slice() { Some(only.clone()) } else { None };
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_read_as_far_as_they_are_understood() {
        let key = r#"{"kty":"EC","crv":"P-256","kid":"a","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
        let one = Keys::read(format!(r#"{{"keys":[{key},{{"kty":"quantum"}},7]}}"#).as_bytes()).unwrap();
        assert!(one.named.contains_key("a") && one.only.is_some());
        let two = Keys::read(format!(r#"{{"keys":[{key},{}]}}"#, key.replace("\"a\"", "\"b\"")).as_bytes()).unwrap();
        assert!(two.named.len() == 2 && two.only.is_none());
        for none in ["", "{}", "<html>", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","k":"x"}]}"#] {
            assert!(Keys::read(none.as_bytes()).is_err(), "{none}");
        }
    }
}
