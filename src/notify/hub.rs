//! All event streams of this replica, and the two tasks that serve them: one follows the users they are about, one sees
//! to it that their callers may still listen.
//!
//! Users are followed by their rows in the store: an event's sequence, the last notification, the version of the
//! purchases. These move in whichever replica's transaction, so a look at them every [`config::Notify::poll_interval_ms`]
//! misses nothing, and nobody who has no stream open costs anything. Only for whom something moved is the ledger asked. An
//! embedded ledger is asked each time instead: it is ahead of its store.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::seat::{End, Gate, Place, Position, Seat};
use super::topic::Topic;
use crate::config;
use crate::credits::Credits;
use crate::ledger::{AccountId, Act, Answer, Balance, Op, SharedLedger};
use crate::store::notifications::{NotificationRow, Standing};
use crate::store::{SharedStore, StoreResult};
use crate::telemetry::Metrics;

/// Users looked up in the store by one statement.
const PAGE: usize = 500;
/// Users attended to at the same time.
const ATTENDED: usize = 32;
/// How long the ledger may take over a balance.
const LEDGER_LIMIT: Duration = Duration::from_secs(2);
/// How long a new stream waits for its user to be read.
const WARM_LIMIT: Duration = Duration::from_secs(5);
/// How often callers are looked at. With as much for a replica to hear of a revocation, that is well within a second.
const GATE_INTERVAL: Duration = Duration::from_millis(250);
/// Callers asked about at the same time.
const ASKED: usize = 8;
/// Notifications read at once.
const NOTICES: u32 = 100;
/// How long a subscription that cannot be told is left alone.
const DESCRIBE_PAUSE: Duration = Duration::from_secs(5);
/// Missed notifications that one stream begins with; who missed more resumes again.
const MISSED_MAX: usize = 500;

/// How things look to users: what only the API knows.
#[async_trait]
pub trait Describe: Send + Sync + 'static {
    fn notification(&self, row: NotificationRow) -> Bytes;
    /// How the user's subscription stands; `None` where that cannot be told now.
    async fn subscription(&self, user: &AccountId) -> Option<Bytes>;
}

/// Why a stream is not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    #[error("this user has too many event streams open")]
    TooManyOfUser,
    #[error("too many event streams are open")]
    TooMany,
    #[error("the account cannot be followed now")]
    Unavailable,
}

pub struct HubParts {
    pub store: SharedStore,
    pub ledger: SharedLedger,
    pub settings: config::Notify,
    /// Whether the ledger is in this process.
    pub embedded: bool,
    pub describe: Arc<dyn Describe>,
    pub metrics: Metrics,
}

pub struct Hub {
    parts: HubParts,
    topics: Mutex<HashMap<AccountId, Arc<Topic>>>,
    seats: AtomicUsize,
    /// Somebody new is to be followed.
    joined: Notify,
    /// Of the store's connections.
    permits: Semaphore,
    draining: CancellationToken,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Hub").field("seats", &self.seats).finish_non_exhaustive()
    }
}

impl Hub {
    pub fn new(parts: HubParts) -> Arc<Hub> {
        let permits = Semaphore::new(parts.settings.store_connections);
        Arc::new(Hub {
            parts,
            topics: Mutex::default(),
            seats: AtomicUsize::new(0),
            joined: Notify::new(),
            permits,
            draining: CancellationToken::new(),
        })
    }

    /// Begins a stream. `last`: how far the client was; what it missed since then comes first.
    pub async fn join(
        self: &Arc<Hub>,
        user: &AccountId,
        low_below: Credits,
        gate: Arc<dyn Gate>,
        last: Option<Position>,
    ) -> Result<Seat, JoinError> {
        if self.draining.is_cancelled() {
            return Err(JoinError::Unavailable);
        }
        let mut seat = self.sit(user, low_below, gate)?;
        self.joined.notify_one();
        let warm = async {
            while !seat.topic.state.lock().warm {
                seat.news.changed().await.map_err(drop)?;
            }
            Ok(())
        };
        match tokio::time::timeout(WARM_LIMIT, warm).await {
            Ok(Ok(())) => {}
            Ok(Err(())) | Err(_) => return Err(JoinError::Unavailable),
        }
        let (notices, billing) = {
            let state = seat.topic.state.lock();
            (state.notices, state.billing)
        };
        (seat.notice, seat.billing) = (notices, billing);
        // Whoever names what was never told, after an older store came back, begins anew.
        if let Some(last) = last.filter(|last| last.notice <= notices && last.billing <= billing) {
            self.resume(&mut seat, last, notices).await.map_err(|error| {
                tracing::warn!(%error, "what an event stream missed cannot be read");
                JoinError::Unavailable
            })?;
        }
        Ok(seat)
    }

