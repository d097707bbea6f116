//! What a start says on standard output: where it listens, and how to make the first request.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use super::demo_stripe::Built;
use crate::config::Config;

/// What is known once everything runs.
pub(super) struct Greeting<'a> {
    pub(super) config: &'a Config,
    pub(super) listener: SocketAddr,
    pub(super) admin: SocketAddr,
    /// Where the made admin token lies; `None` where the settings give one.
    pub(super) token_file: Option<&'a Path>,
    /// The demo user's key.
    pub(super) demo_key: Option<&'a str>,
    /// Nobody was created yet.
    pub(super) empty: bool,
    /// The built-in one.
    pub(super) stripe: Option<&'a Built>,
}

impl Greeting<'_> {
    pub(super) fn text(&self) -> String {
        let base = self.base();
        let mut out = format!("Faregate {} serves {base} ({})\n", env!("CARGO_PKG_VERSION"), self.mode());
        match self.demo_key {
            Some(key) => self.demo(&mut out, &base, key),
            None if self.empty => out.push_str(
                "\nNobody can call yet. A user with credits, and a key:\n\n    \
                 faregate user create ann\n    faregate key create ann\n",
            ),
            None => {}
        }
        if let (Some(key), Some(stripe)) = (self.demo_key, self.stripe) {
            self.payments(&mut out, &base, key, stripe);
        }
        let token = match self.token_file {
            Some(path) => format!("the token in {}", path.display()),
            None => "the token of your settings".to_owned(),
        };
        let _ = writeln!(out, "\nOperators: http://{} with /metrics, /readyz and, by {token}, /admin/v1", self.admin);
        out
    }

    fn demo(&self, out: &mut String, base: &str, key: &str) {
        let credits = self.config.plans.get("free").map(|plan| plan.signup_credits).unwrap_or_default();
        let insecure = if self.config.tls.certificate.is_some() { "--insecure " } else { "" };
        let _ = write!(
            out,
            "\nNo upstream is configured, so a built-in one answers, for demonstration. The user `demo` began with \
             {credits} credits; this is their key:\n\n    {key}\n\
             \nA first request:\n\n    \
             curl {insecure}{base}/v1/chat/completions -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \
             -d '{{\"model\":\"demo\",\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'\n\
             \nWith OpenAI's client for Python:\n\n    \
             client = OpenAI(base_url=\"{base}/v1\", api_key=\"{key}\")\n\
             \nIn front of a real service: FAREGATE_UPSTREAM_URL=https://… FAREGATE_UPSTREAM_API_KEY=… faregate\n"
        );
    }

    /// From a checkout to credits.
    fn payments(&self, out: &mut String, base: &str, key: &str, stripe: &Built) {
        let api = format!("{base}{}", self.config.api.prefix.trim_end_matches('/'));
        let (url, plan, pack) = (stripe.url(), &stripe.plan, &stripe.pack);
        let bearer = format!("-H 'Authorization: Bearer {key}'");
        let post = format!("{bearer} -H 'Content-Type: application/json' -d");
        let _ = write!(
            out,
            "\nA built-in Stripe stands at {url}; nothing there is real. Buy, pay on the page whose address comes back, and \
             look:\n\n    \
             curl {api}/billing/checkout {post} '{{\"plan\":\"{plan}\"}}'\n    \
             curl {api}/billing/checkout {post} '{{\"pack\":\"{pack}\"}}'\n    \
             curl {api}/credits/check {bearer}\n    \
             curl {api}/billing/subscription {bearer}\n\
             \nA month passes, with its renewal:\n\n    \
             curl -d days=31 {url}/_sim/advance\n"
        );
    }

    pub(super) fn base(&self) -> String {
        let scheme = if self.config.tls.certificate.is_some() { "https" } else { "http" };
        let address = match self.listener.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, self.listener.port())),
            IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, self.listener.port())),
            _ => self.listener,
        };
        format!("{scheme}://{address}")
    }

    fn mode(&self) -> String {
        let ledger = if self.config.ledger.url.is_empty() { "embedded ledger" } else { "ledger in Redis" };
        if self.config.store.url.is_empty() {
            return format!("{ledger}, SQLite in {}", self.config.data_dir.display());
        }
        format!("{ledger}, store in Postgres")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curl_line_stands_on_a_line_of_its_own() {
        let config = Config::default();
        let greeting = Greeting {
            config: &config,
            listener: "0.0.0.0:8080".parse().unwrap(),
            admin: "127.0.0.1:9090".parse().unwrap(),
            token_file: Some(Path::new("./faregate-data/admin-token")),
            demo_key: Some("fg_live_x"),
            empty: false,
            stripe: None,
        };
        let text = greeting.text();
        let curl = text.lines().find(|line| line.trim_start().starts_with("curl ")).unwrap();
        assert!(curl.contains("http://127.0.0.1:8080/v1/chat/completions"), "{curl}");
        assert!(curl.contains("Bearer fg_live_x'") && curl.ends_with("}'"), "{curl}");
        assert!(
            text.contains("client = OpenAI(base_url=\"http://127.0.0.1:8080/v1\", api_key=\"fg_live_x\")"),
            "{text}"
        );
        assert!(text.contains("./faregate-data/admin-token"), "{text}");
        let other = Greeting { demo_key: None, empty: true, ..greeting }.text();
        assert!(other.contains("faregate user create ann") && !other.contains("curl"), "{other}");
    }
}
