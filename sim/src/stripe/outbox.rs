//! Deliveries of events to webhook endpoints: which are due, and what a test has asked to go wrong.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// Most deliveries remembered, finished ones included; the oldest finished ones go first.
const DELIVERIES_MAX: usize = 100_000;
/// Most rules at a time.
const RULES_MAX: usize = 64;
/// Tries of one delivery; Stripe's three days.
const ATTEMPTS_MAX: u32 = 16;
const RETRY_FIRST_MS: u64 = 200;
const RETRY_MAX_MS: u64 = 10_000;

/// How one delivery differs from an honest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Twist {
    /// `livemode` is turned around, in the payload and in its object.
    pub wrong_livemode: bool,
    /// Rendered in the shape of a version before 2025-03-31 (basil).
    pub old_shape: bool,
    /// A v2 event that only names its object.
    pub thin: bool,
    /// Signed with a secret that nobody has.
    pub wrong_secret: bool,
    /// The signature's time is so many seconds off.
    pub skew_s: i64,
    /// One byte of the payload is changed after signing.
    pub altered: bool,
}

/// What happens to deliveries of some events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Never delivered; the event stays undelivered.
    Drop,
    /// Delivered so many times in all.
    Copies(u32),
    Delay(Duration),
    /// Kept until released.
    Hold,
    Twist(Twist),
}

/// For events of `event` (a name, or a start with `*`), so many times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub event: String,
    pub act: Act,
    pub times: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Due at its time.
    Waiting,
    Held,
    Sending,
    Done,
    /// By a rule.
    Dropped,
    /// After the last attempt.
    Failed,
}

#[derive(Debug, Clone)]
pub(super) struct Delivery {
    pub event: String,
    pub kind: String,
    pub endpoint: String,
    pub twist: Twist,
    pub state: State,
    pub attempts: u32,
    pub due: Instant,
    /// Of the last attempt; none when the connection failed.
    pub status: Option<u16>,
}

/// The order in which held deliveries are let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    AsMade,
    Reversed,
    /// By this seed.
    Shuffled(u64),
}

#[derive(Debug, Default)]
pub(super) struct Outbox {
    deliveries: BTreeMap<u64, Delivery>,
    /// Those in [`State::Waiting`].
    due: BTreeSet<(Instant, u64)>,
    sending: usize,
    next: u64,
    pub holding: bool,
    rules: Vec<Rule>,
    /// By event: its endpoints, and whether it has reached them.
    reached: HashMap<String, BTreeMap<String, bool>>,
}

impl Outbox {
    pub(super) fn queue(&mut self, event: &str, kind: &str, endpoints: &[String]) {
        for endpoint in endpoints {
            self.queue_one(event, kind, endpoint);
        }
    }

    /// Once more, whatever became of earlier deliveries; rules do not apply.
    pub(super) fn queue_again(&mut self, event: &str, kind: &str, endpoint: &str, twist: Twist) -> u64 {
        self.push(Delivery {
            event: event.to_owned(),
            kind: kind.to_owned(),
            endpoint: endpoint.to_owned(),
            twist,
            state: State::Waiting,
            attempts: 0,
            due: Instant::now(),
            status: None,
        })
    }

    fn queue_one(&mut self, event: &str, kind: &str, endpoint: &str) {
        let (mut state, mut copies, mut twist, mut due) = (State::Waiting, 1, Twist::default(), Instant::now());
        if self.holding {
            state = State::Held;
        }
        for rule in self.rules.iter_mut().filter(|rule| rule.times > 0 && matches(&rule.event, kind)) {
            rule.times -= 1;
            match &rule.act {
                Act::Drop => state = State::Dropped,
                Act::Copies(count) => copies = *count,
                Act::Delay(by) => due += *by,
                Act::Hold => state = State::Held,
                Act::Twist(other) => twist = *other,
            }
        }
        self.rules.retain(|rule| rule.times > 0);
        for _ in 0..copies {
            let (event, kind, endpoint) = (event.to_owned(), kind.to_owned(), endpoint.to_owned());
            self.push(Delivery { event, kind, endpoint, twist, state, attempts: 0, due, status: None });
        }
    }

    fn push(&mut self, delivery: Delivery) -> u64 {
        if self.deliveries.len() >= DELIVERIES_MAX {
            let finished = self.deliveries.iter().find(|(_, delivery)| is_over(delivery.state)).map(|(id, _)| *id);
            let oldest = finished.or_else(|| self.deliveries.keys().next().copied());
            if let Some((id, gone)) = oldest.and_then(|id| self.deliveries.remove_entry(&id)) {
                self.due.remove(&(gone.due, id));
            }
        }
        let endpoints = self.reached.entry(delivery.event.clone()).or_default();
        endpoints.entry(delivery.endpoint.clone()).or_default();
        self.next += 1;
        if delivery.state == State::Waiting {
            self.due.insert((delivery.due, self.next));
        }
        self.deliveries.insert(self.next, delivery);
        self.next
    }

