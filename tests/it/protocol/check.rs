//! Explores the model: every state of a small scope, breadth first, so that what goes wrong is shown by a shortest way;
//! and random walks through larger ones.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::model::{Scope, State, Step};

/// States of one exploration.
const STATES_MAX: usize = 8_000_000;
/// Steps of one walk.
const WALK_MAX: usize = 400;

/// Visits every state. Answers how many there are, or a shortest way to one that must not be.
pub(super) fn explore(scope: &Scope) -> Result<usize, String> {
    let first = State::first(scope);
    // By fingerprint: where it was come from. Two states with one fingerprint would hide each other: at 64 bits, not here.
    let mut seen: HashMap<u64, (u64, Option<Step>)> = HashMap::from([(print(&first), (0, None))]);
    let mut open = VecDeque::from([first]);
    while let Some(state) = open.pop_front() {
        let at = print(&state);
        let wrong = |reason: String| format!("{reason}\n{}\n{state:#?}", way(&seen, at));
        state.check().map_err(wrong)?;
        let mut nexts = state.regular(&scope.guards);
        if nexts.is_empty() {
            state.check_end(scope).map_err(wrong)?;
        }
        nexts.extend(state.faults(&scope.guards));
        for (step, next) in nexts {
            let fingerprint = print(&next);
            if let std::collections::hash_map::Entry::Vacant(place) = seen.entry(fingerprint) {
                place.insert((at, Some(step)));
                open.push_back(next);
            }
        }
        assert!(seen.len() < STATES_MAX, "the scope is too large");
    }
    Ok(seen.len())
}

/// Walks at random, until nobody has anything left to do.
pub(super) fn walk(scope: &Scope, seed: u64) -> Result<(), String> {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut state = State::first(scope);
    let mut steps = Vec::new();
    for _ in 0..WALK_MAX {
        let mut next = state.regular(&scope.guards);
        let wrong = |reason: String| format!("{reason}\nseed {seed}: {steps:?}\n{state:#?}");
        state.check().map_err(wrong)?;
        if next.is_empty() {
            return state.check_end(scope).map_err(wrong);
        }
        next.extend(state.faults(&scope.guards));
        // Xorshift: chance enough, and the same walk from the same seed anywhere.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let (step, chosen) = next.swap_remove((random >> 11) as usize % next.len());
        steps.push(step);
        state = chosen;
    }
    Ok(())
}

fn print(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

fn way(seen: &HashMap<u64, (u64, Option<Step>)>, mut at: u64) -> String {
    let mut steps = Vec::new();
    while let Some((before, Some(step))) = seen.get(&at) {
        steps.push(format!("{step:?}"));
        at = *before;
    }
    steps.reverse();
    steps.join("\n")
}
