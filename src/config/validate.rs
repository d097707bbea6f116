//! What types cannot say: whether the settings fit together.

mod billing;
mod issuers;
mod notify;
mod rollout;

use std::collections::BTreeMap;

use super::{Config, ConfigError, Ledger, Plan, PostgresUrl, Price, RedisUrl, Route, UnknownModel, Upstream};
use crate::ledger::TOKENS_MAX;
use crate::limits::{MAX_HOPS, Network};
use crate::pricing::PriceList;

/// A day: no time limit makes sense beyond it.
const MAX_TIME_MS: u64 = 24 * 3600 * 1000;
/// A limit moves by whole microseconds a request: past 60 million a minute it would not move at all.
const MAX_REQUESTS_PER_MINUTE: u64 = 60_000_000;
const MAX_TOKENS_PER_MINUTE: u64 = 1_000_000_000;
const MAX_WORKERS: usize = 1024;
/// A hundred years.
const MAX_MONTHS: u32 = 1_200;
const MAX_DAYS: u32 = 36_525;
/// What a notification was raised for may be told again: Stripe sends an event again for 30 days.
const NOTICE_DAYS_MIN: u32 = 31;
/// Two hexadecimal digits name a shard in Redis.
const MAX_SHARDS: u32 = 256;
/// The plan of users for whom none is named.
const DEFAULT_PLAN: &str = "free";

impl Config {
    /// Whether all of it fits together, wherever it came from.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let problems = validate(self).into_iter().map(|(path, message)| format!("`{path}` {message}"));
        let problems: Vec<String> = problems.collect();
        if problems.is_empty() { Ok(()) } else { Err(ConfigError { problems }) }
    }
}

/// What is wrong, as path and message.
pub(super) fn validate(config: &Config) -> Vec<(String, String)> {
    let mut found = Findings(Vec::new());
    listeners(config, &mut found);
    urls(config, &mut found);
    routes(config, &mut found);
    for (name, price) in &config.prices {
        self::price(&format!("prices.{name}"), price, &mut found);
    }
    for (name, plan) in &config.plans {
        self::plan(&format!("plans.{name}"), plan, &mut found);
    }
    plans(config, &mut found);
    billing::billing(config, &mut found);
    issuers::issuers(config, &mut found);
    notify::notify(config, &mut found);
    ledger(config, &mut found);
    limits(config, &mut found);
    others(config, &mut found);
    found.0
}

struct Findings(Vec<(String, String)>);

impl Findings {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push((path.into(), message.into()));
    }

    fn check(&mut self, right: bool, path: impl Into<String>, message: impl Into<String>) {
        if !right {
            self.add(path, message);
        }
    }

    fn positive(&mut self, path: &str, value: impl TryInto<u64>) {
        let value = value.try_into().unwrap_or(u64::MAX);
        self.check(value > 0, path, "must be at least 1");
    }

    fn time(&mut self, path: &str, ms: u64) {
        self.check((1..=MAX_TIME_MS).contains(&ms), path, format!("must be from 1 to {MAX_TIME_MS} milliseconds"));
    }
}

fn listeners(config: &Config, found: &mut Findings) {
    let same = config.listen == config.admin_listen && config.listen.port() != 0;
    found.check(!same, "admin_listen", "must differ from `listen`");
    let token = config.admin_token.as_ref().map(super::Secret::reveal);
    let sendable = token.is_none_or(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()));
    found.check(sendable, "admin_token", "must be visible ASCII characters without spaces");
    found.check(config.workers <= MAX_WORKERS, "workers", format!("must be at most {MAX_WORKERS}"));
    found.check(!config.data_dir.as_os_str().is_empty(), "data_dir", "must name a folder");
    let prefix = &config.api.prefix;
    let plain = prefix.len() > 1 && prefix.starts_with('/') && !prefix.ends_with('/') && is_path(prefix);
    found.check(plain, "api.prefix", "must begin with / and not end with it, such as /api");
    found.time("api.timeout_ms", config.api.timeout_ms);
    found.positive("api.max_body_bytes", config.api.max_body_bytes);
    page(config, found);
    match (&config.tls.certificate, &config.tls.key) {
        (Some(_), None) => found.add("tls.key", "is missing: a certificate needs its key"),
        (None, Some(_)) => found.add("tls.certificate", "is missing: a key needs its certificate"),
        _ => {}
    }
    for (path, file) in [("tls.certificate", &config.tls.certificate), ("tls.key", &config.tls.key)] {
        let there = file.as_ref().is_none_or(|file| file.is_file());
        found.check(there, path, "names a file that is not there");
    }
}