    pub(super) fn rule(&mut self, rule: Rule) {
        if self.rules.len() < RULES_MAX {
            self.rules.push(rule);
        }
    }

    pub(super) fn clear_rules(&mut self) {
        self.rules.clear();
    }

    /// The next one due, now marked as being sent; or when to look again.
    pub(super) fn take(&mut self, now: Instant) -> Result<(u64, Delivery), Option<Instant>> {
        match self.due.first().copied() {
            None => Err(None),
            Some((due, _)) if due > now => Err(Some(due)),
            Some((due, id)) => {
                self.due.remove(&(due, id));
                let delivery = self.deliveries.get_mut(&id).ok_or(Some(now))?;
                delivery.state = State::Sending;
                delivery.attempts += 1;
                self.sending += 1;
                Ok((id, delivery.clone()))
            }
        }
    }

    /// What an attempt came to; a failed one is due again later.
    pub(super) fn finish(&mut self, id: u64, status: Option<u16>, now: Instant) {
        self.sending = self.sending.saturating_sub(1);
        let Some(delivery) = self.deliveries.get_mut(&id) else { return };
        delivery.status = status;
        delivery.state = match status {
            Some(200..=299) => State::Done,
            _ if delivery.attempts >= ATTEMPTS_MAX => State::Failed,
            _ => State::Waiting,
        };
        let wait = RETRY_FIRST_MS.saturating_mul(1 << delivery.attempts.saturating_sub(1).min(16)).min(RETRY_MAX_MS);
        delivery.due = now + Duration::from_millis(wait);
        if delivery.state == State::Waiting {
            self.due.insert((delivery.due, id));
        } else if delivery.state == State::Done
            && let Some(endpoints) = self.reached.get_mut(&delivery.event)
        {
            endpoints.insert(delivery.endpoint.clone(), true);
        }
    }

    /// Lets held deliveries go, in this order; holds no more.
    pub(super) fn release(&mut self, order: Order) -> usize {
        self.holding = false;
        let mut held: Vec<u64> = self.in_state(State::Held);
        match order {
            Order::AsMade => {}
            Order::Reversed => held.reverse(),
            Order::Shuffled(seed) => shuffle(&mut held, seed),
        }
        let now = Instant::now();
        for (place, id) in held.iter().enumerate() {
            if let Some(delivery) = self.deliveries.get_mut(id) {
                delivery.state = State::Waiting;
                // The order is by time, so each gets its own.
                delivery.due = now + Duration::from_micros(place as u64);
                self.due.insert((delivery.due, *id));
            }
        }
        held.len()
    }

    /// Makes everything that waits for its next try due now.
    pub(super) fn retry_now(&mut self) {
        let now = Instant::now();
        for (due, id) in std::mem::take(&mut self.due) {
            if let Some(delivery) = self.deliveries.get_mut(&id) {
                delivery.due = due.min(now);
                self.due.insert((delivery.due, id));
            }
        }
    }

    /// Endpoints that an event has not reached, those included to which it was dropped or failed for good.
    pub(super) fn open(&self, event: &str) -> usize {
        self.reached.get(event).map_or(0, |endpoints| endpoints.values().filter(|reached| !**reached).count())
    }

    /// Deliveries that will still be tried.
    pub(super) fn pending(&self) -> usize {
        self.due.len() + self.sending
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (u64, &Delivery)> {
        self.deliveries.iter().map(|(id, delivery)| (*id, delivery))
    }

    fn in_state(&self, state: State) -> Vec<u64> {
        self.deliveries.iter().filter(|(_, delivery)| delivery.state == state).map(|(id, _)| *id).collect()
    }
}

fn is_over(state: State) -> bool {
    matches!(state, State::Done | State::Dropped | State::Failed)
}

/// Whether a name, or a start with `*`, fits an event type.
pub(super) fn matches(pattern: &str, kind: &str) -> bool {
    pattern == kind || pattern.strip_suffix('*').is_some_and(|start| kind.starts_with(start))
}

/// Fisher and Yates, by a small generator of its own: the same seed gives the same order everywhere.
fn shuffle(ids: &mut [u64], seed: u64) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for last in (1..ids.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let other = usize::try_from(state % (last as u64 + 1)).unwrap_or(last);
        ids.swap(last, other);
    }
}
