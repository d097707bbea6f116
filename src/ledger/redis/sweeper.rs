//! Watches what nobody asks about: ends sessions that stand still, and keeps an eye on the [`servers`]. What may
//! take its time is [`upkeep`]'s.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redis::{Cmd, Value};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{CallError, Link};
use super::wire::{Keyspace, Reader, decode, encode};
use super::{Core, RedisLedger, meta, script, servers, upkeep};
use crate::ledger::{Connect, SessionId};

/// Longest time between two looks; shorter where sessions are fenced sooner than in ten of them.
const INTERVAL: Duration = Duration::from_secs(1);
/// How much later than that a look may come and still count as in time: the looks' own work.
const SLACK: Duration = Duration::from_millis(250);
/// Accounts of a dead session that one call looks at.
const CHUNK: usize = 300;
/// Sessions looked at.
pub(super) const SESSIONS_MAX: usize = 10_000;

/// What was returned of a dead session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ended {
    pub forfeited_micro: u64,
    pub unreadable: u64,
}

/// Marks a session, unless it moved on from `number`, and returns all that it holds. `None`: it moved on, or is unknown.
pub(crate) async fn end_session(
    link: &mut Link,
    keys: &Keyspace,
    session: SessionId,
    number: u64,
) -> Result<Option<Ended>, CallError> {
    if !mark(link, keys, session, number).await? {
        return Ok(None);
    }
    return_holds(link, keys, session).await.map(Some)
}

/// Marks a session as dead, so that none of its batches applies any more, if its last batch is `number`. Answers whether
/// it is dead now.
pub async fn mark(link: &mut Link, keys: &Keyspace, session: SessionId, number: u64) -> Result<bool, CallError> {
    let (meta, state) = (keys.meta(), keys.session(session));
    let argument = encode::numbers(&[session.0, number, keys.epoch]);
    let command = script::FENCE.command([meta.as_str(), state.as_str()].into_iter(), &argument);
    // Marking twice does no harm: a lost answer is asked for again.
    let marked = match link.call(&script::FENCE, &command).await {
        Err(CallError::Broken(_)) => link.call(&script::FENCE, &command).await?,
        marked => marked?,
    };
    Ok(marked == Value::Int(1))
}

/// Returns what a marked session holds, in bounded chunks.
pub async fn return_holds(link: &mut Link, keys: &Keyspace, session: SessionId) -> Result<Ended, CallError> {
    let mut ended = Ended::default();
    loop {
        let mut command = Cmd::new();
        command.arg("SRANDMEMBER").arg(keys.touched(session)).arg(CHUNK);
        let accounts = texts(link.send(&command).await?);
        let mut names = vec![keys.touched(session), keys.events(), keys.sessions(), keys.meta(), keys.session(session)];
        names.extend(accounts.iter().map(|account| format!("{}acct:{account}", keys.prefix())));
        let argument = encode::numbers(&[session.0, keys.epoch, keys.prefix().len() as u64]);
        let command = script::ABANDON.command(names.iter().map(String::as_str), &argument);
        let bytes = link.call_bytes(&script::ABANDON, &command).await?;
        let [left, forfeited, unreadable] =
            decode::numbers::<3>(&bytes).map_err(|error| CallError::Refused(error.to_string()))?;
        ended.forfeited_micro += u64::try_from(forfeited).unwrap_or(0);
        ended.unreadable += u64::try_from(unreadable).unwrap_or(0);
        // Each round takes at least one account out of the set, which only shrinks now.
        if left <= 0 || accounts.is_empty() {
            return Ok(ended);
        }
    }
}

