//! One user who is listened to: what was last seen of them, for all their streams on this replica.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::seat::Place;
use crate::credits::Credits;
use crate::ledger::{AccountId, Balance};

/// Notifications kept for streams that are behind; one that is further behind is ended, and resumes from the store.
pub(super) const KEPT: usize = 64;

/// Why a stream is told a balance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// It changed by use.
    Usage,
    /// By a billing change: credits came in, went, or were frozen.
    Billing,
}

/// A balance as streams tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) available: Credits,
    pub(super) held: Credits,
    pub(super) debt: Credits,
    pub(super) low: bool,
}

/// What is known of the user.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Whether all of this was read once.
    pub(super) warm: bool,
    /// Of the last event that the balance takes in.
    pub(super) seq: u64,
    /// The last billing change that it takes in.
    pub(super) change: u64,
    pub(super) shown: Option<Shown>,
    pub(super) reason: Option<Reason>,
    /// Rises with every other balance.
    pub(super) stamp: u64,
    /// The last notification seen.
    pub(super) notices: u64,
    /// The newest notifications, up to `notices`, without gaps.
    pub(super) told: VecDeque<(u64, Bytes)>,
    /// The version of the user's purchases.
    pub(super) billing: u64,
    /// The subscription at that version, once somebody was to be told.
    pub(super) subscription: Option<Bytes>,
    /// Somebody resumed from an older version.
    pub(super) wanted: bool,
    /// When the subscription may be asked for again, where it could not be told.
    pub(super) not_before: Option<Instant>,
    pub(super) places: Vec<Arc<Place>>,
}

#[derive(Debug)]
pub(super) struct Topic {
    pub(super) user: AccountId,
    pub(super) state: Mutex<State>,
    /// Rises whenever a stream may have something to tell.
    pub(super) news: watch::Sender<u64>,
    /// A balance below this is low, in micro-credits.
    pub(super) low_below: AtomicI64,
}

impl Topic {
    pub(super) fn new(user: AccountId, low_below: Credits) -> Arc<Topic> {
        let low_below = AtomicI64::new(low_below.micro());
        Arc::new(Topic { user, state: Mutex::default(), news: watch::Sender::new(0), low_below })
    }

    pub(super) fn set_low_below(&self, low_below: Credits) {
        self.low_below.store(low_below.micro(), Ordering::Relaxed);
    }

    pub(super) fn wake(&self) {
        self.news.send_modify(|news| *news = news.wrapping_add(1));
    }

    /// Takes in a balance of the ledger's.
    pub(super) fn show(&self, balance: &Balance) {
        let low = balance.available.micro() < self.low_below.load(Ordering::Relaxed);
        let shown = Shown { available: balance.available, held: balance.held, debt: balance.debt, low };
        let mut state = self.state.lock();
        // A reply that was overtaken by a later one.
        if balance.seq < state.seq && state.shown.is_some() {
            return;
        }
        let reason = if balance.change == state.change { Reason::Usage } else { Reason::Billing };
        (state.seq, state.change) = (balance.seq, balance.change);
        if state.shown != Some(shown) {
            state.shown = Some(shown);
            state.reason = Some(reason);
            state.stamp += 1;
            drop(state);
            self.wake();
        }
    }

    /// Takes in notifications that follow those seen, in order.
    pub(super) fn tell(&self, notices: Vec<(u64, Bytes)>) {
        let mut state = self.state.lock();
        for (number, body) in notices {
            if number <= state.notices {
                continue;
            }
            state.notices = number;
            if state.told.len() >= KEPT {
                state.told.pop_front();
            }
            state.told.push_back((number, body));
        }
        drop(state);
        self.wake();
    }
}