fn page(config: &Config, found: &mut Findings) {
    let page = &config.page;
    let prefix = &page.prefix;
    let plain = prefix.len() > 1
        && prefix.starts_with('/')
        && !prefix.ends_with('/')
        && is_path(prefix)
        && !prefix.contains(['{', '}']);
    found.check(plain, "page.prefix", "must begin with / and not end with it, such as /billing");
    let below = |inner: &str, outer: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let apart = !below(prefix, &config.api.prefix) && !below(&config.api.prefix, prefix);
    found.check(apart, "page.prefix", "must not lie below `api.prefix`, nor that below it");
    let web = |text: &str| {
        let uri = text.parse::<http::Uri>().ok();
        uri.is_some_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.query().is_none()
                && uri.authority().is_some_and(|part| !part.as_str().contains('@'))
        })
    };
    for (path, url) in [("page.url", &page.url), ("page.console_url", &page.console_url)] {
        found.check(url.is_empty() || web(url), path, "must be an http or https URL without a query, or empty");
    }
    let plain = |site: &String| web(site) && site.bytes().all(|b| b.is_ascii_graphic() && !b";,'\"".contains(&b));
    let sites = page.frame_ancestors.iter().all(plain);
    found.check(sites, "page.frame_ancestors", "must be origins, such as https://app.example.com");
    found.time("page.link_ms", page.link_ms);
    found.time("page.session_ms", page.session_ms);
    found.time("page.console_session_ms", page.console_session_ms);
}

fn is_path(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#%\\\"<>".contains(&byte)) && !text.contains("//")
}

fn urls(config: &Config, found: &mut Findings) {
    upstream("upstream", &config.upstream, true, found);
    for (name, settings) in &config.upstreams {
        upstream(&format!("upstreams.{name}"), settings, false, found);
    }
    // Messages never quote these: they may carry passwords.
    let ledger = &config.ledger.url;
    if !ledger.is_empty()
        && let Err(problem) = RedisUrl::parse(ledger)
    {
        found.add("ledger.url", problem);
    }
    ledger_certificates(&config.ledger, found);
    if config.store.url.is_empty() {
        return;
    }
    match PostgresUrl::parse(&config.store.url) {
        Err(problem) => found.add("store.url", problem),
        Ok(store) => {
            for (name, file) in store.files() {
                found.check(file.is_file(), "store.url", format!("has an {name} that is not there"));
            }
        }
    }
}

fn ledger_certificates(settings: &Ledger, found: &mut Findings) {
    let files = [
        ("ledger.ca_file", &settings.ca_file),
        ("ledger.client_certificate", &settings.client_certificate),
        ("ledger.client_key", &settings.client_key),
    ];
    for (path, file) in files {
        let Some(file) = file else { continue };
        found.check(settings.url.starts_with("rediss"), path, "is for a ledger.url with TLS: rediss://…");
        found.check(file.is_file(), path, "names a file that is not there");
    }
    let half = settings.client_certificate.is_some() != settings.client_key.is_some();
    found.check(!half, "ledger.client_certificate", "and ledger.client_key belong together");
}

