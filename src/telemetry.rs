//! Metrics and logs. Labels are bounded: route names and outcomes, never users, models or anything that a client sends.

mod exhausted;
mod logs;
mod process;
pub mod traces;

pub use exhausted::Exhausted;
pub use logs::{LogLevel, catch_panics, init};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// All metrics of a replica. One is made at start and handed to whoever counts.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub registry: Registry,
    /// `route`, `outcome` (see the gateway's `Outcome`).
    pub requests: IntCounterVec,
    /// Seconds by `route`: total minus the time spent waiting for the upstream.
    pub added_latency: HistogramVec,
    /// Micro-credits by `what`: reserved, settled, released, abandoned, estimated, uncharged, waived.
    pub credits: IntCounterVec,
    /// Answers whose last bytes left before their settle was acknowledged.
    pub unacknowledged_answers: IntCounter,
    /// Operations by `op` and `outcome`.
    pub ledger_operations: IntCounterVec,
    /// Calls to Redis, or group commits; by `result`.
    pub ledger_calls: IntCounterVec,
    pub ledger_call_seconds: Histogram,
    pub ledger_batch_size: Histogram,
    pub ledger_reconnects: IntCounter,
    pub sessions_fenced: IntCounter,
    /// Shards opened anew after Redis lost data.
    pub reopenings: IntCounter,
    /// Log entries by `what`: recovered (they survived in Redis), missing (acknowledged, and not there any more, as far as
    /// this replica knows), claimed (remembered by this replica, and charged again). At risk is missing less claimed.
    pub reopened_entries: IntCounterVec,
    /// Micro-credits that this replica remembered and charged again.
    pub reopened_credits: IntCounter,
    pub holds_in_flight: IntGauge,
    pub streams: IntGauge,
    pub client_connections: IntGauge,
    /// By `upstream`.
    pub upstream_connects: IntCounterVec,
    pub upstream_errors: IntCounterVec,
    /// By `upstream`; 1 while the breaker is open.
    pub upstream_open: IntGaugeVec,
    pub upstream_retries: IntCounterVec,
    /// Events not yet in the store.
    pub outbox_backlog: IntGauge,
    /// Age of the oldest event not yet in the store, in milliseconds.
    pub outbox_lag_ms: IntGauge,
    pub flushed_rows: IntCounter,
    pub dead_letters: IntCounter,
    /// Billing changes stored and not yet acknowledged by the ledger.
    pub pending_changes: IntGauge,
    /// By `route` and `reason`: what would have been refused where payment is only tried out.
    pub shadow_refusals: IntCounterVec,
    /// By `signal`.
    pub fraud_signals: IntCounterVec,
    /// `action`: log, warn, hold, freeze.
    pub fraud_actions: IntCounterVec,
    /// `result`: applied, refused.
    pub config_reloads: IntCounterVec,
    /// `result`: found, unknown, error.
    pub key_lookups: IntCounterVec,
    /// Tokens looked at anew; `result`: ok, unavailable, refused, or a [`TokenFault`](crate::identity::TokenFault)'s name.
    pub token_checks: IntCounterVec,
    /// `result`: ok, failed.
    pub jwks_fetches: IntCounterVec,
    /// `result`: created, granted, repeated, refused.
    pub sign_ups: IntCounterVec,
    /// As of Stripe's.
    pub auth_webhooks: IntCounterVec,
    /// `state`: pending, parked.
    pub auth_events: IntGaugeVec,
    /// `result`: stored, duplicate, malformed, wrong, stale, unreadable, failed.
    pub billing_webhooks: IntCounterVec,
    /// `state`: pending, parked.
    pub billing_events: IntGaugeVec,
    /// `result`: processed, ignored, retry, parked.
    pub billing_attempts: IntCounterVec,
    /// `result`: ok, refused, failed.
    pub stripe_calls: IntCounterVec,
    /// `result`: paid, declined, capped, void.
    pub auto_topups: IntCounterVec,
    /// Payments as Stripe told of them; `result`: paid, failed, refunded, disputed.
    pub payments: IntCounterVec,
    /// Accounts that ran dry lately.
    pub exhausted: Exhausted,
    /// Of the last audit that came to its end: accounts proven or shown to differ, equations that do not hold, when.
    pub audit_accounts: IntGauge,
    pub audit_differences: IntGauge,
    pub audit_finished: IntGauge,
    /// Seconds since 1970, by `certificate` (listener); there only with TLS.
    pub certificate_expiry: IntGaugeVec,
    /// Seconds since 1970, by `secret` (admin_token, tls_key): when the file was changed last that was read at start.
    pub secret_modified: IntGaugeVec,
    /// Spans that found the exporter's queue full.
    pub spans_dropped: IntCounter,
    /// Takes a span for each forwarded request, where traces are on.
    pub spans: traces::Spans,
    pub panics: IntCounter,
    /// Open event streams.
    pub event_streams: IntGauge,
    /// `event`: credits, notification, subscription.
    pub events_sent: IntCounterVec,
    /// `reason`: revoked, drain, slow.
    pub event_streams_ended: IntCounterVec,
    /// `result`: delivered, retry, dead.
    pub webhook_deliveries: IntCounterVec,
    /// Notifications that wait to be delivered.
    pub webhook_waiting: IntGauge,
}

