//! Who may vouch for users.

use std::collections::BTreeMap;

use super::{Findings, listed};
use crate::config::{Config, Issuer, Stack};
use crate::ledger::AccountId;

/// Longer prefixes leave no room for an id.
const MAX_PREFIX_CHARS: usize = 32;
const MAX_AUDIENCES: usize = 32;

pub(super) fn issuers(config: &Config, found: &mut Findings) {
    let tokens = &config.tokens;
    let known = listed(config.plans.keys());
    let plan = config.plans.contains_key(&tokens.plan);
    found.check(plan, "tokens.plan", format!("names no plan; there are {known}"));
    found.time("tokens.jwks_max_age_ms", tokens.jwks_max_age_ms);
    found.time("tokens.jwks_min_interval_ms", tokens.jwks_min_interval_ms);
    found.time("tokens.jwks_timeout_ms", tokens.jwks_timeout_ms);
    stack(&config.stack, found);
    // Two issuers whose users have the same ids could speak for each other's.
    let mut prefixes: BTreeMap<&str, &str> = BTreeMap::new();
    if !config.stack.project_id.is_empty() {
        prefixes.insert("", "stack");
    }
    for (name, issuer) in &config.issuers {
        self::issuer(&format!("issuers.{name}"), issuer, found);
        if let Some(other) = prefixes.insert(&issuer.user_prefix, name) {
            found.add(
                format!("issuers.{name}.user_prefix"),
                format!("is that of {other} too: their users could not be told apart"),
            );
        }
    }
}

fn stack(stack: &Stack, found: &mut Findings) {
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    found.check(plain(&stack.project_id), "stack.project_id", "must be the id of a project, as its dashboard shows it");
    found.check(url(&stack.base_url), "stack.base_url", "must be https://HOST, without a user or a query");
    let right = stack.webhook_secrets.iter().all(|secret| {
        let text = secret.reveal();
        text.starts_with("whsec_") && text.bytes().all(|byte| byte.is_ascii_graphic())
    });
    found.check(right, "stack.webhook_secrets", "must each be a signing secret: whsec_…");
    let of_a_project = stack.webhook_secrets.is_empty() || !stack.project_id.is_empty();
    found.check(of_a_project, "stack.project_id", "is missing: webhooks are about a project's users");
    found.time("stack.tolerance_ms", stack.tolerance_ms);
    found.positive("stack.max_webhook_bytes", stack.max_webhook_bytes);
    found.check((1..=100).contains(&stack.max_attempts), "stack.max_attempts", "must be from 1 to 100");
}

fn issuer(path: &str, issuer: &Issuer, found: &mut Findings) {
    found.check(!issuer.issuer.is_empty(), format!("{path}.issuer"), "must be as the tokens name it (iss)");
    found.check(url(&issuer.jwks_url), format!("{path}.jwks_url"), "must be https://HOST/PATH, without a user");
    let audiences = &issuer.audiences;
    let named = (1..=MAX_AUDIENCES).contains(&audiences.len()) && audiences.iter().all(|name| !name.is_empty());
    // Without one, any token that this issuer ever made for anybody would open the gate.
    found.check(named, format!("{path}.audiences"), "must name the audiences (aud) whose tokens are taken");
    let prefix = &issuer.user_prefix;
    let usable = prefix.is_empty() || (prefix.len() <= MAX_PREFIX_CHARS && AccountId::is_valid(prefix));
    found.check(usable, format!("{path}.user_prefix"), "must be at most 32 of the characters that ids have");
    // No id of a user has a colon but after a prefix.
    let apart = prefix.is_empty() || prefix.ends_with(':');
    found.check(apart, format!("{path}.user_prefix"), "must end with a colon, such as login:");
}

fn url(text: &str) -> bool {
    let Ok(url) = text.parse::<http::Uri>() else { return false };
    let scheme = url.scheme_str().is_some_and(|scheme| ["http", "https"].contains(&scheme));
    scheme && url.authority().is_some_and(|part| !part.as_str().contains('@'))
}
