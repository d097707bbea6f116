//! The ledgers against the model: the same random operations, and the same answers, events and balances.
//!
//! `FAREGATE_PROPERTY_CASES` says how many sequences are run (default 10,000). A failure prints the seed of its
//! sequence, cut down to the steps that matter; `FAREGATE_PROPERTY_SEED` runs that sequence alone.

mod driver;
mod embedded;
mod many_grants;
mod many_sessions;
mod model;
mod redis;
mod restored;
mod runner;
mod steps;

pub(crate) use driver::Driver;

use embedded::Embedded;
use model::Model;
use steps::Step;

const CASES: u64 = 10_000;

/// Runs random sequences on the model and on `driver`; panics with the seed and the shortest failing sequence found.
pub(crate) fn check(driver: &mut dyn Driver) {
    check_share(driver, 1);
}

/// As [`check`], with a share of the sequences.
fn check_share(driver: &mut dyn Driver, share: u64) {
    let setting = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a whole number"));
    if let Some(seed) = setting("FAREGATE_PROPERTY_SEED") {
        return case(driver, seed);
    }
    let first: u64 = rand::random::<u64>() >> 16;
    for seed in first..first + setting("FAREGATE_PROPERTY_CASES").unwrap_or(CASES) / share {
        case(driver, seed);
    }
}

fn case(driver: &mut dyn Driver, seed: u64) {
    let steps = steps::sequence(seed);
    let Err(failure) = attempt(driver, &steps) else { return };
    let (steps, failure) = shrink(driver, steps, failure);
    let steps: Vec<String> = steps.iter().map(|step| format!("  {step:?}")).collect();
    panic!("{}: FAREGATE_PROPERTY_SEED={seed}\n{failure}\nsteps:\n{}", driver.name(), steps.join("\n"));
}

/// A panic is a failure like any other: it is shrunk, and its seed is told.
fn attempt(driver: &mut dyn Driver, steps: &[Step]) -> Result<(), String> {
    let run = std::panic::AssertUnwindSafe(|| runner::run(driver, steps));
    std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned())
    })
}

/// Leaves out whatever can be left out, ever smaller pieces at a time.
fn shrink(driver: &mut dyn Driver, mut steps: Vec<Step>, mut failure: String) -> (Vec<Step>, String) {
    let mut piece = steps.len().div_ceil(2);
    while piece > 0 {
        let mut start = 0;
        while start < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(start..(start + piece).min(steps.len()));
            match attempt(driver, &fewer) {
                Err(shorter) => (steps, failure) = (fewer, shorter),
                Ok(()) => start += piece,
            }
        }
        piece /= 2;
    }
    for index in 0..steps.len() {
        shrink_batch(driver, &mut steps, &mut failure, index);
    }
    (steps, failure)
}

fn shrink_batch(driver: &mut dyn Driver, steps: &mut Vec<Step>, failure: &mut String, index: usize) {
    let mut op = 0;
    while let Some(Step::Batch { slot, ops, lost }) = steps.get(index).cloned() {
        if op >= ops.len() {
            return;
        }
        let mut fewer = steps.clone();
        let mut left = ops;
        left.remove(op);
        fewer[index] = Step::Batch { slot, ops: left, lost };
        match attempt(driver, &fewer) {
            Err(shorter) => (*steps, *failure) = (fewer, shorter),
            Ok(()) => op += 1,
        }
    }
}

/// The model against itself: the harness keeps its own books, so this checks that the model's balance.
#[test]
fn the_model_keeps_its_books() {
    check(&mut Model::default());
}

#[test]
fn the_embedded_ledger_does_as_the_model_does() {
    check(&mut Embedded::new());
}