/// Looks at every shard and every server once a second, until `stop`.
pub(crate) async fn run(core: Arc<Core>, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    let ledger = RedisLedger { core: core.clone() }.connect(&tasks, stop.clone());
    tasks.close();
    let upkeep = upkeep::run(core.clone(), ledger);
    let interval =
        INTERVAL.min(Duration::from_millis(core.settings.fence_after_ms / 10).max(Duration::from_millis(20)));
    let shard = |shard| Shard { core: core.clone(), link: core.link(shard), shard, seen: Watch::new(interval) };
    let mut shards: Vec<Shard> = (0..core.shards).map(shard).collect();
    let mut link = core.link(0);
    // Side by side: a server that does not answer must not make the looks at the others late.
    let looks = join_all(shards.iter_mut().map(Shard::keep_looking));
    let watch = async {
        loop {
            if let Err(error) = servers::watch(&core, &mut link).await {
                tracing::debug!(%error, "the memory of Redis is not known");
            }
            tokio::time::sleep(interval).await;
        }
    };
    tokio::select! {
        _ = looks => {}
        () = watch => {}
        // Beside the looks, not among them: a slow store must not keep a dead session's holds from going back.
        () = upkeep => {}
        () = stop.cancelled() => {}
    }
    tasks.wait().await;
}

struct Shard {
    core: Arc<Core>,
    link: Link,
    shard: u32,
    seen: Watch,
}

/// The numbers of a shard's sessions, and since when each has stood still.
#[derive(Debug)]
struct Watch {
    /// Time between two looks.
    interval: Duration,
    epoch: u64,
    sessions: HashMap<u64, (u64, Instant)>,
    last_look: Option<Instant>,
}

impl Watch {
    fn new(interval: Duration) -> Watch {
        Watch { interval, epoch: 0, sessions: HashMap::new(), last_look: None }
    }

    /// Takes in one look. Answers the sessions that stood still for `limit` of unbroken observation: a look that comes late
    /// begins it anew, since whatever held us up may have held up the sessions.
    fn observe(&mut self, epoch: u64, numbers: &[(u64, u64)], now: Instant, limit: Duration) -> Vec<(SessionId, u64)> {
        let late = self.last_look.is_none_or(|last| now.duration_since(last) > self.interval * 2 + SLACK);
        if late || epoch != self.epoch {
            self.sessions.clear();
        }
        (self.epoch, self.last_look) = (epoch, Some(now));
        let before = std::mem::take(&mut self.sessions);
        let mut still = Vec::new();
        for (session, number) in numbers {
            let since = match before.get(session) {
                Some((known, since)) if known == number => *since,
                _ => now,
            };
            if now.duration_since(since) >= limit {
                still.push((SessionId(*session), *number));
            }
            self.sessions.insert(*session, (*number, since));
        }
        still
    }

    fn forget(&mut self) {
        self.sessions.clear();
        self.last_look = None;
    }
}

impl Shard {
    async fn keep_looking(&mut self) {
        loop {
            self.look().await;
            tokio::time::sleep(self.seen.interval).await;
        }
    }

    async fn look(&mut self) {
        if let Err(error) = self.look_at_sessions().await {
            self.seen.forget();
            tracing::warn!(shard = self.shard, %error, "the sweeper could not look");
        }
    }

    async fn look_at_sessions(&mut self) -> Result<(), CallError> {
        let begun = Instant::now();
        let position = meta::find_or_make(&self.core, &mut self.link, self.shard)
            .await
            .map_err(|error| CallError::Broken(error.to_string()))?;
        let keys = Keyspace::new(self.shard, position.epoch);
        let sessions = self.sessions(&keys).await?;
        let live: Vec<_> =
            sessions.iter().filter(|state| !state.fenced).map(|state| (state.id, state.number)).collect();
        // A look that took long is as bad as one that came late.
        if begun.elapsed() > self.seen.interval + SLACK {
            self.seen.forget();
        }
        let limit = Duration::from_millis(self.core.settings.fence_after_ms);
        for (session, number) in self.seen.observe(position.epoch, &live, Instant::now(), limit) {
            if let Some(ended) = end_session(&mut self.link, &keys, session, number).await? {
                self.core.metrics.sessions_fenced.inc();
                self.report(session, ended);
            }
        }
        for half_done in sessions.iter().filter(|state| state.fenced) {
            let ended = return_holds(&mut self.link, &keys, SessionId(half_done.id)).await?;
            self.report(SessionId(half_done.id), ended);
        }
        Ok(())
    }

