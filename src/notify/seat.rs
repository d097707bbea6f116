//! One event stream: what it was told, and what comes next. It pulls: nothing is kept for it, so a reader that is slow
//! gets the latest balance, and one that is too slow for the notifications is ended and resumes.

use std::collections::VecDeque;
use std::fmt::Write;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::hub::Hub;
use super::topic::{Reason, State, Topic};
use crate::credits::Credits;

/// Whether the caller of a stream may still listen.
#[async_trait]
pub trait Gate: Send + Sync + 'static {
    /// What is known without asking anybody. `None`: [`Gate::ask`].
    fn known(&self) -> Option<bool>;
    /// Below which balance the caller is told that it is low; `None`: the caller may no longer listen.
    async fn ask(&self) -> Option<Credits>;
}

/// How far a stream was, as its client sends it back in Last-Event-ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    seq: u64,
    pub(super) notice: u64,
    pub(super) billing: u64,
}

impl FromStr for Position {
    type Err = ();

    fn from_str(text: &str) -> Result<Position, ()> {
        let mut numbers = text.split('-').map(|number| number.parse::<u64>().map_err(|_| ()));
        let mut next = || numbers.next().unwrap_or(Err(()));
        let position = Position { seq: next()?, notice: next()?, billing: next()? };
        if numbers.next().is_some() { Err(()) } else { Ok(position) }
    }
}

/// Why a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum End {
    /// Its caller may no longer listen.
    Shut = 1,
    /// The replica stops.
    Drain = 2,
    /// It is too far behind.
    Slow = 3,
}

impl End {
    pub(super) fn name(self) -> &'static str {
        match self {
            End::Shut => "revoked",
            End::Drain => "drain",
            End::Slow => "slow",
        }
    }
}

/// What the hub keeps of a stream.
pub(super) struct Place {
    pub(super) gate: Arc<dyn Gate>,
    /// 0, or an [`End`].
    ended: AtomicU8,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Place").finish_non_exhaustive()
    }
}

impl Place {
    pub(super) fn new(gate: Arc<dyn Gate>) -> Place {
        Place { gate, ended: AtomicU8::new(0) }
    }

    pub(super) fn end(&self, why: End) {
        // The first reason stands.
        let _ = self.ended.compare_exchange(0, why as u8, Ordering::AcqRel, Ordering::Acquire);
    }

    pub(super) fn ended(&self) -> Option<End> {
        match self.ended.load(Ordering::Acquire) {
            0 => None,
            1 => Some(End::Shut),
            2 => Some(End::Drain),
            _ => Some(End::Slow),
        }
    }
}

/// An event stream. Dropping it leaves.
pub struct Seat {
    pub(super) hub: Arc<Hub>,
    pub(super) topic: Arc<Topic>,
    pub(super) place: Arc<Place>,
    pub(super) news: watch::Receiver<u64>,
    pub(super) keep_alive: Duration,
    /// The stamp of the balance told last; 0: none.
    pub(super) stamp: u64,
    pub(super) notice: u64,
    pub(super) billing: u64,
    /// What was missed while the client was away; goes first.
    pub(super) missed: VecDeque<(u64, Bytes)>,
}

enum Look {
    Tell(Bytes),
    End(End),
    Nothing,
}

impl Seat {
    /// The next event, as it goes over the wire. `None`: the stream ends, and the client may come again.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            // Seen before the look: what comes in between wakes at once.
            self.news.borrow_and_update();
            match self.look() {
                Look::Tell(event) => return Some(event),
                Look::End(why) => {
                    self.hub.count_end(why);
                    return None;
                }
                Look::Nothing => {}
            }
            tokio::select! {
                changed = self.news.changed() => changed.ok()?,
                () = tokio::time::sleep(self.keep_alive) => return Some(Bytes::from_static(b":\n\n")),
            }
        }
    }

    fn look(&mut self) -> Look {
        let topic = self.topic.clone();
        let state = topic.state.lock();
        if let Some((number, body)) = self.missed.pop_front() {
            self.notice = number;
            return Look::Tell(self.event(&state, "notification", &body));
        }
        if self.notice < state.notices {
            let next = state.told.iter().find(|(number, _)| *number > self.notice);
            let follows = state.told.front().is_some_and(|(first, _)| *first <= self.notice + 1);
            let Some((number, body)) = next.filter(|_| follows) else { return Look::End(End::Slow) };
            self.notice = *number;
            return Look::Tell(self.event(&state, "notification", body));
        }
        // What there was to tell before the end was told.
        if let Some(why) = self.place.ended() {
            return Look::End(why);
        }
        if let Some(shown) = state.shown.filter(|_| state.stamp != self.stamp) {
            let reason = match (self.stamp, state.reason) {
                (0, _) | (_, None) => "snapshot",
                (_, Some(Reason::Usage)) => "usage",
                (_, Some(Reason::Billing)) => "billing",
            };
            self.stamp = state.stamp;
            let data = format!(
                r#"{{"available":{},"held":{},"debt":{},"low":{},"reason":"{reason}"}}"#,
                shown.available, shown.held, shown.debt, shown.low
            );
            return Look::Tell(self.event(&state, "credits", data.as_bytes()));
        }
        if let Some(body) = state.subscription.as_ref().filter(|_| state.billing != self.billing) {
            self.billing = state.billing;
            return Look::Tell(self.event(&state, "subscription", body));
        }
        Look::Nothing
    }

    /// `data` is JSON on one line.
    fn event(&self, state: &State, name: &str, data: &[u8]) -> Bytes {
        let mut head = String::with_capacity(64);
        let _ = write!(head, "event: {name}\nid: {}-{}-{}\ndata: ", state.seq, self.notice, self.billing);
        self.hub.count_event(name);
        [head.as_bytes(), data, b"\n\n"].concat().into()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.hub.leave(&self.topic, &self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_what_an_event_named() {
        assert_eq!("3-2-1".parse(), Ok(Position { seq: 3, notice: 2, billing: 1 }));
        for wrong in ["", "1", "1-2", "1-2-3-4", "-1-2-3", "a-b-c", "1-2-99999999999999999999"] {
            assert_eq!(wrong.parse::<Position>(), Err(()), "{wrong}");
        }
    }

    #[test]
    fn the_first_end_stands() {
        struct Open;
        #[async_trait]
        impl Gate for Open {
            fn known(&self) -> Option<bool> {
                Some(true)
            }
            async fn ask(&self) -> Option<Credits> {
                None
            }
        }
        let place = Place::new(Arc::new(Open));
        assert_eq!(place.ended(), None);
        place.end(End::Shut);
        place.end(End::Drain);
        assert_eq!(place.ended(), Some(End::Shut));
    }
}
