//! Plans and packs that are sold, and the way to Stripe.

use std::collections::BTreeMap;

use super::Findings;
use crate::config::{Config, Interval, Pack, Plan, Secret, key_mode};

/// Stripe's own bound on an amount: eight digits of minor units.
const MAX_AMOUNT: i64 = 99_999_999;
/// Stripe's longest trial.
const MAX_TRIAL_DAYS: u32 = 730;
const MAX_GRACE_DAYS: u32 = 90;
const MAX_PACK_DAYS: u32 = 3_650;
const MAX_PRICES: usize = 100;
const MAX_RETRIES: u32 = 10;

pub(super) fn billing(config: &Config, found: &mut Findings) {
    let mut ids = BTreeMap::new();
    for (name, plan) in &config.plans {
        self::plan(&format!("plans.{name}"), plan, &mut ids, found);
    }
    for (name, experiment) in &config.experiments {
        for (index, variant) in experiment.variants.iter().enumerate() {
            let path = format!("experiments.{name}.variants.{index}");
            let credits = variant.credits.or_else(|| Some(config.plans.get(&experiment.plan)?.credits));
            let (credits, prices) = (credits.unwrap_or_default(), variant.prices.clone());
            self::plan(&path, &Plan { credits, prices, ..Plan::default() }, &mut ids, found);
        }
    }
    for (name, pack) in &config.packs {
        self::pack(&format!("packs.{name}"), pack, &mut ids, found);
    }
    stripe(config, found);
}

/// Where each price id was seen first: two things of one price could not be told apart when they are paid.
type Ids = BTreeMap<String, String>;

fn plan(path: &str, plan: &Plan, ids: &mut Ids, found: &mut Findings) {
    let days = |most: u32| format!("must be at most {most}");
    found.check(plan.trial_days <= MAX_TRIAL_DAYS, format!("{path}.trial_days"), days(MAX_TRIAL_DAYS));
    found.check(plan.grace_days <= MAX_GRACE_DAYS, format!("{path}.grace_days"), days(MAX_GRACE_DAYS));
    let sold = plan.prices.is_empty() || !plan.credits.is_zero();
    found.check(sold, format!("{path}.credits"), "is missing: a plan that is sold gives credits each month");
    found.check(plan.prices.len() <= MAX_PRICES, format!("{path}.prices"), days(MAX_PRICES as u32));
    let mut offers: BTreeMap<(&str, Interval), usize> = BTreeMap::new();
    for (index, price) in plan.prices.iter().enumerate() {
        let at = format!("{path}.prices.{index}");
        self::price(&at, &price.id, &price.currency, price.amount, ids, found);
        let other = offers.insert((&price.currency, price.interval), index);
        found.check(other.is_none(), at, "is for a currency and an interval that have a price already");
    }
}

fn pack(path: &str, pack: &Pack, ids: &mut Ids, found: &mut Findings) {
    found.check(!pack.credits.is_zero(), format!("{path}.credits"), "must be above 0");
    let days = pack.expires_after_days <= MAX_PACK_DAYS;
    found.check(days, format!("{path}.expires_after_days"), format!("must be at most {MAX_PACK_DAYS}; 0 means never"));
    found.check(pack.prices.len() <= MAX_PRICES, format!("{path}.prices"), format!("must be at most {MAX_PRICES}"));
    let mut offers: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, price) in pack.prices.iter().enumerate() {
        let at = format!("{path}.prices.{index}");
        self::price(&at, &price.id, &price.currency, price.amount, ids, found);
        found.check(offers.insert(&price.currency, index).is_none(), at, "is for a currency that has a price already");
    }
}

fn price(path: &str, id: &str, currency: &str, amount: i64, ids: &mut Ids, found: &mut Findings) {
    let named = !id.is_empty() && id.len() <= 255 && id.bytes().all(|byte| byte.is_ascii_graphic());
    found.check(named, format!("{path}.id"), "must be the id of a price at Stripe, such as price_…");
    let iso = currency.len() == 3 && currency.bytes().all(|byte| byte.is_ascii_lowercase());
    found.check(iso, format!("{path}.currency"), "must be a currency in lower case, such as usd");
    let counted = (1..=MAX_AMOUNT).contains(&amount);
    found.check(counted, format!("{path}.amount"), format!("must be from 1 to {MAX_AMOUNT} of the smallest unit"));
    if named && let Some(other) = ids.insert(id.to_owned(), path.to_owned()) {
        found.add(format!("{path}.id"), format!("is that of {other} too"));
    }
}

fn stripe(config: &Config, found: &mut Findings) {
    let stripe = &config.stripe;
    let key = stripe.secret_key.as_ref().map(Secret::reveal);
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let known = key.is_none_or(|key| plain(key) && key_mode(key).is_some());
    found.check(known, "stripe.secret_key", "must be a secret key of Stripe's: sk_test_…, sk_live_… or rk_…");
    let secrets = &stripe.webhook_secrets;
    let right = secrets.iter().all(|secret| plain(secret.reveal()) && secret.reveal().starts_with("whsec_"));
    found.check(right, "stripe.webhook_secrets", "must each be a signing secret: whsec_…");
    let both = key.is_none() || !secrets.is_empty();
    found.check(both, "stripe.webhook_secrets", "is missing: without it nothing that Stripe tells can be believed");
    let url = |text: &str| {
        let url = text.parse::<http::Uri>().ok()?;
        let bare = url.query().is_none() && url.authority().is_some_and(|part| !part.as_str().contains('@'));
        let scheme = url.scheme_str().filter(|scheme| ["http", "https"].contains(scheme))?.to_owned();
        bare.then_some(scheme)
    };
    let scheme = url(&stripe.api_base);
    found.check(scheme.is_some(), "stripe.api_base", "must be https://HOST, without a user or a query");
    let exposed = stripe.livemode() == Some(true) && scheme.as_deref() == Some("http");
    found.check(!exposed, "stripe.api_base", "must be https:// for a live key");
    found.check(
        url(&stripe.return_url).is_some(),
        "stripe.return_url",
        "must be http://… or https://…, without a query",
    );
    let version = plain(&stripe.api_version);
    found.check(version, "stripe.api_version", "must be a version of Stripe's API, such as 2026-03-25.dahlia");
    found.time("stripe.tolerance_ms", stripe.tolerance_ms);
    found.time("stripe.timeout_ms", stripe.timeout_ms);
    found.time("stripe.reconcile_interval_ms", stripe.reconcile_interval_ms);
    found.check(stripe.max_retries <= MAX_RETRIES, "stripe.max_retries", format!("must be at most {MAX_RETRIES}"));
    found.check((1..=256).contains(&stripe.max_calls), "stripe.max_calls", "must be from 1 to 256");
    found.positive("stripe.max_webhook_bytes", stripe.max_webhook_bytes);
    found.check((1..=100).contains(&stripe.max_attempts), "stripe.max_attempts", "must be from 1 to 100");
}