fn upstream(path: &str, settings: &Upstream, may_be_empty: bool, found: &mut Findings) {
    let url_path = format!("{path}.url");
    if settings.url.is_empty() {
        found.check(may_be_empty, &url_path, "is missing");
    } else {
        match settings.url.parse::<http::Uri>() {
            Ok(url) => {
                let scheme = url.scheme_str().is_some_and(|scheme| scheme == "http" || scheme == "https");
                let host = url.host().is_some_and(|host| !host.is_empty());
                found.check(
                    scheme && host,
                    &url_path,
                    "must be http://HOST or https://HOST, with a port or path if need be",
                );
                let user = url.authority().is_some_and(|authority| authority.as_str().contains('@'));
                found.check(!user, &url_path, "must not carry a user or password: use api_key");
                found.check(url.query().is_none(), &url_path, "must not carry a query");
                let h2c_over_tls = settings.h2c && url.scheme_str() == Some("https");
                found.check(!h2c_over_tls, format!("{path}.h2c"), "is for http:// only: over TLS HTTP/2 is negotiated");
            }
            Err(_) => found.add(&url_path, "is not a URL"),
        }
    }
    let key = settings.api_key.as_ref().map(super::Secret::reveal);
    let sendable = key.is_none_or(|key| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic()));
    found.check(sendable, format!("{path}.api_key"), "must be visible ASCII characters without spaces");
    let there = settings.ca_file.as_ref().is_none_or(|file| file.is_file());
    found.check(there, format!("{path}.ca_file"), "names a file that is not there");
    found.time(&format!("{path}.connect_timeout_ms"), settings.connect_timeout_ms);
    found.time(&format!("{path}.first_byte_timeout_ms"), settings.first_byte_timeout_ms);
    found.time(&format!("{path}.idle_timeout_ms"), settings.idle_timeout_ms);
    found.time(&format!("{path}.idle_connection_ms"), settings.idle_connection_ms);
    found.time(&format!("{path}.breaker_open_ms"), settings.breaker_open_ms);
    found.positive(&format!("{path}.breaker_failures"), settings.breaker_failures);
}

fn routes(config: &Config, found: &mut Findings) {
    found.check(!config.routes.is_empty(), "routes", "has none left: nothing would be served");
    let mut prefixes: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, settings) in &config.routes {
        route(config, name, settings, found);
        if let Some(other) = prefixes.insert(settings.prefix.trim_end_matches('/'), name) {
            found.add(format!("routes.{name}.prefix"), format!("is that of routes.{other} too"));
        }
    }
}

fn route(config: &Config, name: &str, settings: &Route, found: &mut Findings) {
    let path = format!("routes.{name}");
    let prefix = format!("{path}.prefix");
    found.check(settings.prefix.starts_with('/') && is_path(&settings.prefix), &prefix, "must begin with /");
    let api = config.api.prefix.as_str();
    let under_api = settings.prefix.strip_prefix(api).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    found.check(!under_api, &prefix, format!("is taken: the credits API answers under {api} (`api.prefix`)"));
    let page = config.page.prefix.as_str();
    let under_page = settings.prefix.strip_prefix(page).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let taken = config.page.enabled && under_page;
    found.check(!taken, &prefix, format!("is taken: the billing page answers under {page} (`page.prefix`)"));
    let priced = config.prices.contains_key(&settings.price);
    let known = listed(config.prices.keys());
    found.check(priced, format!("{path}.price"), format!("names no price; there are {known}"));
    for upstream in &settings.upstreams {
        let known = listed(config.upstreams.keys());
        let there = config.upstreams.contains_key(upstream);
        found.check(
            there,
            format!("{path}.upstreams"),
            format!("names `{upstream}`, which is not in `upstreams`; there are {known}"),
        );
    }
    // With no upstream at all the built-in demo upstream may serve; with some, each route needs one.
    let none = settings.upstreams.is_empty() && config.upstream.url.is_empty() && !config.upstreams.is_empty();
    let how = format!("is missing and `upstream.url` is not set; or take the route away with `routes.{name} = false`");
    found.check(!none, format!("{path}.upstreams"), how);
    let percent = settings.retry_budget_percent <= 100;
    found.check(percent, format!("{path}.retry_budget_percent"), "must be at most 100");
    found.check(settings.max_retries <= 10, format!("{path}.max_retries"), "must be at most 10");
    found.positive(&format!("{path}.max_body_bytes"), settings.max_body_bytes);
}

fn listed<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn price(path: &str, settings: &Price, found: &mut Findings) {
    if let Err(error) = PriceList::new(settings) {
        found.add(format!("{path}.models"), format!("has an error: {error}"));
    }
    // Every other model would be free, by its name.
    let free = !settings.models.is_empty()
        && settings.per_request.is_zero()
        && settings.unknown_model == UnknownModel::PerRequest;
    found.check(
        !free,
        format!("{path}.unknown_model"),
        "must be refuse, or per_request above 0: other models would be free",
    );
    for (index, model) in settings.models.iter().enumerate() {
        let path = format!("{path}.models.{index}");
        found.check(!model.model.is_empty(), format!("{path}.model"), "must be a glob such as gpt-4*");
        let output = (1..=TOKENS_MAX).contains(&model.max_output_tokens);
        found.check(output, format!("{path}.max_output_tokens"), format!("must be from 1 to {TOKENS_MAX}"));
        if let Some(cached) = model.cached_input_per_million {
            let cheaper = cached <= model.input_per_million;
            found.check(cheaper, format!("{path}.cached_input_per_million"), "must not be above input_per_million");
        }
    }
}

