//! The ledger's counters, looked up once: an operation must not pay for labels.

use prometheus::{IntCounter, IntGauge};

use super::{Act, Answer, Parts};
use crate::credits::Credits;
use crate::telemetry::Metrics;

const OPERATIONS: [&str; 12] = [
    "reserve",
    "extend",
    "shrink",
    "settle",
    "release",
    "charge",
    "hold",
    "settle_hold",
    "release_hold",
    "apply",
    "load",
    "look",
];
const OUTCOMES: [&str; 3] = ["done", "refused", "repeated"];

/// Counts operations and the credits that they move. Every implementation of the ledger has one.
#[derive(Debug, Clone)]
pub struct Counters {
    operations: Vec<[IntCounter; 3]>,
    reserved: IntCounter,
    settled: IntCounter,
    released: IntCounter,
    abandoned: IntCounter,
    holds: IntGauge,
}

impl Counters {
    pub fn new(metrics: &Metrics) -> Counters {
        let credits = |what: &str| metrics.credits.with_label_values(&[what]);
        let operation =
            |op: &&str| OUTCOMES.map(|outcome| metrics.ledger_operations.with_label_values(&[*op, outcome]));
        Counters {
            operations: OPERATIONS.iter().map(operation).collect(),
            reserved: credits("reserved"),
            settled: credits("settled"),
            released: credits("released"),
            abandoned: credits("abandoned"),
            holds: metrics.holds_in_flight.clone(),
        }
    }

    /// One operation and its answer.
    pub fn count(&self, act: &Act, answer: &Answer) {
        let (op, outcome) = (operation(act), outcome(answer));
        if let Some(counter) = self.operations.get(op).and_then(|outcomes| outcomes.get(outcome)) {
            counter.inc();
        }
        match (act, answer) {
            (Act::Reserve { .. }, Answer::Reserved(reserved)) => {
                self.holds.inc();
                add(&self.reserved, total(&reserved.parts));
            }
            (Act::Extend { .. }, Answer::Reserved(reserved)) => add(&self.reserved, total(&reserved.parts)),
            (Act::Settle { parts, .. }, Answer::Settled { charged, .. }) => {
                self.holds.dec();
                add(&self.settled, *charged);
                add(&self.released, total(parts).saturating_sub(*charged));
            }
            (Act::Charge { .. } | Act::SettleHold { .. }, Answer::Settled { charged, .. }) => {
                add(&self.settled, *charged);
            }
            (Act::Release { parts, .. }, Answer::Released { .. }) => {
                self.holds.dec();
                add(&self.released, total(parts));
            }
            (Act::Shrink { parts, .. }, Answer::Released { .. }) => add(&self.released, total(parts)),
            (Act::Hold { .. }, Answer::Held { held, .. }) => add(&self.reserved, *held),
            _ => {}
        }
    }

    /// Micro-credits that went back from a dead session.
    pub fn abandoned(&self, micro: i64) {
        self.abandoned.inc_by(u64::try_from(micro).unwrap_or(0));
    }
}

fn add(counter: &IntCounter, credits: Credits) {
    counter.inc_by(credits.micro().unsigned_abs());
}

fn total(parts: &Parts) -> Credits {
    parts.iter().fold(Credits::ZERO, |sum, (_, part)| sum.saturating_add(*part))
}

fn operation(act: &Act) -> usize {
    match act {
        Act::Reserve { .. } => 0,
        Act::Extend { .. } => 1,
        Act::Shrink { .. } => 2,
        Act::Settle { .. } => 3,
        Act::Release { .. } => 4,
        Act::Charge { .. } => 5,
        Act::Hold { .. } => 6,
        Act::SettleHold { .. } => 7,
        Act::ReleaseHold { .. } => 8,
        Act::Apply { .. } => 9,
        Act::Ticket { .. } | Act::Load { .. } | Act::Park { .. } => 10,
        Act::Sweep | Act::Balance | Act::Recall { .. } => 11,
    }
}

fn outcome(answer: &Answer) -> usize {
    match answer {
        Answer::Reserved(_)
        | Answer::Settled { .. }
        | Answer::Released { .. }
        | Answer::Held { .. }
        | Answer::Applied
        | Answer::Ticketed
        | Answer::Loaded
        | Answer::Parked
        | Answer::Balance(_) => 0,
        Answer::Repeated(_) | Answer::Finished(_) | Answer::Duplicate | Answer::Already => 2,
        _ => 1,
    }
}
