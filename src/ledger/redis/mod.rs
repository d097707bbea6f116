//! The ledger in Redis: the account model in Lua (`lua/`), reached through numbered batches of worker sessions.
//!
//! A worker's operations go to one [`session`] for each shard, which sends whatever queued up as the next batch and sends a
//! batch again, byte for byte, until it has an answer. The [`sweeper`] ends sessions that stand still; the [`log`] is
//! read by the bridge.

pub mod connection;
pub mod discovery;
pub mod log;
pub mod meta;
pub mod reopen;
mod ring;
pub mod script;
pub mod session;
pub mod sweeper;
pub mod wire;

mod loading;
mod queue;
mod recall;
mod servers;
mod tls;
mod upkeep;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::{Cmd, Value};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::connection::{CallError, Connector, Link};
use self::meta::Meta;
use self::queue::Queue;
pub use self::reopen::{Epochs, Standing};
use super::counters::Counters;
use super::{AccountId, AccountSource, Connect, Ledger, LedgerError, Op, Reply, SessionId, SharedLedger, Status};
use crate::config;
use crate::telemetry::Metrics;

/// A place in a shard's event log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    pub epoch: u64,
    /// Number of the last entry.
    pub counter: u64,
}

/// Why the ledger cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{0}")]
    Settings(String),
    #[error("Redis is out of reach: {0}")]
    Unreachable(String),
    #[error("Redis {version} at {server} is too old: 7.0 or newer is needed")]
    TooOld { server: String, version: String },
    #[error("Redis at {server} may evict balances: maxmemory-policy is {policy}, and must be noeviction")]
    Evicts { server: String, policy: String },
    #[error("Redis at {0} belongs to a Cluster: ledger.url must be redis+cluster://HOST:PORT,…")]
    InCluster(String),
    #[error("the ledger was created with {created} shards, ledger.shards is {set}")]
    Shards { created: u32, set: u32 },
    #[error(
        "shard {shard} in Redis is at epoch {} entry {}, the store at epoch {} entry {}: they do not belong together, or the store was \
         restored from an old backup. Remove the fg:* keys from Redis to begin anew from the store", redis.epoch, redis.counter, store.epoch, store.counter
    )]
    Mismatch { shard: u32, redis: Position, store: Position },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// The ledger in Redis.
#[derive(Debug)]
pub struct RedisLedger {
    core: Arc<Core>,
}

/// What everything of one ledger shares.
pub(crate) struct Core {
    pub(crate) settings: config::Ledger,
    pub(crate) connector: Connector,
    pub(crate) source: Arc<dyn AccountSource>,
    pub(crate) epochs: Arc<dyn Epochs>,
    pub(crate) metrics: Metrics,
    pub(crate) counters: Counters,
    pub(crate) shards: u32,
    /// Redis's memory is nearly full; set by the sweeper.
    pub(crate) memory_full: AtomicBool,
    states: Vec<ShardState>,
}

/// What this process knows of a shard.
#[derive(Debug, Default)]
pub(crate) struct ShardState {
    /// The last entry that anybody here was told of.
    seen: parking_lot::Mutex<Position>,
    /// Held while it is opened anew.
    pub(crate) reopening: tokio::sync::Mutex<()>,
}

impl ShardState {
    pub(crate) fn note(&self, at: Position) {
        let mut seen = self.seen.lock();
        *seen = (*seen).max(at);
    }

    /// The last entry of that epoch; 0 where none is known.
    pub(crate) fn seen(&self, epoch: u64) -> u64 {
        let seen = self.seen.lock();
        if seen.epoch == epoch { seen.counter } else { 0 }
    }
}

impl std::fmt::Debug for Core {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Core").field("shards", &self.shards).finish_non_exhaustive()
    }
}

/// Shards of a new ledger on a single Redis.
const DEFAULT_SHARDS: u32 = 1;
/// On a Cluster, so that each node gets some.
const CLUSTER_SHARDS: u32 = 16;
/// Two hexadecimal digits name a shard.
const SHARDS_MAX: u32 = 256;

impl RedisLedger {
    /// Connects, refuses a server that could lose balances, and finds or makes the shards.
    pub async fn open(
        settings: &config::Ledger,
        source: Arc<dyn AccountSource>,
        epochs: Arc<dyn Epochs>,
        metrics: Metrics,
    ) -> Result<Arc<RedisLedger>, OpenError> {
        let timeout = Duration::from_millis(settings.call_timeout_ms);
        let connector = Connector::of(tls::url(settings).map_err(OpenError::Settings)?, timeout);
        let mut link = connector.link(metrics.ledger_reconnects.clone());
        servers::check(&connector, &mut link).await?;
        let default = if connector.is_cluster() { CLUSTER_SHARDS } else { DEFAULT_SHARDS };
        let shards = shard_count(&mut link, settings.shards, default).await?;
        let core = Arc::new(Core {
            settings: settings.clone(),
            connector,
            source,
            epochs,
            counters: Counters::new(&metrics),
            metrics,
            shards,
            memory_full: AtomicBool::new(false),
            states: (0..shards).map(|_| ShardState::default()).collect(),
        });
        for shard in 0..shards {
            link.turn_to(shard);
            core.join(&mut link, shard).await?;
        }
        Ok(Arc::new(RedisLedger { core }))
    }