    fn sit(self: &Arc<Hub>, user: &AccountId, low_below: Credits, gate: Arc<dyn Gate>) -> Result<Seat, JoinError> {
        let settings = &self.parts.settings;
        let mut topics = self.topics.lock();
        if self.seats.load(Ordering::Acquire) >= settings.max_streams {
            return Err(JoinError::TooMany);
        }
        let topic = topics.entry(user.clone()).or_insert_with(|| Topic::new(user.clone(), low_below)).clone();
        let place = Arc::new(Place::new(gate));
        {
            let mut state = topic.state.lock();
            if state.places.len() >= settings.max_streams_per_user {
                return Err(JoinError::TooManyOfUser);
            }
            state.places.push(place.clone());
        }
        topic.set_low_below(low_below);
        self.seats.fetch_add(1, Ordering::AcqRel);
        self.parts.metrics.event_streams.inc();
        let news = topic.news.subscribe();
        Ok(Seat {
            hub: self.clone(),
            topic,
            place,
            news,
            keep_alive: Duration::from_millis(settings.keep_alive_ms),
            stamp: 0,
            notice: 0,
            billing: 0,
            missed: Default::default(),
        })
    }

    /// Reads what was missed, up to what the user's streams have seen.
    async fn resume(&self, seat: &mut Seat, last: Position, upto: u64) -> StoreResult<()> {
        let mut after = last.notice;
        while after < upto && seat.missed.len() < MISSED_MAX {
            let rows = self.notices(&seat.topic.user, after).await?;
            let short = rows.len() < NOTICES as usize;
            seat.missed.extend(rows.into_iter().map(|row| (row.number, self.parts.describe.notification(row))));
            // Where the store has none of them any more there is nothing to wait for.
            let reached = seat.missed.back().map_or(after, |(number, _)| *number);
            after = if short { reached.max(upto) } else { reached };
        }
        seat.notice = after;
        if last.billing != seat.billing {
            seat.billing = last.billing;
            seat.topic.state.lock().wanted = true;
            self.joined.notify_one();
        }
        Ok(())
    }

    pub(super) fn leave(&self, topic: &Arc<Topic>, place: &Arc<Place>) {
        let mut topics = self.topics.lock();
        let mut state = topic.state.lock();
        state.places.retain(|known| !Arc::ptr_eq(known, place));
        if state.places.is_empty() {
            topics.remove(&topic.user);
        }
        self.seats.fetch_sub(1, Ordering::AcqRel);
        self.parts.metrics.event_streams.dec();
    }

    /// Ends all streams, once they have told what there is to tell: their clients go on with another replica. New ones are
    /// not begun.
    pub fn drain(&self) {
        self.draining.cancel();
        for topic in self.topics() {
            topic.state.lock().places.iter().for_each(|place| place.end(End::Drain));
            topic.wake();
        }
    }

    fn topics(&self) -> Vec<Arc<Topic>> {
        self.topics.lock().values().cloned().collect()
    }