    fn report(&self, session: SessionId, ended: Ended) {
        self.core.counters.abandoned(i64::try_from(ended.forfeited_micro).unwrap_or(i64::MAX));
        tracing::warn!(
            shard = self.shard,
            session = session.0,
            forfeited_micro = ended.forfeited_micro,
            unreadable = ended.unreadable,
            "a dead session's holds were returned"
        );
    }

    async fn sessions(&mut self, keys: &Keyspace) -> Result<Vec<State>, CallError> {
        let mut command = Cmd::new();
        command.arg("SMEMBERS").arg(keys.sessions());
        let ids: Vec<u64> = texts(self.link.send(&command).await?).iter().filter_map(|id| id.parse().ok()).collect();
        let ids = ids.get(..ids.len().min(SESSIONS_MAX)).unwrap_or_default();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = Cmd::new();
        command.arg("MGET");
        for id in ids {
            command.arg(keys.session(SessionId(*id)));
        }
        let Value::Array(values) = self.link.send(&command).await? else { return Ok(Vec::new()) };
        let mut states = Vec::with_capacity(ids.len());
        for (id, value) in ids.iter().zip(&values) {
            match value {
                Value::BulkString(bytes) => states.extend(state_of(*id, bytes)),
                // Its marker has outlived its day.
                _ => {
                    let mut command = Cmd::new();
                    command.arg("SREM").arg(keys.sessions()).arg(*id);
                    self.link.send(&command).await?;
                }
            }
        }
        Ok(states)
    }
}

struct State {
    id: u64,
    number: u64,
    fenced: bool,
}

fn state_of(id: u64, bytes: &[u8]) -> Option<State> {
    let mut reader = Reader::new(bytes);
    reader.array().ok()?;
    Some(State { id, number: reader.uint().ok()?, fenced: reader.flag().ok()? })
}

pub(super) fn texts(value: Value) -> Vec<String> {
    let text = |value| match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    };
    match value {
        Value::Array(values) | Value::Set(values) => values.into_iter().filter_map(text).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn look(watch: &mut Watch, at: Instant, number: u64) -> bool {
        !watch.observe(1, &[(7, number)], at, LIMIT).is_empty()
    }

    #[test]
    fn a_session_that_stands_still_is_found_after_the_limit() {
        let (mut watch, begin) = (Watch::new(INTERVAL), Instant::now());
        let found = (0..20).find(|second| look(&mut watch, begin + INTERVAL * *second, 5));
        assert_eq!(found, Some(10));
    }

    #[test]
    fn one_that_moves_is_never_found() {
        let (mut watch, begin) = (Watch::new(INTERVAL), Instant::now());
        assert!((0..60).all(|second| !look(&mut watch, begin + INTERVAL * second, u64::from(second / 9))));
    }

    /// A stalled Redis, or a stalled sweeper, fences nobody.
    #[test]
    fn a_late_look_begins_the_observation_anew() {
        let (mut watch, begin) = (Watch::new(INTERVAL), Instant::now());
        assert!((0..9).all(|second| !look(&mut watch, begin + INTERVAL * second, 5)));
        let resumed = begin + Duration::from_secs(40);
        assert!((0..9).all(|second| !look(&mut watch, resumed + INTERVAL * second, 5)));
        assert!(look(&mut watch, resumed + LIMIT, 5) || look(&mut watch, resumed + LIMIT + INTERVAL, 5));
    }

    #[test]
    fn a_new_epoch_begins_the_observation_anew() {
        let (mut watch, begin) = (Watch::new(INTERVAL), Instant::now());
        assert!((0..9).all(|second| !look(&mut watch, begin + INTERVAL * second, 5)));
        assert!(watch.observe(2, &[(7, 5)], begin + LIMIT, LIMIT).is_empty());
    }
}