fn plan(path: &str, settings: &Plan, found: &mut Findings) {
    let bounded = |value: u64, limit: u64| value <= limit;
    let limit = |limit: u64| format!("must be at most {limit}; 0 means no limit");
    let requests = bounded(settings.requests_per_minute, MAX_REQUESTS_PER_MINUTE);
    found.check(requests, format!("{path}.requests_per_minute"), limit(MAX_REQUESTS_PER_MINUTE));
    let tokens = bounded(settings.tokens_per_minute, MAX_TOKENS_PER_MINUTE);
    found.check(tokens, format!("{path}.tokens_per_minute"), limit(MAX_TOKENS_PER_MINUTE));
    found.check(bounded(settings.concurrency, 1_000_000), format!("{path}.concurrency"), limit(1_000_000));
}

fn plans(config: &Config, found: &mut Findings) {
    let there = config.plans.contains_key(DEFAULT_PLAN);
    found.check(there, "plans", "must have a plan `free`: users get it where none is named");
    let plan = &config.service_keys.plan;
    let known = listed(config.plans.keys());
    found.check(config.plans.contains_key(plan), "service_keys.plan", format!("names no plan; there are {known}"));
}

fn ledger(config: &Config, found: &mut Findings) {
    let ledger = &config.ledger;
    found.check(ledger.shards <= MAX_SHARDS, "ledger.shards", format!("must be at most {MAX_SHARDS}"));
    found.time("ledger.reserve_timeout_ms", ledger.reserve_timeout_ms);
    found.check(ledger.settle_wait_ms <= MAX_TIME_MS, "ledger.settle_wait_ms", "must be at most a day");
    found.time("ledger.heartbeat_interval_ms", ledger.heartbeat_interval_ms);
    found.time("ledger.call_timeout_ms", ledger.call_timeout_ms);
    found.time("ledger.park_after_ms", ledger.park_after_ms);
    found.time("ledger.fence_after_ms", ledger.fence_after_ms);
    let beats = ledger.heartbeat_interval_ms < ledger.unacknowledged_limit_ms;
    found.check(beats, "ledger.unacknowledged_limit_ms", "must be above ledger.heartbeat_interval_ms");
    // A worker must stop taking requests before others may declare it dead.
    let fenced_later = ledger.unacknowledged_limit_ms < ledger.fence_after_ms;
    found.check(fenced_later, "ledger.fence_after_ms", "must be above ledger.unacknowledged_limit_ms");
    found.check((1..=1024).contains(&ledger.max_batch), "ledger.max_batch", "must be from 1 to 1024");
    let queue = ledger.max_queue >= ledger.max_batch;
    found.check(queue, "ledger.max_queue", "must be at least ledger.max_batch");
    found.positive("ledger.max_backlog", ledger.max_backlog);
    found.positive("ledger.max_unflushed", ledger.max_unflushed);
    let store = &config.store;
    found.positive("store.max_connections", store.max_connections);
    found.time("store.timeout_ms", store.timeout_ms);
    // A flush that is under way is over before a session that stands still is fenced: what comes of its last batch is known by
    // then (tests/it/protocol).
    let flushed_before = ledger.url.is_empty() || store.timeout_ms < ledger.fence_after_ms;
    found.check(flushed_before, "ledger.fence_after_ms", "must be above store.timeout_ms");
    found.time("store.flush_interval_ms", store.flush_interval_ms);
    found.check((1..=100_000).contains(&store.flush_batch), "store.flush_batch", "must be from 1 to 100000");
    let months = store.usage_retention_months;
    found.check(months <= MAX_MONTHS, "store.usage_retention_months", format!("must be at most {MAX_MONTHS}"));
    let days = store.dead_letter_retention_days;
    found.check(days <= MAX_DAYS, "store.dead_letter_retention_days", format!("must be at most {MAX_DAYS}"));
    for (name, days) in [
        ("store.read_notification_retention_days", store.read_notification_retention_days),
        ("store.notification_retention_days", store.notification_retention_days),
    ] {
        let right = days == 0 || (NOTICE_DAYS_MIN..=MAX_DAYS).contains(&days);
        found.check(right, name, format!("must be 0, or from {NOTICE_DAYS_MIN} to {MAX_DAYS}"));
    }
}