    /// Follows users until `stop`.
    pub async fn follow(self: Arc<Hub>, stop: CancellationToken) {
        let interval = Duration::from_millis(self.parts.settings.poll_interval_ms);
        let mut blind = false;
        loop {
            let topics = self.topics();
            let idle = topics.is_empty();
            let round = async {
                let mut seen = Ok(());
                for page in topics.chunks(PAGE) {
                    seen = seen.and(self.page(page).await);
                }
                seen
            };
            let seen = tokio::select! {
                seen = round => seen,
                () = stop.cancelled() => return,
            };
            match seen {
                Err(error) if !blind => {
                    tracing::warn!(%error, "event streams cannot follow their users");
                    blind = true;
                }
                Ok(()) if blind => {
                    tracing::info!("event streams follow their users again");
                    blind = false;
                }
                Ok(()) | Err(_) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(interval), if !idle => {}
                () = self.joined.notified() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn page(&self, topics: &[Arc<Topic>]) -> StoreResult<()> {
        let users: Vec<AccountId> = topics.iter().map(|topic| topic.user.clone()).collect();
        let standings = {
            let _permit = self.permits.acquire().await;
            self.parts.store.standings(&users).await?
        };
        let mut standings: HashMap<AccountId, Standing> =
            standings.into_iter().map(|standing| (standing.user.clone(), standing)).collect();
        let mut known = Vec::with_capacity(topics.len());
        for topic in topics {
            known.extend(standings.remove(&topic.user).map(|standing| (topic.clone(), standing)));
        }
        let attended: Vec<StoreResult<()>> = futures_util::stream::iter(known)
            .map(|(topic, standing)| async move { self.attend(&topic, standing).await })
            .buffer_unordered(ATTENDED)
            .collect()
            .await;
        attended.into_iter().collect()
    }

    /// Takes in what moved.
    async fn attend(&self, topic: &Topic, standing: Standing) -> StoreResult<()> {
        if standing.closed {
            topic.state.lock().places.iter().for_each(|place| place.end(End::Shut));
            topic.wake();
        }
        let (warm, moved, notices, billing, wanted) = {
            let state = topic.state.lock();
            // A hold that is given back leaves no event: while something is held it is looked at again.
            let held = state.shown.is_some_and(|shown| !shown.held.is_zero());
            let moved = standing.seq > state.seq || held || state.shown.is_none();
            (state.warm, moved, state.notices, state.billing, state.wanted && state.subscription.is_none())
        };
        if (moved || self.parts.embedded)
            && let Some(balance) = self.balance(&topic.user).await
        {
            topic.show(&balance);
        }
        if !warm {
            let mut state = topic.state.lock();
            if state.shown.is_some() {
                (state.notices, state.billing, state.warm) = (standing.notices, standing.billing_version, true);
                drop(state);
                topic.wake();
            }
            return Ok(());
        }
        if standing.notices > notices {
            let rows = self.notices(&topic.user, notices).await?;
            let describe = |row: NotificationRow| (row.number, self.parts.describe.notification(row));
            let told = rows.into_iter().map(describe).collect();
            topic.tell(told);
        }
        if standing.billing_version > billing || wanted {
            self.subscription(topic, standing.billing_version).await;
        }
        Ok(())
    }

    async fn subscription(&self, topic: &Topic, version: u64) {
        if topic.state.lock().not_before.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let _permit = self.permits.acquire().await;
        let body = self.parts.describe.subscription(&topic.user).await;
        let mut state = topic.state.lock();
        if body.is_none() {
            state.not_before = Some(Instant::now() + DESCRIBE_PAUSE);
            return;
        }
        (state.billing, state.subscription, state.wanted, state.not_before) = (version, body, false, None);
        drop(state);
        topic.wake();
    }

    async fn notices(&self, user: &AccountId, after: u64) -> StoreResult<Vec<NotificationRow>> {
        let _permit = self.permits.acquire().await;
        self.parts.store.notifications_after(user, after, NOTICES).await
    }

    async fn balance(&self, user: &AccountId) -> Option<Balance> {
        let reply = self.parts.ledger.submit(Op { account: user.clone(), act: Act::Balance });
        match tokio::time::timeout(LEDGER_LIMIT, reply).await {
            Ok(Ok(Answer::Balance(balance))) => Some(balance),
            // It is asked again in a moment.
            _ => None,
        }
    }

    /// Ends the streams of callers who may no longer listen, until `stop`.
    pub async fn watch_callers(self: Arc<Hub>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(GATE_INTERVAL) => {}
                () = stop.cancelled() => return,
            }
            let mut unknown = Vec::new();
            for topic in self.topics() {
                let places = topic.state.lock().places.clone();
                for place in places {
                    match place.gate.known() {
                        Some(true) => {}
                        Some(false) => shut(&topic, &place),
                        None => unknown.push((topic.clone(), place)),
                    }
                }
            }
            let asked = futures_util::stream::iter(unknown).for_each_concurrent(ASKED, |(topic, place)| async move {
                match place.gate.ask().await {
                    Some(low_below) => topic.set_low_below(low_below),
                    None => shut(&topic, &place),
                }
            });
            tokio::select! {
                () = asked => {}
                () = stop.cancelled() => return,
            }
        }
    }

    pub(super) fn count_event(&self, name: &str) {
        self.parts.metrics.events_sent.with_label_values(&[name]).inc();
    }

    pub(super) fn count_end(&self, why: End) {
        self.parts.metrics.event_streams_ended.with_label_values(&[why.name()]).inc();
    }
}

fn shut(topic: &Topic, place: &Place) {
    place.end(End::Shut);
    topic.wake();
}
