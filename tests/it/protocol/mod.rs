//! The protocol between ledger and store, as a model: loss, reopening, flushers, workers that remember.
//!
//! failures 5, 15, 28, 46, 47: a balance seeded twice, from a stale value, drifting, charged twice, brought back.

mod check;
mod model;

use check::{explore, walk};
use model::{ALL, Guards, Scope};

const SMALL: Scope = Scope {
    requests: [1, 1],
    change: false,
    losses: 1,
    lost_replies: 0,
    crashes: 0,
    fences: 0,
    flushers: 1,
    reopeners: 1,
    guards: ALL,
};

fn scopes() -> Vec<(&'static str, Scope)> {
    vec![
        ("no loss", Scope { losses: 0, lost_replies: 1, fences: 1, flushers: 2, ..SMALL }),
        ("one loss", Scope { lost_replies: 1, ..SMALL }),
        ("a loss and a death", Scope { requests: [1, 0], crashes: 1, ..SMALL }),
        ("two flushers and two reopeners", Scope { requests: [1, 0], flushers: 2, reopeners: 2, ..SMALL }),
        ("a loss and a change", Scope { requests: [1, 0], change: true, lost_replies: 1, ..SMALL }),
        ("a loss and a fence", Scope { requests: [1, 0], change: true, lost_replies: 1, fences: 1, ..SMALL }),
        ("two losses", Scope { requests: [1, 0], losses: 2, ..SMALL }),
    ]
}

#[test]
fn every_state_of_a_small_scope_is_right() {
    for (name, scope) in scopes() {
        let begun = std::time::Instant::now();
        match explore(&scope) {
            Ok(states) => println!("{name}: {states} states, {:?}", begun.elapsed()),
            Err(reason) => panic!("{name}: {reason}"),
        }
    }
}

/// Large scopes, not all of them. `FAREGATE_PROPERTY_CASES` sets how many walks.
#[test]
fn random_walks_stay_right() {
    let cases = std::env::var("FAREGATE_PROPERTY_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(3_000);
    let large = Scope {
        requests: [3, 2],
        change: true,
        losses: 2,
        lost_replies: 2,
        crashes: 2,
        fences: 1,
        flushers: 2,
        reopeners: 2,
        guards: ALL,
    };
    for seed in 0..cases {
        walk(&large, seed).unwrap_or_else(|reason| panic!("{reason}"));
    }
}

/// Larger scopes, for torture: minutes.
#[test]
fn every_state_of_a_larger_scope_is_right() {
    let rounds = std::env::var("FAREGATE_FAULT_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(5);
    if rounds < 100 {
        return;
    }
    for scope in [
        Scope { crashes: 1, lost_replies: 1, ..SMALL },
        Scope { requests: [1, 0], losses: 2, crashes: 1, lost_replies: 1, flushers: 2, reopeners: 2, ..SMALL },
        Scope { requests: [2, 0], change: true, losses: 1, crashes: 1, lost_replies: 1, fences: 1, ..SMALL },
    ] {
        let states = explore(&scope).unwrap_or_else(|reason| panic!("{reason}"));
        println!("{states} states");
    }
}

fn is_missed(name: &str, guards: Guards, scope: Scope) {
    let Err(reason) = explore(&Scope { guards, ..scope }) else { panic!("nobody misses: {name}") };
    println!("without {name}: {}", reason.lines().next().unwrap_or_default());
}

/// The check finds what each guard is there for.
#[test]
fn every_guard_is_missed() {
    let reply = Scope { lost_replies: 1, ..SMALL };
    is_missed("the ring", Guards { ring: false, ..ALL }, SMALL);
    is_missed("the stored number", Guards { stored_number: false, ..ALL }, SMALL);
    let fence = Scope { requests: [1, 0], change: true, lost_replies: 1, fences: 1, ..SMALL };
    is_missed("the stored number of a fenced session", Guards { fenced: false, ..ALL }, fence);
    is_missed("the survivors' numbers", Guards { survivors: false, ..ALL }, SMALL);
    is_missed("the closed shard", Guards { close: false, ..ALL }, Scope { crashes: 1, ..SMALL });
    let two = Scope { requests: [1, 0], losses: 2, reopeners: 2, ..SMALL };
    is_missed("the epoch of the closed shard", Guards { binding: false, ..ALL }, two);
    is_missed("the raised epoch", Guards { raise: false, ..ALL }, Scope { requests: [2, 0], ..SMALL });
    is_missed("the mark at the cursor", Guards { mark: false, ..ALL }, reply);
}
