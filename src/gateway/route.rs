//! Which route a path belongs to, and what is worth having ready for each.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use prometheus::{Histogram, IntCounter};

use super::GatewayError;
use super::body::BodyLimits;
use super::breaker::RetryBudget;
use super::outcome::Outcome;
use super::target::Target;
use super::upstream::Upstream;
use crate::config::{self, Config, RouteKind};
use crate::pricing::{Price, PriceList};
use crate::telemetry::Metrics;

/// The name under which the upstream of routes that name none is known.
const DEFAULT_UPSTREAM: &str = "default";

/// A route, as all workers of the replica know it.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) settings: config::Route,
    pub(super) prices: PriceList,
    /// The price, where it is the same for every request.
    pub(super) flat: Option<Price>,
    pub(super) body: BodyLimits,
    pub(super) budget: Arc<RetryBudget>,
    pub(super) requests: [IntCounter; Outcome::ALL.len()],
    pub(super) added_latency: Histogram,
    pub(super) retries: IntCounter,
    /// Indices into the targets, in order of preference.
    upstreams: Vec<usize>,
    uncharged: Arc<AtomicU32>,
}

/// Leave for one request to ride while the ledger is out of reach.
#[derive(Debug)]
pub(super) struct Uncharged(Arc<AtomicU32>);

impl Drop for Uncharged {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Plan {
    pub(super) fn kind(&self) -> RouteKind {
        self.settings.kind
    }

    pub(super) fn count(&self, outcome: Outcome) {
        self.requests[outcome as usize].inc();
    }

    /// The same route at the prices that the settings have for it now.
    fn repriced(&self, config: &Config) -> Result<Plan, GatewayError> {
        let price = config.routes.get(&self.name).map_or(&self.settings.price, |route| &route.price);
        let unknown = || GatewayError::Unknown { route: self.name.clone(), what: price.clone() };
        let prices = PriceList::new(config.prices.get(price).ok_or_else(unknown)?)?;
        let settings = config::Route { price: price.clone(), ..self.settings.clone() };
        Ok(Plan { flat: prices.flat(), prices, settings, ..self.clone() })
    }

    /// `None`: as many as the route allows are out already.
    pub(super) fn uncharged(&self) -> Option<Uncharged> {
        let limit = self.settings.max_uncharged_requests;
        let more = |count: u32| (count < limit).then_some(count + 1);
        self.uncharged.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Uncharged(Arc::clone(&self.uncharged)))
    }
}

/// Routes and upstreams, checked; made once, before any worker.
#[derive(Debug)]
pub(super) struct Network {
    plans: Vec<Arc<Plan>>,
    targets: Vec<Arc<Target>>,
}

impl Network {
    pub(super) fn new(config: &Config, metrics: &Metrics) -> Result<Network, GatewayError> {
        let mut network = Network { plans: Vec::new(), targets: Vec::new() };
        for (name, settings) in &config.routes {
            let plan = network.plan(name, settings, config, metrics)?;
            network.plans.push(Arc::new(plan));
        }
        // The longest prefix comes first, so that the first that matches wins.
        network.plans.sort_by_key(|plan| std::cmp::Reverse(plan.settings.prefix.trim_end_matches('/').len()));
        Ok(network)
    }

    fn plan(
        &mut self,
        name: &str,
        settings: &config::Route,
        config: &Config,
        metrics: &Metrics,
    ) -> Result<Plan, GatewayError> {
        let unknown = |what: &str| GatewayError::Unknown { route: name.to_owned(), what: what.to_owned() };
        let price = config.prices.get(&settings.price).ok_or_else(|| unknown(&settings.price))?;
        let prices = PriceList::new(price)?;
        let mut names: Vec<&str> = settings.upstreams.iter().map(String::as_str).collect();
        if names.is_empty() {
            names.push(DEFAULT_UPSTREAM);
        }
        let mut upstreams = Vec::with_capacity(names.len());
        for upstream in names {
            let own = config.upstreams.get(upstream);
            let fallback = (upstream == DEFAULT_UPSTREAM).then_some(&config.upstream);
            let settings = own.or(fallback).ok_or_else(|| unknown(upstream))?;
            upstreams.push(self.target(upstream, settings, metrics)?);
        }
        let requests = Outcome::ALL.map(|outcome| metrics.requests.with_label_values(&[name, outcome.as_str()]));
        Ok(Plan {
            name: name.to_owned(),
            flat: prices.flat(),
            prices,
            body: BodyLimits {
                max_bytes: settings.max_body_bytes,
                idle: Duration::from_millis(config.server.body_idle_timeout_ms),
                total: Duration::from_millis(config.server.body_timeout_ms),
            },
            budget: Arc::new(RetryBudget::new(settings.retry_budget_percent)),
            requests,
            added_latency: metrics.added_latency.with_label_values(&[name]),
            retries: metrics.upstream_retries.with_label_values(&[name]),
            upstreams,
            uncharged: Arc::default(),
            settings: settings.clone(),
        })
    }

    fn target(&mut self, name: &str, settings: &config::Upstream, metrics: &Metrics) -> Result<usize, GatewayError> {
        if let Some(known) = self.targets.iter().position(|target| target.name == name) {
            return Ok(known);
        }
        self.targets.push(Arc::new(Target::new(name, settings, metrics)?));
        Ok(self.targets.len() - 1)
    }
}

/// A route in the hands of one worker.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) plan: Arc<Plan>,
    pub(super) upstreams: Vec<Rc<Upstream>>,
}

