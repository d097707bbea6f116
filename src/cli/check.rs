//! `faregate check`: what would run with these settings. No secrets.

use std::fmt::Write as _;

use crate::config::{Config, Plan, Price, Upstream, places};
use crate::ledger::Limits;

pub(super) fn describe(config: &Config) -> String {
    let mut out = String::from("The settings are right. With them would run:\n\n");
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<10} {value}");
    };
    let replicas = match (config.ledger.url.is_empty(), config.store.url.is_empty()) {
        (false, false) => "distributed: any number of replicas",
        (false, true) => "Redis over SQLite: one replica",
        (true, _) => "embedded: one replica",
    };
    line("mode", replicas.to_owned());
    line(
        "ledger",
        if config.ledger.url.is_empty() { "in this process".to_owned() } else { places(&config.ledger.url) },
    );
    let sqlite = || format!("SQLite in {}", config.data_dir.display());
    line("store", if config.store.url.is_empty() { sqlite() } else { places(&config.store.url) });
    let tls = if config.tls.certificate.is_some() { " with TLS" } else { "" };
    line("listen", format!("{}{tls}, credits API under {}", config.listen, config.api.prefix));
    let exposed = if config.admin_listen.ip().is_loopback() { "" } else { " (not loopback: keep it off the internet)" };
    line("admin", format!("{}{exposed}", config.admin_listen));
    for (name, upstream) in &config.upstreams {
        line("upstream", format!("{name}: {}", self::upstream(upstream)));
    }
    if !config.upstream.url.is_empty() {
        line("upstream", format!("(default): {}", upstream(&config.upstream)));
    } else if config.upstreams.is_empty() {
        line(
            "upstream",
            "none: the built-in demo upstream, if the store is empty and the listener is on loopback".into(),
        );
    }
    for (name, route) in &config.routes {
        let to = if route.upstreams.is_empty() { "(default)".to_owned() } else { route.upstreams.join(", then ") };
        let kind = format!("{:?}", route.kind).to_lowercase();
        line("route", format!("{name}: {} as {kind} to {to}, price {}", route.prefix, route.price));
    }
    for (name, price) in &config.prices {
        line("price", format!("{name}: {}", self::price(price)));
    }
    for (name, plan) in &config.plans {
        line("plan", format!("{name}: {}", self::plan(plan)));
    }
    out
}

fn upstream(upstream: &Upstream) -> String {
    let path = upstream.url.parse::<http::Uri>().map(|url| url.path().to_owned()).unwrap_or_default();
    let key = if upstream.api_key.is_some() { "with its key" } else { "without a key" };
    format!("{}{}, {key}", places(&upstream.url), path.trim_end_matches('/'))
}

fn price(price: &Price) -> String {
    let models: Vec<&str> = price.models.iter().map(|model| model.model.as_str()).collect();
    let by_model = if models.is_empty() { String::new() } else { format!(", by token for {}", models.join(", ")) };
    format!("{} credits a request{by_model}", price.per_request)
}

fn plan(plan: &Plan) -> String {
    let Limits { requests_per_minute, tokens_per_minute, concurrency } = plan.limits();
    let limit = |value: u64, what: &str| if value == 0 { String::new() } else { format!(", {value} {what}") };
    format!(
        "{} credits at sign-up{}{}{}",
        plan.signup_credits,
        limit(requests_per_minute, "requests a minute"),
        limit(tokens_per_minute, "tokens a minute"),
        limit(concurrency, "requests at a time"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    #[test]
    fn tells_what_runs_without_secrets() {
        let mut config = Config { admin_token: Some(Secret::new("hunter2")), ..Config::default() };
        config.ledger.url = "redis://user:hunter2@cache:6379/0, redis://:hunter2@other:6379".into();
        config.store.url = "postgres://user:hunter2@db:5432/faregate?password=hunter2".into();
        config.upstream.url = "https://api.openai.com/v1".into();
        config.upstream.api_key = Some(Secret::new("hunter2"));
        let text = describe(&config);
        assert!(!text.contains("hunter2"), "{text}");
        for part in
            ["distributed", "redis://cache:6379, redis://other:6379", "postgres://db:5432\n", "api.openai.com/v1"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
