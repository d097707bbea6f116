//! No panel and no alert names a metric, or a label of one, that a running gateway does not export; every alert has its
//! section in docs/alerts.md, and its tests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use super::read;
use crate::support::http::request;
use crate::support::{Faregate, Options, Sim, Stripe, eventually};

const RULES: &str = "deploy/prometheus/rules.yml";
const DASHBOARDS: [&str; 2] =
    ["deploy/grafana/dashboards/traffic.json", "deploy/grafana/dashboards/credits-and-money.json"];

/// Metrics by name, with the labels of any of their series.
type Exported = BTreeMap<String, BTreeSet<String>>;

fn read_metrics(text: &str, into: &mut Exported) {
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name: String = line.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        let labels = line.split_once('{').map_or("", |(_, rest)| rest.split_once('}').unwrap().0);
        let names = labels.split(',').filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
        into.entry(name).or_default().extend(names);
    }
}

/// The metrics that a query names, each with the labels that it matches by.
fn named(query: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    let mut rest = query;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '_') {
        rest = &rest[start..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        rest = after;
        let mut labels = Vec::new();
        if let Some(inside) = after.strip_prefix('{').and_then(|after| after.split_once('}')) {
            labels =
                inside.0.split(',').map(|label| label.split(['=', '!']).next().unwrap().trim().to_owned()).collect();
            rest = inside.1;
        }
        // What is in quotes and what is a function or a label's name is no metric of ours.
        if name.starts_with("faregate") || name.starts_with("process_") {
            found.push((name.to_owned(), labels));
        }
    }
    found
}

/// The queries of the rules, and the names that they record.
fn rules() -> (Vec<String>, BTreeSet<String>) {
    let text = read(RULES);
    let mut queries: Vec<String> = Vec::new();
    let mut folded = false;
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(query) = trimmed.strip_prefix("expr: ") {
            folded = query == ">-";
            queries.push(if folded { String::new() } else { query.to_owned() });
        } else if folded && line.starts_with("          ") {
            queries.last_mut().unwrap().push_str(trimmed);
        } else {
            folded = false;
        }
    }
    let recorded = text.lines().filter_map(|line| line.trim().strip_prefix("- record: ")).map(str::to_owned).collect();
    (queries, recorded)
}

fn alerts() -> Vec<String> {
    read(RULES).lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_owned).collect()
}

fn panels() -> Vec<String> {
    let mut queries = Vec::new();
    for path in DASHBOARDS {
        let dashboard: Value = serde_json::from_str(&read(path)).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            let targets = panel["targets"].as_array().into_iter().flatten();
            queries.extend(targets.map(|target| target["expr"].as_str().unwrap().to_owned()));
        }
    }
    queries
}

/// A gateway that has served, refused, failed and been paid, and one with TLS.
async fn exported() -> Exported {
    let (sim, stripe) = (Sim::start(), Stripe::start());
    let plain = Faregate::start(
        Options::new()
            .config("[upstreams]\ngone = { url = \"http://127.0.0.1:9\" }\n[routes.gone]\nprefix = \"/gone\"\nkind = \"http\"\nupstreams = [\"gone\"]\n")
            .upstream(sim.url())
            .set("plans.free.signup_credits", 0)
            .env("FAREGATE_STRIPE_SECRET_KEY", "sk_test_1")
            .env("FAREGATE_STRIPE_WEBHOOK_SECRETS", "whsec_1")
            .env("FAREGATE_STRIPE_API_BASE", stripe.url()),
    );
    let key = plain.user("ann", "2").await;
    let message = json!({"model": "m", "messages": [{"role": "user", "content": "Hello"}]});
    let ask = |path: &str| request(Method::POST, &plain.url(path), &key, Some(&message));
    assert_eq!(plain.http.call(ask("/v1/chat/completions")).await.status, 200);
    assert_eq!(plain.http.call(ask("/gone")).await.status, 502);
    assert_eq!(plain.http.call(ask("/v1/chat/completions")).await.status, 200);
    assert_eq!(plain.http.call(ask("/v1/chat/completions")).await.status, 402);
    plain.usage_of("ann", 2).await;
    let mut exported = Exported::new();
    scrape(&plain, &mut exported).await;
    eventually(Duration::from_secs(10), "an account ran dry", || async {
        (plain.metric("faregate_exhausted_accounts").await >= 1.0).then_some(())
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["gate.test".to_owned()]).unwrap();
    let (certificate, secret) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&secret, made.signing_key.serialize_pem()).unwrap();
    let tls = Faregate::start(
        Options::new()
            .upstream(sim.url())
            .set("tls.certificate", certificate.display())
            .set("tls.key", secret.display()),
    );
    scrape(&tls, &mut exported).await;
    exported
}

async fn scrape(faregate: &Faregate, into: &mut Exported) {
    let answer = faregate.http.get(&format!("http://{}/metrics", faregate.admin_addr()), "").await;
    read_metrics(&answer.text(), into);
}

#[tokio::test]
async fn no_panel_and_no_alert_names_what_is_not_exported() {
    let exported = exported().await;
    let (queries, recorded) = rules();
    assert!(queries.len() > 20 && recorded.len() > 3 && panels().len() > 30);
    // Prometheus adds these by itself.
    let own = ["job", "instance", "le"];
    for query in queries.iter().chain(&panels()) {
        let names = named(query);
        assert!(!names.is_empty() || query.starts_with("up{"), "nothing of ours in {query}");
        for (name, labels) in names {
            if recorded.contains(&name) {
                continue;
            }
            let known = exported.get(&name).unwrap_or_else(|| panic!("{name} is not exported: {query}"));
            for label in labels {
                assert!(known.contains(&label) || own.contains(&&*label), "{name} has no label {label}: {query}");
            }
        }
    }
}

#[test]
fn every_alert_is_explained_and_tested() {
    let (explained, tested) = (read("docs/alerts.md"), read("deploy/prometheus/rules_test.yml"));
    for alert in alerts() {
        assert!(explained.contains(&format!("\n## {alert}\n")), "docs/alerts.md has no section on {alert}");
        let fires = tested.contains(&format!("- alertname: {alert}\n"));
        let keeps_quiet = tested.contains(&format!("- {{alertname: {alert}, "));
        assert!(fires && keeps_quiet, "{alert} needs a test in which it fires and one in which it does not");
        assert!(read(RULES).contains(&format!("docs/alerts.md#{}\"", alert.to_lowercase())), "{alert}'s runbook");
    }
}

#[test]
fn queries_are_taken_apart() {
    let query = r#"sum by (op) (rate(faregate_x_total{a="1,2", b!="c"}[5m])) / scalar(faregate:y:rate5m)"#;
    let names: Vec<String> = named(query).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["faregate_x_total", "faregate:y:rate5m"]);
}
