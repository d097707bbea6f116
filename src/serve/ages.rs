//! How old the secrets are that were read at start, and when the certificate ends: for alerts.

use std::path::Path;
use std::time::UNIX_EPOCH;

use crate::config::Config;
use crate::telemetry::Metrics;
use crate::tls;

/// Notes when each file with a secret was changed last, and until when the certificate is good.
pub(super) fn note(metrics: &Metrics, config: &Config, admin_token: Option<&Path>) {
    let files = [("admin_token", admin_token), ("tls_key", config.tls.key.as_deref())];
    for (secret, path) in files {
        if let Some(seconds) = path.and_then(modified) {
            metrics.secret_modified.with_label_values(&[secret]).set(seconds);
        }
    }
    let Some(chain) = config.tls.certificate.as_deref().and_then(|path| tls::certificates(path).ok()) else { return };
    match chain.first().and_then(tls::ends_at) {
        Some(seconds) => metrics.certificate_expiry.with_label_values(&["listener"]).set(seconds),
        None => tracing::warn!("when the certificate ends cannot be read from it"),
    }
}

/// Seconds since 1970.
fn modified(path: &Path) -> Option<i64> {
    let changed = path.metadata().ok()?.modified().ok()?;
    i64::try_from(changed.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()
}