impl std::ops::Deref for Route {
    type Target = Plan;

    fn deref(&self) -> &Plan {
        &self.plan
    }
}

/// One worker's routes.
#[derive(Debug)]
pub(super) struct Routes {
    routes: Vec<Rc<Route>>,
    upstreams: Vec<Rc<Upstream>>,
}

impl Routes {
    pub(super) fn new(network: &Network, make: impl Fn(&Arc<Target>) -> Rc<Upstream>) -> Routes {
        let upstreams: Vec<Rc<Upstream>> = network.targets.iter().map(make).collect();
        let route = |plan: &Arc<Plan>| {
            let own = plan.upstreams.iter().filter_map(|index| upstreams.get(*index).cloned()).collect();
            Rc::new(Route { plan: Arc::clone(plan), upstreams: own })
        };
        Routes { routes: network.plans.iter().map(route).collect(), upstreams }
    }

    /// The same routes and upstreams at the prices of these settings.
    pub(super) fn repriced(&self, config: &Config) -> Result<Routes, GatewayError> {
        let route = |route: &Rc<Route>| {
            let plan = Arc::new(route.plan.repriced(config)?);
            Ok(Rc::new(Route { plan, upstreams: route.upstreams.clone() }))
        };
        let routes = self.routes.iter().map(route).collect::<Result<_, GatewayError>>()?;
        Ok(Routes { routes, upstreams: self.upstreams.clone() })
    }

    /// The route with the longest prefix that the path has, by whole segments.
    pub(super) fn find(&self, path: &str) -> Option<&Rc<Route>> {
        self.routes.iter().find(|route| under(path, &route.settings.prefix))
    }

    pub(super) fn upstreams(&self) -> &[Rc<Upstream>] {
        &self.upstreams
    }
}

/// Whether `path` is `prefix` or lies below it.
pub(super) fn under(path: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Paths that could leave a route's prefix, or that the gateway and an upstream might read differently.
pub(super) fn escapes(path: &str) -> bool {
    if !path.starts_with('/') {
        return true;
    }
    // Without these no path has a dot segment, in whatever spelling.
    if !path.bytes().any(|byte| matches!(byte, b'.' | b'%' | b'\\')) {
        return false;
    }
    if path.contains('\\') {
        return true;
    }
    // Servers that know parameters of segments read `..;x` as `..`; some decode slashes before they look for dots.
    let dots =
        |path: &str| path.split(['/', '\\']).any(|segment| matches!(segment.split(';').next(), Some("." | "..")));
    if !path.contains('%') {
        return dots(path);
    }
    let mut plain = path.to_ascii_lowercase();
    for (code, byte) in [("%2e", "."), ("%2f", "/"), ("%5c", "\\"), ("%3b", ";")] {
        plain = plain.replace(code, byte);
    }
    dots(&plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        let mut config = Config::default();
        config.upstream.url = "http://127.0.0.1:1".into();
        let route = |prefix: &str| config::Route { prefix: prefix.into(), ..config::Route::default() };
        config.routes.insert("tools".into(), route("/v1/tools/"));
        Network::new(&config, &Metrics::new().unwrap()).unwrap()
    }

    fn name(path: &str) -> Option<String> {
        let network = network();
        let plan = network.plans.iter().find(|plan| under(path, &plan.settings.prefix))?;
        Some(plan.name.clone())
    }

    #[test]
    fn the_longest_prefix_wins_on_whole_segments() {
        assert_eq!(name("/v1/chat/completions").as_deref(), Some("openai"));
        assert_eq!(name("/v1/messages").as_deref(), Some("anthropic"));
        assert_eq!(name("/v1/messages/count_tokens").as_deref(), Some("anthropic"));
        assert_eq!(name("/v1/messagesx").as_deref(), Some("openai"));
        assert_eq!(name("/v1/tools").as_deref(), Some("tools"));
        assert_eq!(name("/v1").as_deref(), Some("openai"));
        assert_eq!(name("/v12"), None);
        assert_eq!(name("/"), None);
    }

    #[test]
    fn dot_segments_do_not_leave_a_prefix() {
        for path in [
            "/a/../b",
            "/a/%2e%2e/b",
            "/a/.%2E/b",
            "/a/./b",
            "/a/..",
            "/a\\..\\b",
            "/a/..;/b",
            "/a/x%2F..%2fb",
            "/a/..%5Cb",
            "*",
            "host:443",
        ] {
            assert!(escapes(path), "{path}");
        }
        for path in ["/", "/a/b", "/a//b", "/a/...", "/a/b.json", "/%2fa", "/a;v=..", "/a/x%2fb"] {
            assert!(!escapes(path), "{path}");
        }
    }

    #[test]
    fn requests_that_ride_uncharged_are_bounded() {
        let network = network();
        let plan = &network.plans[0];
        let out: Vec<Uncharged> = std::iter::from_fn(|| plan.uncharged()).take(1_000).collect();
        assert_eq!(out.len(), 100);
        drop(out);
        assert!(plan.uncharged().is_some());
    }

    #[test]
    fn an_unknown_name_is_an_error() {
        let mut config = Config::default();
        config.upstream.url = "http://127.0.0.1:1".into();
        config.routes.insert("odd".into(), config::Route { price: "none".into(), ..config::Route::default() });
        let error = Network::new(&config, &Metrics::new().unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "route `odd` names `none`, which does not exist");
    }
}
