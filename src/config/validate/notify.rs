//! Event streams, warnings, and the product's backend.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Findings;
use crate::config::{Config, Webhook};

/// A stream that says nothing for longer is cut by whatever is in between.
const MAX_KEEP_ALIVE_MS: u64 = 60_000;
/// Changes are promised within a second.
const MAX_POLL_MS: u64 = 500;
/// A week: whoever was away for longer reads the dead letters.
const MAX_WAIT_MS: u64 = 7 * 24 * 3600 * 1000;
const MAX_ATTEMPTS: u32 = 50;
const MAX_SECRETS: usize = 8;
/// What Standard Webhooks asks of a secret, in bytes.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

pub(super) fn notify(config: &Config, found: &mut Findings) {
    for (name, plan) in &config.plans {
        found.check(plan.low_percent <= 100, format!("plans.{name}.low_percent"), "must be at most 100");
    }
    let settings = &config.notify;
    let poll = (10..=MAX_POLL_MS).contains(&settings.poll_interval_ms);
    found.check(poll, "notify.poll_interval_ms", format!("must be from 10 to {MAX_POLL_MS}"));
    let alive = (100..=MAX_KEEP_ALIVE_MS).contains(&settings.keep_alive_ms);
    found.check(alive, "notify.keep_alive_ms", format!("must be from 100 to {MAX_KEEP_ALIVE_MS}"));
    found.positive("notify.store_connections", settings.store_connections as u64);
    found.positive("notify.max_streams", settings.max_streams as u64);
    found.positive("notify.max_streams_per_user", settings.max_streams_per_user as u64);
    webhook(&settings.webhook, found);
}

fn webhook(settings: &Webhook, found: &mut Findings) {
    let path = |name: &str| format!("notify.webhook.{name}");
    if !settings.url.is_empty() {
        let url = settings.url.parse::<http::Uri>().ok();
        let right = url.as_ref().is_some_and(|url| {
            let scheme = url.scheme_str().is_some_and(|scheme| scheme == "http" || scheme == "https");
            let authority = url.authority().map_or("", |authority| authority.as_str());
            scheme && !authority.is_empty() && !authority.contains('@')
        });
        found.check(right, path("url"), "must be https://HOST/PATH, without a user or password");
        found.check(!settings.secrets.is_empty(), path("secrets"), "is missing: messages are signed");
    }
    found.check(settings.secrets.len() <= MAX_SECRETS, path("secrets"), format!("are at most {MAX_SECRETS}"));
    let right = |secret: &str| {
        let key = secret.strip_prefix("whsec_").and_then(|key| STANDARD.decode(key).ok());
        key.is_some_and(|key| SECRET_BYTES.contains(&key.len()))
    };
    for (index, secret) in settings.secrets.iter().enumerate() {
        let message = "must be whsec_ and the base64 of 24 to 64 random bytes";
        found.check(right(secret.reveal()), path(&format!("secrets.{index}")), message);
    }
    found.time(&path("timeout_ms"), settings.timeout_ms);
    let attempts = (1..=MAX_ATTEMPTS).contains(&settings.max_attempts);
    found.check(attempts, path("max_attempts"), format!("must be from 1 to {MAX_ATTEMPTS}"));
    found.positive(&path("max_calls"), settings.max_calls as u64);
    for (name, ms) in [("retry_wait_ms", settings.retry_wait_ms), ("max_retry_wait_ms", settings.max_retry_wait_ms)] {
        found.check((1..=MAX_WAIT_MS).contains(&ms), path(name), format!("must be from 1 to {MAX_WAIT_MS}"));
    }
}