fn limits(config: &Config, found: &mut Findings) {
    let server = &config.server;
    found.positive("server.max_connections", server.max_connections);
    found.check((1..=4096).contains(&server.max_headers), "server.max_headers", "must be from 1 to 4096");
    let headers = (8192..=1024 * 1024).contains(&server.max_header_bytes);
    found.check(headers, "server.max_header_bytes", "must be from 8192 to 1048576");
    found.time("server.header_timeout_ms", server.header_timeout_ms);
    found.time("server.body_idle_timeout_ms", server.body_idle_timeout_ms);
    found.time("server.body_timeout_ms", server.body_timeout_ms);
    let largest = config.routes.values().map(|route| route.max_body_bytes).max().unwrap_or(0);
    let fits = server.body_memory_bytes >= largest;
    found.check(fits, "server.body_memory_bytes", "must not be below the largest `max_body_bytes` of a route");
    found.time("server.keep_alive_ms", server.keep_alive_ms);
    found.time("server.write_timeout_ms", server.write_timeout_ms);
    found.time("server.drain_timeout_ms", server.drain_timeout_ms);
    found.positive("server.http2_max_streams", server.http2_max_streams);
    let endpoint = &config.traces.endpoint;
    let place =
        config.traces.collector().is_ok_and(|place| place.scheme_str() == Some("http") && place.host().is_some());
    found.check(
        endpoint.is_empty() || place,
        "traces.endpoint",
        "must be an http:// URL, such as http://127.0.0.1:4318",
    );
    found.check(config.traces.sample_percent <= 100, "traces.sample_percent", "must be at most 100");
    let audit = config.audit.interval_ms;
    found.check(audit == 0 || audit >= 60_000, "audit.interval_ms", "must be 0, for never, or at least a minute");
    let metering = &config.metering;
    found.positive("metering.bytes_per_token", metering.bytes_per_token);
    found.positive("metering.extend_tokens", metering.extend_tokens);
    found.positive("metering.max_answer_bytes", metering.max_answer_bytes);
    let image = metering.tokens_per_image <= TOKENS_MAX;
    found.check(image, "metering.tokens_per_image", format!("must be at most {TOKENS_MAX}"));
}

fn proxies(config: &Config, found: &mut Findings) {
    let server = &config.server;
    let few = server.trusted_proxies <= MAX_HOPS;
    found.check(few, "server.trusted_proxies", format!("must be at most {MAX_HOPS}"));
    for text in &server.proxy_addresses {
        let right = Network::parse(text).is_some();
        found.check(right, "server.proxy_addresses", "must be addresses or blocks, such as 10.0.0.0/8");
    }
    let lost = server.proxy_addresses.is_empty() || server.trusted_proxies > 0;
    found.check(lost, "server.proxy_addresses", "needs `server.trusted_proxies`: how many there are in a row");
    let bits = (16..=128).contains(&server.ipv6_prefix_bits);
    found.check(bits, "server.ipv6_prefix_bits", "must be from 16 to 128");
}

fn others(config: &Config, found: &mut Findings) {
    proxies(config, found);
    for origin in &config.cors.origins {
        let right = origin == "*"
            || origin.split_once("://").is_some_and(|(scheme, host)| {
                ["http", "https"].contains(&scheme) && !host.is_empty() && !host.contains('/')
            });
        found.check(right, "cors.origins", "must be origins such as https://app.example.com, or *");
    }
    rollout::rollout(config, found);
    found.positive("reports.heavy_messages_per_day", config.reports.heavy_messages_per_day);
    let percent = (1..=99).contains(&config.reports.near_limit_percent);
    found.check(percent, "reports.near_limit_percent", "must be from 1 to 99");
    let filter = config.log.level.parse::<tracing_subscriber::filter::EnvFilter>();
    found.check(filter.is_ok(), "log.level", "is not a filter such as info or faregate=debug");
}
