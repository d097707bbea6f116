//! The settings, read again while the process runs: at SIGHUP, and when the file has changed. A file with a mistake in it
//! changes nothing; what cannot change without a restart is named in the log.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, ConfigError};
use crate::identity::Identity;
use crate::rollout::Current;
use crate::store::SharedStore;
use crate::store::notifications::Thresholds;
use crate::telemetry::{LogLevel, Metrics};

/// How often the file is looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Names of changed settings that are told at once.
const MAX_TOLD: usize = 50;

/// What reads the settings again.
pub(super) struct Reloader {
    pub(super) file: Option<PathBuf>,
    /// As the file and the environment had it last, without what the start added.
    pub(super) loaded: Config,
    pub(super) current: Current,
    pub(super) identity: Arc<Identity>,
    pub(super) store: SharedStore,
    pub(super) log: LogLevel,
    pub(super) metrics: Metrics,
}

/// Tells one content of a file from another, without reading it.
type Stamp = Option<(u64, u64, Option<SystemTime>)>;

/// What came of reading the settings again.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    applied: Vec<String>,
    /// Settings that changed and wait for a restart.
    waiting: Vec<String>,
}

impl Reloader {
    /// Until `stop`.
    pub(super) async fn run(mut self, mut hangup: Signal, stop: CancellationToken) {
        let mut seen = self.stamp();
        let mut fresh = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = hangup.recv() => {}
                () = tokio::time::sleep(WATCH_INTERVAL) => {
                    // A file that is away or empty is being replaced; one that changed since the last look is being
                    // written: half of it would be settings, too.
                    let now = self.stamp().filter(|stamp| stamp.1 > 0);
                    if now.is_none() || now == seen || now != std::mem::replace(&mut fresh, now) {
                        continue;
                    }
                }
            }
            seen = self.stamp();
            fresh = None;
            self.reload();
        }
    }

    fn stamp(&self) -> Stamp {
        let metadata = std::fs::metadata(self.file.as_ref()?).ok()?;
        Some((metadata.ino(), metadata.len(), metadata.modified().ok()))
    }

    fn reload(&mut self) {
        let reloads = self.metrics.config_reloads.clone();
        let count = |result: &str| reloads.with_label_values(&[result]).inc();
        match self.load().and_then(|fresh| self.apply(fresh)) {
            Ok(Outcome { applied, waiting }) => {
                count("applied");
                tracing::info!(applied = told(&applied), "the settings were read again");
                if !waiting.is_empty() {
                    tracing::warn!(settings = told(&waiting), "these settings changed too: they wait for a restart");
                }
            }
            Err(error) => {
                count("refused");
                tracing::error!(%error, "the settings were not read again: those of before go on");
            }
        }
    }

    fn load(&self) -> Result<Config, ConfigError> {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
        };
        Config::load(self.file.as_deref(), std::env::vars_os().filter_map(text))
    }

    fn apply(&mut self, fresh: Config) -> Result<Outcome, ConfigError> {
        let running = self.current.get();
        let next = with_live_settings(&running, &fresh);
        // The new live settings must fit the old ones that stay.
        next.check()?;
        let outcome = outcome(&self.loaded, &fresh);
        self.log.set(&next.log.level);
        self.identity.set_plans(&next);
        self.store.set_thresholds(Thresholds::of(&next.plans));
        self.current.replace(Arc::new(next));
        self.loaded = fresh;
        Ok(outcome)
    }
}

fn told(names: &[String]) -> String {
    let more = if names.len() > MAX_TOLD { ", …" } else { "" };
    format!("{}{more}", names[..names.len().min(MAX_TOLD)].join(", "))
}

/// `running` with what may change taken from `fresh`.
fn with_live_settings(running: &Config, fresh: &Config) -> Config {
    let mut next = running.clone();
    next.enforcement = fresh.enforcement;
    next.flags.clone_from(&fresh.flags);
    next.reports.clone_from(&fresh.reports);
    next.fraud.clone_from(&fresh.fraud);
    next.log.level.clone_from(&fresh.log.level);
    for (name, plan) in &mut next.plans {
        if let Some(new) = fresh.plans.get(name) {
            plan.requests_per_minute = new.requests_per_minute;
            plan.tokens_per_minute = new.tokens_per_minute;
            plan.concurrency = new.concurrency;
            plan.low_credits = new.low_credits;
            plan.low_percent = new.low_percent;
        }
    }
    for (name, experiment) in &mut next.experiments {
        let Some(new) = fresh.experiments.get(name) else { continue };
        experiment.active = new.active;
        for variant in &mut experiment.variants {
            if let Some(new) = new.variant(&variant.name) {
                variant.weight = new.weight;
            }
        }
    }
    next.prices.clone_from(&fresh.prices);
    for (name, route) in &mut next.routes {
        if let Some(new) = fresh.routes.get(name) {
            route.price.clone_from(&new.price);
        }
    }
    next
}