    pub fn shards(&self) -> u32 {
        self.core.shards
    }

    /// The shard's event log, for the bridge.
    pub fn log(&self, shard: u32) -> log::Log {
        log::Log::new(self.core.clone(), shard)
    }

    /// Ends dead sessions, expires API holds, watches Redis's memory, until `stop`.
    pub async fn run_sweeper(self: Arc<Self>, stop: CancellationToken) {
        sweeper::run(self.core.clone(), stop).await;
    }
}

impl Connect for RedisLedger {
    fn connect(&self, tasks: &TaskTracker, stop: CancellationToken) -> SharedLedger {
        let queues = (0..self.core.shards).map(|shard| {
            let queue = Arc::new(Queue::new(&self.core));
            tasks.spawn(session::run(self.core.clone(), shard, queue.clone(), tasks.clone(), stop.clone()));
            queue
        });
        Arc::new(Worker { queues: queues.collect() })
    }
}

/// One caller's way to all shards.
#[derive(Debug)]
struct Worker {
    queues: Vec<Arc<Queue>>,
}

impl Ledger for Worker {
    fn submit(&self, op: Op) -> Reply {
        match self.queues.get(shard_of(&op.account, self.queues.len())) {
            Some(queue) => queue.submit(op),
            None => Reply::now(Err(LedgerError::Unavailable)),
        }
    }

    fn status_of(&self, account: &AccountId) -> Status {
        let queue = self.queues.get(shard_of(account, self.queues.len()));
        queue.map_or(Status::Unavailable, |queue| queue.status())
    }

    fn status(&self) -> Status {
        let worst = |status: Status| match status {
            Status::Ready => 0,
            Status::Backlogged => 1,
            Status::Unavailable => 2,
        };
        self.queues
            .iter()
            .map(|queue| queue.status())
            .max_by_key(|status| worst(*status))
            .unwrap_or(Status::Unavailable)
    }
}

/// Where an account lives; fixed for good by the count of shards.
pub fn shard_of(account: &AccountId, shards: usize) -> usize {
    crc32fast::hash(account.as_str().as_bytes()) as usize % shards.max(1)
}

/// A fresh name for a session: 52 random bits, never 0.
pub(crate) fn new_session() -> SessionId {
    SessionId((random() >> 12) | 1)
}

pub(crate) fn random() -> u64 {
    // Without a source of randomness the process could not have started; its clock still tells sessions apart.
    getrandom::u64().unwrap_or_else(|_| uuid::Uuid::now_v7().as_u128() as u64)
}

async fn shard_count(link: &mut Link, set: u32, default: u32) -> Result<u32, OpenError> {
    let wanted = if set == 0 { default } else { set.min(SHARDS_MAX) };
    let mut command = Cmd::new();
    command.arg("SET").arg("fg:{00}:ledger").arg(wanted).arg("NX").arg("GET");
    let created = match link.send(&command).await.map_err(unreachable_server)? {
        Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).parse().unwrap_or(0),
        _ => wanted,
    };
    if created == 0 || (set != 0 && set != created) {
        return Err(OpenError::Shards { created, set });
    }
    Ok(created)
}

#[expect(clippy::needless_pass_by_value, reason = "it is passed to map_err")]
fn unreachable_server(error: CallError) -> OpenError {
    OpenError::Unreachable(error.to_string())
}

impl Core {
    /// Finds or makes a shard. One that is behind the store lost its data, and is opened anew.
    async fn join(&self, link: &mut Link, shard: u32) -> Result<(), OpenError> {
        // In this order, since other replicas go on writing meanwhile: what is flushed is in the store that it was flushed
        // to, and what the store has stands in the log.
        let before = meta::look(link, shard).await?;
        let store = self.epochs.standing(shard).await?.at;
        if let Meta::Open { at, flushed } = before {
            let (same, flushed) = (at.epoch == store.epoch, Position { epoch: at.epoch, counter: flushed });
            if at.epoch > store.epoch || (same && flushed > store) {
                let store_again = self.epochs.standing(shard).await?.at;
                // Between two looks others may have opened it anew.
                if store_again < flushed || at.epoch > store_again.epoch {
                    return Err(OpenError::Mismatch { shard, redis: at, store });
                }
            }
        }
        let found = meta::find_or_make(self, link, shard).await?;
        if found < store {
            reopen::reopen(self, link, shard, Some(store.epoch)).await?;
        }
        Ok(())
    }

    pub(crate) fn state(&self, shard: u32) -> &ShardState {
        static NONE: std::sync::LazyLock<ShardState> = std::sync::LazyLock::new(ShardState::default);
        self.states.get(shard as usize).unwrap_or(&NONE)
    }

    pub(crate) fn link(&self, shard: u32) -> Link {
        let mut link = self.connector.link(self.metrics.ledger_reconnects.clone());
        link.turn_to(shard);
        link
    }

    pub(crate) fn is_memory_full(&self) -> bool {
        self.memory_full.load(Ordering::Relaxed)
    }
}
