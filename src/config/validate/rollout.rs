//! Enforcement, flags and experiments.

use std::collections::{BTreeMap, BTreeSet};

use super::Findings;
use crate::config::{Config, Experiment, Plan};

const MAX_WEIGHT: u32 = 1_000_000;
const MAX_VARIANTS: usize = 20;
const MAX_FLAGS: usize = 200;
const MAX_FLAG_USERS: usize = 1_000;
/// Longest name of a flag, experiment or variant.
const MAX_NAME: usize = 64;

pub(super) fn rollout(config: &Config, found: &mut Findings) {
    fraud(config, found);
    found.check(config.enforcement.percent <= 100, "enforcement.percent", "must be at most 100");
    found.check(config.flags.len() <= MAX_FLAGS, "flags", format!("must be at most {MAX_FLAGS}"));
    for (name, flag) in &config.flags {
        let path = format!("flags.{name}");
        found.check(plain(name), &path, format!("must be named by a-z, 0-9 and _, at most {MAX_NAME} of them"));
        found.check(flag.percent <= 100, format!("{path}.percent"), "must be at most 100");
        let known = flag.plans.iter().all(|plan| config.plans.contains_key(plan));
        found.check(known, format!("{path}.plans"), "names a plan that is not there");
        let few = flag.users.len() <= MAX_FLAG_USERS;
        found.check(few, format!("{path}.users"), format!("must be at most {MAX_FLAG_USERS}"));
    }
    let mut plans = BTreeMap::new();
    for (name, experiment) in &config.experiments {
        let path = format!("experiments.{name}");
        found.check(plain(name), &path, format!("must be named by a-z, 0-9 and _, at most {MAX_NAME} of them"));
        let Some(plan) = config.plans.get(&experiment.plan) else {
            found.add(format!("{path}.plan"), "names no plan");
            continue;
        };
        found.check(!plan.prices.is_empty(), format!("{path}.plan"), "names a plan that is not sold");
        // A user can see one price of a plan only.
        if experiment.active
            && let Some(other) = plans.insert(&experiment.plan, name)
        {
            found.add(format!("{path}.plan"), format!("is that of experiments.{other}, which is active too"));
        }
        variants(&path, experiment, plan, found);
    }
}

fn fraud(config: &Config, found: &mut Findings) {
    let fraud = &config.fraud;
    found.time("fraud.interval_ms", fraud.interval_ms);
    let scores = [
        ("warn_score", fraud.warn_score),
        ("hold_score", fraud.hold_score),
        ("freeze_score", fraud.freeze_score),
        ("burst_score", fraud.burst_score),
        ("farmed_score", fraud.farmed_score),
        ("spending_score", fraud.spending_score),
        ("card_score", fraud.card_score),
        ("warning_score", fraud.warning_score),
        ("risk_from", fraud.risk_from),
        ("risk_weight_percent", fraud.risk_weight_percent),
    ];
    for (name, score) in scores {
        found.check(score <= 100, format!("fraud.{name}"), "must be at most 100");
    }
    found.check((8..=32).contains(&fraud.block_bits_v4), "fraud.block_bits_v4", "must be from 8 to 32");
    found.check((16..=128).contains(&fraud.block_bits_v6), "fraud.block_bits_v6", "must be from 16 to 128");
    found.positive("fraud.burst_accounts", fraud.burst_accounts);
    found.positive("fraud.farmed_accounts", fraud.farmed_accounts);
    found.positive("fraud.card_accounts", fraud.card_accounts);
    found.positive("fraud.spending_factor", fraud.spending_factor);
    found.check((1..=1_440).contains(&fraud.burst_minutes), "fraud.burst_minutes", "must be from 1 to 1440");
    found.check((1..=365).contains(&fraud.farmed_days), "fraud.farmed_days", "must be from 1 to 365");
}

fn variants(path: &str, experiment: &Experiment, plan: &Plan, found: &mut Findings) {
    let count = (2..=MAX_VARIANTS).contains(&experiment.variants.len());
    found.check(count, format!("{path}.variants"), format!("must be 2 to {MAX_VARIANTS}"));
    let weights: u64 = experiment.variants.iter().map(|variant| u64::from(variant.weight)).sum();
    found.check(weights > 0, format!("{path}.variants"), "must not all have the weight 0");
    let mut names = BTreeSet::new();
    for (index, variant) in experiment.variants.iter().enumerate() {
        let path = format!("{path}.variants.{index}");
        let fresh = names.insert(&variant.name);
        found.check(
            plain(&variant.name) && fresh,
            format!("{path}.name"),
            "must be a name of a-z, 0-9 and _ of its own",
        );
        found.check(variant.weight <= MAX_WEIGHT, format!("{path}.weight"), format!("must be at most {MAX_WEIGHT}"));
        let told = variant.credits.is_none_or(|credits| credits == plan.credits) || !variant.prices.is_empty();
        let why = "needs prices of its own: what a payment brings is known from its price";
        found.check(told, format!("{path}.credits"), why);
    }
}

fn plain(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(allowed)
}