/// Labels that are known beforehand: series that begin at zero show the first failure as an increase.
const KNOWN: [(&str, &[&str]); 9] = [
    ("credits", &["reserved", "settled", "released", "abandoned", "estimated", "uncharged"]),
    ("ledger_calls", &["answered"]),
    ("reopened_entries", &["recovered", "missing", "claimed"]),
    ("key_lookups", &["found", "unknown", "error"]),
    ("billing_webhooks", &["stored", "duplicate", "malformed", "wrong", "stale", "unreadable", "failed"]),
    ("billing_events", &["pending", "parked"]),
    ("billing_attempts", &["processed", "ignored", "retry", "parked"]),
    ("stripe_calls", &["ok", "refused", "failed"]),
    ("payments", &["paid", "failed", "refunded", "disputed"]),
];

impl Metrics {
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        let make = Maker { registry: &registry };
        let fine = vec![0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];
        make.gauges("faregate_build_info", "Which version this is", &["version"])?
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        registry.register(Box::new(process::Process::new()?))?;
        let sizes = vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];
        let metrics = Metrics {
            requests: make.counters("faregate_requests_total", "Requests", &["route", "outcome"])?,
            added_latency: make.histograms(
                "faregate_added_latency_seconds",
                "Time that the gateway added: total minus waiting for the upstream",
                &["route"],
                fine.clone(),
            )?,
            credits: make.counters("faregate_credits_micro_total", "Micro-credits moved", &["what"])?,
            unacknowledged_answers: make.counter(
                "faregate_unacknowledged_answers_total",
                "Answers whose last bytes left before their settle was acknowledged",
            )?,
            ledger_operations: make.counters(
                "faregate_ledger_operations_total",
                "Ledger operations",
                &["op", "outcome"],
            )?,
            ledger_calls: make.counters("faregate_ledger_calls_total", "Calls to the ledger's server", &["result"])?,
            ledger_call_seconds: make.histogram("faregate_ledger_call_seconds", "Time of a ledger call", fine)?,
            ledger_batch_size: make.histogram("faregate_ledger_batch_size", "Operations in a ledger call", sizes)?,
            ledger_reconnects: make.counter("faregate_ledger_reconnects_total", "Ledger connections replaced")?,
            reopenings: make.counter("faregate_ledger_reopenings_total", "Shards opened anew after Redis lost data")?,
            reopened_entries: make.counters(
                "faregate_ledger_reopened_entries_total",
                "Acknowledged log entries at a reopening: missing less claimed is lost for good",
                &["what"],
            )?,
            reopened_credits: make.counter(
                "faregate_ledger_claimed_micro_total",
                "Micro-credits that Redis lost and this replica charged again",
            )?,
            sessions_fenced: make.counter("faregate_sessions_fenced_total", "Worker sessions fenced")?,
            holds_in_flight: make.gauge("faregate_holds_in_flight", "Holds of this replica")?,
            streams: make.gauge("faregate_streams", "Answers being streamed")?,
            client_connections: make.gauge("faregate_client_connections", "Open client connections")?,
            upstream_connects: make.counters(
                "faregate_upstream_connects_total",
                "Connections opened to upstreams",
                &["upstream"],
            )?,
            upstream_errors: make.counters(
                "faregate_upstream_errors_total",
                "Failed attempts",
                &["upstream", "reason"],
            )?,
            upstream_open: make.gauges("faregate_upstream_breaker_open", "1 while left alone", &["upstream"])?,
            upstream_retries: make.counters("faregate_upstream_retries_total", "Attempts repeated", &["route"])?,
            outbox_backlog: make.gauge("faregate_outbox_backlog", "Events not yet in the store")?,
            outbox_lag_ms: make.gauge("faregate_outbox_lag_milliseconds", "Age of the oldest event not yet stored")?,
            flushed_rows: make.counter("faregate_flushed_rows_total", "Usage rows written")?,
            dead_letters: make.counter("faregate_dead_letters_total", "Usage rows that could not be written")?,
            pending_changes: make.gauge("faregate_pending_changes", "Billing changes not yet in the ledger")?,
            shadow_refusals: make.counters(
                "faregate_shadow_refusals_total",
                "Requests that would have been refused were payment enforced",
                &["route", "reason"],
            )?,
            fraud_signals: make.counters("faregate_fraud_signals_total", "Fraud signals raised", &["signal"])?,
            fraud_actions: make.counters("faregate_fraud_actions_total", "Actions against accounts", &["action"])?,
            config_reloads: make.counters(
                "faregate_config_reloads_total",
                "Times that the settings were read again",
                &["result"],
            )?,
            key_lookups: make.counters("faregate_key_lookups_total", "Key look-ups in the store", &["result"])?,
            token_checks: make.counters("faregate_token_checks_total", "Access tokens checked anew", &["result"])?,
            jwks_fetches: make.counters("faregate_jwks_fetches_total", "Questions for issuers' keys", &["result"])?,
            sign_ups: make.counters("faregate_sign_ups_total", "Users from issuers of tokens", &["result"])?,
            auth_webhooks: make.counters("faregate_auth_webhooks_total", "Webhooks about users", &["result"])?,
            auth_events: make.gauges("faregate_auth_events", "Events about users that wait", &["state"])?,
            billing_webhooks: make.counters("faregate_billing_webhooks_total", "Webhooks of Stripe's", &["result"])?,
            billing_events: make.gauges("faregate_billing_events", "Events of Stripe's that wait", &["state"])?,
            billing_attempts: make.counters(
                "faregate_billing_attempts_total",
                "Attempts to process an event of Stripe's",
                &["result"],
            )?,
            stripe_calls: make.counters("faregate_stripe_calls_total", "Calls to Stripe", &["result"])?,
            auto_topups: make.counters("faregate_auto_topups_total", "Packs bought by themselves", &["result"])?,
            payments: make.counters("faregate_payments_total", "Payments as Stripe told of them", &["result"])?,
            exhausted: make.keep(Exhausted::new()?)?,
            audit_accounts: make.gauge("faregate_audit_accounts", "Accounts that the last audit looked at")?,
            audit_differences: make
                .gauge("faregate_audit_differences", "Equations of the books that did not hold at the last audit")?,
            audit_finished: make
                .gauge("faregate_audit_finished_timestamp_seconds", "When the last audit came to its end")?,
            certificate_expiry: make.gauges(
                "faregate_tls_certificate_expiry_timestamp_seconds",
                "When the certificate ends",
                &["certificate"],
            )?,
            secret_modified: make.gauges(
                "faregate_secret_modified_timestamp_seconds",
                "When the file with a secret was changed last",
                &["secret"],
            )?,
            spans_dropped: make
                .counter("faregate_spans_dropped_total", "Traces that were not sent, the queue being full")?,
            spans: traces::Spans::default(),
            event_streams: make.gauge("faregate_event_streams", "Open event streams")?,
            events_sent: make.counters("faregate_events_sent_total", "Events told by event streams", &["event"])?,
            event_streams_ended: make.counters(
                "faregate_event_streams_ended_total",
                "Event streams that were ended here",
                &["reason"],
            )?,
            webhook_deliveries: make.counters(
                "faregate_webhook_deliveries_total",
                "Attempts to deliver a notification to the product's backend",
                &["result"],
            )?,
            webhook_waiting: make.gauge("faregate_webhook_waiting", "Notifications that wait to be delivered")?,
            panics: make.counter("faregate_panics_total", "Panics caught")?,
            registry,
        };
        metrics.begin_at_zero();
        Ok(metrics)
    }

    fn begin_at_zero(&self) {
        for (name, labels) in KNOWN {
            for label in labels {
                let counters = match name {
                    "credits" => &self.credits,
                    "ledger_calls" => &self.ledger_calls,
                    "reopened_entries" => &self.reopened_entries,
                    "key_lookups" => &self.key_lookups,
                    "billing_webhooks" => &self.billing_webhooks,
                    "billing_attempts" => &self.billing_attempts,
                    "stripe_calls" => &self.stripe_calls,
                    "payments" => &self.payments,
                    _ => {
                        self.billing_events.with_label_values(&[label]).set(0);
                        continue;
                    }
                };
                counters.with_label_values(&[label]);
            }
        }
    }
}

struct Maker<'a> {
    registry: &'a Registry,
}

impl Maker<'_> {
    fn keep<C: prometheus::core::Collector + Clone + 'static>(&self, metric: C) -> Result<C, prometheus::Error> {
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.keep(IntCounter::new(name, help)?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
        self.keep(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.keep(IntGauge::new(name, help)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
        self.keep(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> Result<Histogram, prometheus::Error> {
        self.keep(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?)
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: Vec<f64>,
    ) -> Result<HistogramVec, prometheus::Error> {
        self.keep(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_encoded_with_those_of_the_process() {
        let metrics = Metrics::new().unwrap();
        metrics.panics.inc();
        let text = prometheus::TextEncoder::new().encode_to_string(&metrics.registry.gather()).unwrap();
        assert!(text.contains("faregate_panics_total 1\n"), "{text}");
        assert!(text.contains("faregate_build_info{version="), "{text}");
        assert!(text.contains("process_resident_memory_bytes "), "{text}");
    }
}