/// Which settings changed between two readings, by what that takes.
fn outcome(before: &Config, after: &Config) -> Outcome {
    let live = with_live_settings(before, after);
    let applied = changed(before, &live);
    let mut waiting = changed(&live, after);
    // What is not shown has changed: a secret, or an address that may carry one.
    if waiting.is_empty() && live != *after {
        waiting.push("a secret".to_owned());
    }
    Outcome { applied, waiting }
}

fn changed(before: &Config, after: &Config) -> Vec<String> {
    let tree = |config: &Config| serde_json::to_value(config).unwrap_or_default();
    let mut names = Vec::new();
    differences("", &tree(before), &tree(after), &mut names);
    names
}

/// Paths of what differs; never values, which may be secrets.
fn differences(path: &str, before: &Value, after: &Value, names: &mut Vec<String>) {
    let within = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for (name, old) in before {
                differences(&within(name), old, after.get(name).unwrap_or(&Value::Null), names);
            }
            let added = after.keys().filter(|name| !before.contains_key(*name));
            names.extend(added.map(|name| within(name)));
        }
        (before, after) if before != after => names.push(path.to_owned()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Mode, Secret};

    #[test]
    fn what_is_live_is_applied_and_the_rest_is_named() {
        let before = Config::default();
        let mut after = before.clone();
        after.enforcement.mode = Mode::Shadow;
        after.log.level = "debug".into();
        after.plans.get_mut("free").unwrap().concurrency = 3;
        after.plans.get_mut("free").unwrap().signup_credits = crate::credits::Credits::whole(9);
        after.workers = 7;
        after.plans.insert("pro".into(), crate::config::Plan::default());
        let found = outcome(&before, &after);
        assert_eq!(found.applied, ["enforcement.mode", "log.level", "plans.free.concurrency"]);
        assert_eq!(found.waiting, ["plans.free.signup_credits", "plans.pro", "workers"]);
        let next = with_live_settings(&before, &after);
        assert_eq!((next.workers, next.enforcement.mode), (before.workers, Mode::Shadow));
        assert!(!next.plans.contains_key("pro"));
    }

    /// What changes while the gateway runs; all else waits for a restart.
    const LIVE: &[&str] = &[
        "enforcement.mode",
        "enforcement.percent",
        "experiments.trial.active",
        "flags.new",
        "flags.new.enabled",
        "flags.new.percent",
        "flags.new.plans",
        "flags.new.users",
        "fraud.*",
        "log.level",
        "plans.*.concurrency",
        "plans.*.low_credits",
        "plans.*.low_percent",
        "plans.*.requests_per_minute",
        "plans.*.tokens_per_minute",
        "prices.*",
        "reports.*",
        "routes.*.price",
    ];
    /// Not shown, so nothing tells their names; or there is only one thing they can be.
    const UNSEEN: &[&str] = &["admin_token", "upstream.api_key", "stripe.secret_key", "stripe.webhook_secrets"];

    fn is_live(path: &str) -> bool {
        LIVE.iter().any(|live| match live.split_once('*') {
            None => *live == path,
            Some((group, name)) => path.starts_with(group) && path.ends_with(name),
        })
    }

    /// One of everything.
    fn complete() -> Config {
        let mut config = Config::default();
        config.flags.insert("new".into(), crate::config::Flag::default());
        let variant = crate::config::Variant { name: "a".into(), ..crate::config::Variant::default() };
        let experiment = crate::config::Experiment { variants: vec![variant], ..crate::config::Experiment::default() };
        config.experiments.insert("trial".into(), experiment);
        config.packs.insert("small".into(), crate::config::Pack::default());
        config.upstreams.insert("other".into(), crate::config::Upstream::default());
        config.issuers.insert("login".into(), crate::config::Issuer::default());
        let route =
            crate::config::Route { prefix: "/v1".into(), ..config.routes.values().next().cloned().unwrap_or_default() };
        config.routes.insert("openai".into(), route);
        config
    }

    fn leaves(path: &str, tree: &Value, found: &mut Vec<String>) {
        match tree {
            Value::Object(fields) if !fields.is_empty() => {
                for (name, value) in fields {
                    leaves(&format!("{path}/{name}"), value, found);
                }
            }
            _ => found.push(path.to_owned()),
        }
    }

    /// Other values that a setting might take.
    fn others(value: &Value) -> Vec<Value> {
        let words = [
            "x",
            "127.0.0.1:7",
            "shadow",
            "debug",
            "json",
            "anthropic",
            "openai",
            "drain",
            "void",
            "allow",
            "refuse",
            "credits",
            "nothing",
            "per_request",
            "year",
            "off",
            "7",
            "verify-full",
            "http",
        ];
        let mut others: Vec<Value> = match value {
            Value::Bool(value) => vec![(!value).into()],
            Value::Number(number) => vec![(number.as_u64().unwrap_or(0) + 1).into()],
            Value::Array(items) => {
                vec![serde_json::json!(["x"]), serde_json::json!([{}]), items.iter().skip(1).cloned().collect()]
            }
            _ => vec![7.into(), true.into(), serde_json::json!(["x"])],
        };
        others.extend(words.map(Value::from));
        others
    }

    /// Issue 5, point 7: each setting, changed alone, is taken over at once or named as waiting for a restart.
    #[test]
    fn every_setting_is_live_or_waits_and_says_so() {
        let before = complete();
        let tree = serde_json::to_value(&before).unwrap();
        let mut paths = Vec::new();
        leaves("", &tree, &mut paths);
        assert!(paths.len() > 150, "{} settings", paths.len());
        for pointer in paths {
            let path = pointer.trim_start_matches('/').replace('/', ".");
            let old = tree.pointer(&pointer).unwrap();
            let changed = others(old).into_iter().find_map(|other| {
                let mut tree = tree.clone();
                *tree.pointer_mut(&pointer).unwrap() = other;
                serde_json::from_value::<Config>(tree).ok().filter(|after| *after != before)
            });
            let Some(after) = changed else {
                assert!(UNSEEN.contains(&path.as_str()), "`{path}` could not be changed from {old}");
                continue;
            };
            let Outcome { applied, waiting } = outcome(&before, &after);
            let next = with_live_settings(&before, &after);
            if is_live(&path) {
                assert!(!applied.is_empty() && waiting.is_empty(), "`{path}`: {applied:?}, {waiting:?}");
                assert_eq!(next, after, "`{path}` is taken over");
            } else {
                let told = waiting == ["a secret"] || waiting.iter().any(|name| name.starts_with(&path));
                assert!(applied.is_empty() && told, "`{path}`: {applied:?}, {waiting:?}");
                assert_eq!(next, before, "`{path}` stays as it was");
            }
        }
    }

    #[test]
    fn weights_of_variants_are_live_and_their_terms_are_not() {
        let before = complete();
        let mut after = before.clone();
        after.experiments.get_mut("trial").unwrap().variants[0].weight = 9;
        let found = outcome(&before, &after);
        assert_eq!(
            (found.applied.as_slice(), found.waiting.len()),
            (&["experiments.trial.variants".to_owned()][..], 0)
        );
        after.experiments.get_mut("trial").unwrap().variants[0].credits = Some(crate::credits::Credits::whole(3));
        assert_eq!(outcome(&before, &after).waiting, ["experiments.trial.variants"]);
    }

    #[test]
    fn a_secret_that_changed_waits_without_being_told() {
        let before = Config::default();
        let mut after = before.clone();
        after.admin_token = Some(Secret::new("one"));
        let after_that = Config { admin_token: Some(Secret::new("two")), ..after.clone() };
        assert_eq!(outcome(&after, &after_that).waiting, ["a secret"]);
        assert_eq!(outcome(&before, &before), Outcome { applied: vec![], waiting: vec![] });
    }

    #[test]
    fn new_prices_that_do_not_fit_old_routes_are_refused() {
        let running = Config::default();
        let mut fresh = running.clone();
        fresh.prices.clear();
        fresh.routes.clear();
        assert!(with_live_settings(&running, &fresh).check().is_err());
    }
}
