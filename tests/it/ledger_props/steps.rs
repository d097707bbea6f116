//! Random sequences: steps that mean something whatever came before, so that any of them can be left out.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub(crate) const ACCOUNTS: usize = 3;
pub(crate) const SLOTS: usize = 3;
const SECOND: u64 = 1_000_000;

#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// One batch of a worker; its reply is lost so many times.
    Batch {
        slot: usize,
        ops: Vec<Draft>,
        lost: u8,
    },
    /// A sweeper fences a worker's session; `stale`: it saw an older number.
    Fence {
        slot: usize,
        stale: bool,
    },
    /// A sweeper gives back what a slot's dead sessions still hold.
    Abandon {
        slot: usize,
    },
    Pass {
        us: u64,
    },
}

/// An operation before it is known which hold, change or ticket it will name.
#[derive(Debug, Clone)]
pub(crate) enum Draft {
    Reserve { account: usize, amount: i64, floor: i64, tokens: u64, limits: [u64; 3] },
    Extend { hold: usize, more: i64, floor: i64 },
    Shrink { hold: usize },
    Settle { hold: usize, percent: i64, tokens_back_us: u64, again: bool },
    Release { hold: usize, tokens_back_us: u64, again: bool },
    Charge { account: usize, actual: i64, must: bool, record: Option<(u8, u64)> },
    Hold { account: usize, record: u8, fingerprint: u64, amount: i64, seconds: u64, must: bool },
    SettleHold { account: usize, record: u8, actual: i64, must: bool },
    ReleaseHold { account: usize, record: u8, expired_only: bool },
    Grant { account: usize, kind: u8, amount: i64, lives_us: Option<u64>, skew: i64 },
    Revoke { account: usize, grant: u64, amount: Option<i64> },
    Rollover { account: usize, from: u64, cap: i64, lives_us: Option<u64> },
    Freeze { account: usize, grant: Option<u64>, frozen: bool },
    Ticket { account: usize, ticket: u64 },
    Load { account: usize, ticket: u64 },
    Park { account: usize, behind: bool },
    Sweep { account: usize },
    Balance { account: usize },
}

/// The sequence of a seed.
pub(crate) fn sequence(seed: u64) -> Vec<Step> {
    let mut random = StdRng::seed_from_u64(seed);
    let random = &mut random;
    let mut steps = Vec::new();
    for account in 0..ACCOUNTS {
        // Now and then the first operations find an account that nobody loaded.
        if random.random_ratio(9, 10) {
            let mut ops = vec![Draft::Ticket { account, ticket: 1 }, Draft::Load { account, ticket: 1 }];
            ops.push(Draft::Grant { account, kind: 1, amount: random.random_range(1..200), lives_us: None, skew: 0 });
            steps.push(Step::Batch { slot: 0, ops, lost: 0 });
        }
    }
    let length = random.random_range(5..40);
    steps.extend((0..length).map(|_| step(random)));
    steps
}

fn step(random: &mut StdRng) -> Step {
    let slot = random.random_range(0..SLOTS);
    match random.random_range(0..20) {
        0 => Step::Fence { slot, stale: random.random_ratio(1, 4) },
        1 => Step::Abandon { slot },
        2..=4 => Step::Pass { us: pass(random) },
        _ => {
            let count = if random.random_ratio(1, 2) { 1 } else { random.random_range(1..8) };
            let ops = (0..count).map(|_| draft(random)).collect();
            let lost = if random.random_ratio(1, 6) { random.random_range(1..3) } else { 0 };
            Step::Batch { slot, ops, lost }
        }
    }
}

fn pass(random: &mut StdRng) -> u64 {
    match random.random_range(0..10) {
        0..=3 => random.random_range(0..SECOND),
        4..=6 => random.random_range(0..20 * SECOND),
        7..=8 => random.random_range(0..130 * SECOND),
        _ => 25 * 3600 * SECOND,
    }
}

fn draft(random: &mut StdRng) -> Draft {
    let account = random.random_range(0..ACCOUNTS);
    let hold = random.random_range(0..1 << 16);
    let record = random.random_range(0..3);
    match random.random_range(0..40) {
        0..=9 => {
            let amount = amount(random, 60);
            let floor = if random.random_ratio(1, 2) { amount } else { random.random_range(0..=amount) };
            let limit =
                |random: &mut StdRng, max: u64| if random.random_ratio(1, 3) { random.random_range(1..max) } else { 0 };
            let limits = [limit(random, 6), limit(random, 200), limit(random, 4)];
            Draft::Reserve { account, amount, floor, tokens: random.random_range(0..90), limits }
        }
        10..=11 => {
            let more = amount(random, 40);
            Draft::Extend { hold, more, floor: random.random_range(0..=more) }
        }
        12 => Draft::Shrink { hold },
        13..=17 => Draft::Settle {
            hold,
            percent: random.random_range(0..200),
            tokens_back_us: tokens_back(random),
            again: random.random_ratio(1, 20),
        },
        18..=19 => Draft::Release { hold, tokens_back_us: tokens_back(random), again: random.random_ratio(1, 20) },
        20..=22 => {
            let record = random.random_ratio(1, 2).then(|| (record, random.random_range(1..3)));
            Draft::Charge { account, actual: amount(random, 50), must: random.random(), record }
        }
        23..=24 => Draft::Hold {
            account,
            record,
            fingerprint: random.random_range(1..3),
            amount: amount(random, 40),
            seconds: random.random_range(0..60),
            must: random.random_ratio(1, 4),
        },
        25 => Draft::SettleHold { account, record, actual: amount(random, 60), must: random.random_ratio(1, 4) },
        26 => Draft::ReleaseHold { account, record, expired_only: random.random() },
        27..=29 => Draft::Grant {
            account,
            kind: random.random_range(0..5),
            amount: amount(random, 120),
            lives_us: lives(random),
            skew: if random.random_ratio(1, 5) { random.random_range(-2..3) } else { 0 },
        },
        30..=31 => {
            let part = random.random_ratio(1, 2).then(|| random.random_range(0..150));
            Draft::Revoke { account, grant: random.random_range(1..8), amount: part }
        }
        32 => Draft::Rollover {
            account,
            from: random.random_range(1..8),
            cap: random.random_range(0..60),
            lives_us: lives(random),
        },
        33 => {
            let grant = random.random_ratio(1, 2).then(|| random.random_range(1..8));
            Draft::Freeze { account, grant, frozen: random.random_ratio(2, 5) }
        }
        34 => Draft::Ticket { account, ticket: random.random_range(1..3) },
        35 => Draft::Load { account, ticket: random.random_range(1..3) },
        36..=37 => Draft::Park { account, behind: random.random_ratio(1, 6) },
        38 => Draft::Sweep { account },
        _ => Draft::Balance { account },
    }
}

/// Mostly small, so that balances run out; now and then at the edge of what can be counted.
fn amount(random: &mut StdRng, usual: i64) -> i64 {
    match random.random_range(0..200) {
        0 => (1 << 53) - 1 - random.random_range(0..3),
        1 => random.random_range(0..1 << 53),
        _ => random.random_range(0..usual),
    }
}

fn lives(random: &mut StdRng) -> Option<u64> {
    random.random_ratio(1, 2).then(|| random.random_range(0..100 * SECOND))
}

fn tokens_back(random: &mut StdRng) -> u64 {
    if random.random_ratio(1, 3) { random.random_range(0..20 * SECOND) } else { 0 }
}
