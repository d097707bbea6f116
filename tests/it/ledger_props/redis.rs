//! The scripts of the Redis ledger, driven batch by batch.

use std::time::Duration;

use faregate::ledger::redis::connection::{Connector, Link};
use faregate::ledger::redis::wire::decode::{self, BatchReply, Fields};
use faregate::ledger::redis::wire::encode::{self, Header, Packed};
use faregate::ledger::redis::wire::{Keyspace, NUMBER_MAX};
use faregate::ledger::redis::{script, sweeper};
use faregate::ledger::{AccountId, Act, Event, Micros, Op, RecordState, SessionId};
use redis::{Cmd, Value};
use tokio::runtime::Runtime;

use super::driver::{BatchAnswer, Driver};
use crate::support::{Redis, RedisCluster};

/// The clock is Redis's, and never runs backwards: it stands where meta says until Redis's has come as far.
const SET_CLOCK: &str = "local meta = cmsgpack.unpack(redis.call('GET', KEYS[1])) meta[5] = tonumber(ARGV[1]) \
                         redis.call('SET', KEYS[1], cmsgpack.pack(meta))";

pub(crate) struct RedisDriver {
    /// Last but one to go.
    link: Link,
    runtime: Runtime,
    keys: Keyspace,
    packed: Packed,
    /// The last entry read.
    counter: u64,
    /// Whether anything was done since.
    unread: bool,
    /// The clock is set when something is to be done.
    clock: Option<Micros>,
    /// What the store would have of records.
    stored: Vec<RecordState>,
    _server: Box<dyn std::any::Any>,
}

impl RedisDriver {
    pub(crate) fn start() -> RedisDriver {
        let server = Redis::start();
        RedisDriver::over(&server.url(), Box::new(server))
    }

    /// `server` goes last.
    fn over(url: &str, server: Box<dyn std::any::Any>) -> RedisDriver {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let connector = Connector::new(url, Duration::from_secs(10)).unwrap();
        let link = connector.link(prometheus::IntCounter::new("reconnects", "reconnects").unwrap());
        let keys = Keyspace::new(0, 1);
        RedisDriver {
            link,
            runtime,
            keys,
            packed: Packed::default(),
            counter: 0,
            unread: false,
            clock: None,
            stored: Vec::new(),
            _server: server,
        }
    }

    /// Before anything that may emit.
    fn begin(&mut self) {
        self.unread = true;
        if let Some(now) = self.clock.take() {
            self.send(redis::cmd("EVAL").arg(SET_CLOCK).arg(1).arg(self.keys.meta()).arg(now));
        }
    }

    fn send(&mut self, command: &Cmd) -> Value {
        self.runtime.block_on(self.link.send(command)).unwrap()
    }
}

impl Driver for RedisDriver {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn reset(&mut self) {
        self.send(redis::cmd("FLUSHALL").arg("SYNC"));
        (self.counter, self.unread) = (0, false);
        let (meta, events) = (self.keys.meta(), self.keys.events());
        let keys = [meta.as_str(), events.as_str()].into_iter();
        let command = script::OPEN.command(keys, &encode::numbers(&[self.keys.epoch, 1]));
        self.runtime.block_on(self.link.call(&script::OPEN, &command)).unwrap();
    }

    fn set_clock(&mut self, now: Micros) {
        self.clock = Some(now);
    }

    fn open(&mut self, _session: SessionId) {}

    fn batch(&mut self, session: SessionId, number: u64, ops: &[Op]) -> BatchAnswer {
        self.begin();
        let header = Header { session, number, max_backlog: NUMBER_MAX, memory_full: false, seen: 0 };
        let ops = with_recalls(ops, &self.stored);
        self.packed.pack(&self.keys, header, ops.iter());
        let command = self.packed.command();
        let bytes = self.runtime.block_on(self.link.call_bytes(&script::BATCH, &command)).unwrap();
        match decode::batch(&bytes, session, ops.iter()).unwrap() {
            BatchReply::Applied { answers, .. } => {
                let told = ops.iter().zip(answers).filter(|(op, _)| !matches!(op.act, Act::Recall { .. }));
                BatchAnswer::Answers(told.map(|(_, answer)| answer).collect())
            }
            BatchReply::Fenced => BatchAnswer::Fenced,
            BatchReply::Lost { reason } => panic!("the ledger lost its data: {reason}"),
        }
    }

    fn fence(&mut self, session: SessionId, seen: u64) -> bool {
        self.runtime.block_on(sweeper::mark(&mut self.link, &self.keys, session, seen)).unwrap()
    }

    fn abandon(&mut self, session: SessionId) {
        self.begin();
        let ended = self.runtime.block_on(sweeper::return_holds(&mut self.link, &self.keys, session)).unwrap();
        assert_eq!(ended.unreadable, 0);
    }

    fn store(&mut self, _account: &AccountId, records: &[RecordState]) {
        self.stored = records.to_vec();
    }

    fn events(&mut self) -> Vec<Event> {
        if !std::mem::take(&mut self.unread) {
            return Vec::new();
        }
        let after = format!("({}-0", self.counter);
        let rows = self.send(redis::cmd("XRANGE").arg(self.keys.events()).arg(after).arg("+"));
        let rows: Vec<(String, Vec<Vec<u8>>)> = redis::from_redis_value(rows).unwrap();
        let mut events = Vec::new();
        for (id, fields) in rows {
            self.counter += 1;
            assert_eq!(id, format!("{}-0", self.counter), "the log has no holes");
            let field = |index: usize| fields.get(index).map_or(&[][..], Vec::as_slice);
            let fields = Fields { events: field(1), details: field(3), records: field(5) };
            events.extend(decode::entry(self.counter, fields).unwrap().events);
        }
        events
    }
}

/// What a session does that had to ask: it tells beforehand what the store has of a record.
fn with_recalls(ops: &[Op], stored: &[RecordState]) -> Vec<Op> {
    let mut sent = Vec::with_capacity(ops.len());
    for op in ops {
        let known = |id| stored.iter().find(|record| record.id == id).cloned();
        let recall = op.act.record().map(|record| Act::Recall { record, state: known(record) });
        sent.extend(recall.map(|act| Op { account: op.account.clone(), act }));
        sent.push(op.clone());
    }
    sent
}

/// Every answer, every event and every balance of the scripts is the model's.
#[test]
fn the_scripts_say_what_the_model_says() {
    super::check(&mut RedisDriver::start());
}

/// The same through redirections: a Cluster's node that does not have the shard is asked first.
#[test]
fn the_scripts_say_so_on_a_cluster_too() {
    let cluster = RedisCluster::start();
    super::check_share(&mut RedisDriver::over(&cluster.url(), Box::new(cluster)), 32);
}
