//! Usage rows a second from the flusher into Postgres, against plain COPY of the same rows into the same, emptied table
//! in the same run. `benches/flush.sh` starts the server and gives its URL in FAREGATE_STORE_URL.
//!
//! FLUSH_ROWS (200000), FLUSH_ROUNDS (5), FLUSH_ACCOUNTS ("16 1000"), FLUSH_SHARDS (1).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark may fail loudly")]

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use faregate::bridge::{self, Entries, EventLog, LogError};
use faregate::config;
use faregate::credits::Credits;
use faregate::ledger::{AccountId, Delta, Event, EventKind, GrantId};
use faregate::store::{self, Cursor, NewUser, SharedStore};
use faregate::telemetry::Metrics;
use faregate::usage::Usage;
use futures_util::{SinkExt, TryStreamExt};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// As a busy worker's batches have.
const EVENTS_PER_ENTRY: usize = 16;

/// A log whose entries are in memory from the start.
struct Prepared {
    /// By shard; entry number 1 is the first.
    entries: Vec<Vec<Vec<Event>>>,
    from: Vec<u64>,
    left: AtomicU64,
    done: Notify,
}

#[async_trait]
impl EventLog for Prepared {
    fn shards(&self) -> u32 {
        self.entries.len() as u32
    }

    fn awaited(&self) -> bool {
        false
    }

    async fn read(&self, shard: u32, cursor: Cursor, limit: usize, wait: Duration) -> Result<Entries, LogError> {
        let (entries, from) = (&self.entries[shard as usize], self.from[shard as usize]);
        let begin = (cursor.counter - from) as usize;
        let mut read = Entries { to: cursor.counter, ..Entries::default() };
        for entry in entries.iter().skip(begin) {
            if read.events.len() + entry.len() > limit && read.count > 0 {
                break;
            }
            read.count += 1;
            read.to += 1;
            read.events.extend(entry.iter().cloned());
        }
        read.backlog = (entries.len() - begin) as u64;
        read.sessions.push((7, read.to));
        if read.count == 0 {
            tokio::time::sleep(wait).await;
        }
        Ok(read)
    }

    async fn acknowledge(&self, shard: u32, cursor: Cursor) -> Result<(), LogError> {
        let end = self.from[shard as usize] + self.entries[shard as usize].len() as u64;
        if cursor.counter == end && self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.notify_one();
        }
        Ok(())
    }
}

struct Bench {
    store: SharedStore,
    settings: config::Store,
    sequences: HashMap<AccountId, u64>,
}

impl Bench {
    async fn accounts(&mut self, count: usize, shards: u32) -> Vec<AccountId> {
        let name = |number: usize| AccountId::parse(&format!("user-{count}-{number:05}")).unwrap();
        let accounts: Vec<AccountId> = (0..count).map(name).collect();
        for (number, id) in accounts.iter().enumerate() {
            let user = NewUser {
                id: id.clone(),
                email: None,
                plan: "free".to_owned(),
                signup_credits: Credits::whole(1_000_000_000),
            };
            self.store.create_user(user).await.unwrap();
            let shard = number as u32 % shards;
            let from = self.store.cursor(shard).await.unwrap();
            let granted = Event { kind: EventKind::Granted, change: 1, ..event(id, 1) };
            let batch =
                store::FlushBatch { shard, from, to: from.counter + 1, events: vec![granted], ..Default::default() };
            self.store.flush(batch).await.unwrap();
            self.sequences.insert(id.clone(), 1);
        }
        accounts
    }

    /// `rows` settled requests over the accounts, in turn.
    async fn prepare(&mut self, accounts: &[AccountId], rows: usize, shards: u32) -> Arc<Prepared> {
        let mut entries: Vec<Vec<Vec<Event>>> = vec![Vec::new(); shards as usize];
        for row in 0..rows {
            let number = row % accounts.len();
            let seq = self.sequences.get_mut(&accounts[number]).unwrap();
            *seq += 1;
            let shard = &mut entries[number % shards as usize];
            if shard.last().is_none_or(|entry| entry.len() == EVENTS_PER_ENTRY) {
                shard.push(Vec::with_capacity(EVENTS_PER_ENTRY));
            }
            shard.last_mut().unwrap().push(settled(&accounts[number], *seq));
        }
        let mut from = Vec::new();
        for shard in 0..shards {
            from.push(self.store.cursor(shard).await.unwrap().counter);
        }
        Arc::new(Prepared { entries, from, left: AtomicU64::new(u64::from(shards)), done: Notify::new() })
    }

    async fn flush(&self, log: Arc<Prepared>) -> Duration {
        let stop = CancellationToken::new();
        let metrics = Metrics::new().unwrap();
        let begin = Instant::now();
        let mut flusher =
            pin!(bridge::flush::run(log.clone(), self.store.clone(), &self.settings, metrics.clone(), stop.clone()));
        tokio::select! {
            () = &mut flusher => panic!("the flusher ended"),
            () = log.done.notified() => {}
        }
        let took = begin.elapsed();
        stop.cancel();
        flusher.await;
        assert_eq!(metrics.dead_letters.get(), 0);
        took
    }
}

fn event(account: &AccountId, seq: u64) -> Event {
    Event {
        account: account.clone(),
        seq,
        at: now_us(),
        kind: EventKind::Settled,
        charged: Credits::ZERO,
        written_off: Credits::ZERO,
        forfeited: Credits::ZERO,
        debt_delta: 0,
        change: 0,
        deltas: Default::default(),
        record: None,
        usage: Bytes::new(),
    }
}

fn settled(account: &AccountId, seq: u64) -> Event {
    let usage = Usage {
        request_id: Uuid::now_v7(),
        key_id: Some("key_0198c2a57f3d7c10".to_owned()),
        route: "openai".to_owned(),
        upstream: Some("upstream".to_owned()),
        model: Some("gpt-4o-mini".to_owned()),
        status: 200,
        input_tokens: 61,
        output_tokens: 52,
        streamed: true,
        latency_ms: 812,
        created_at_ms: now_us() / 1_000,
        ..Usage::default()
    };
    Event {
        charged: Credits::whole(1),
        deltas: [Delta { grant: GrantId(1), micro: -1_000_000 }].into_iter().collect(),
        usage: usage.encode(),
        ..event(account, seq)
    }
}

fn now_us() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as u64
}

/// Empties the table; answers how long plain COPY takes to write the same rows again.
async fn copy(client: &tokio_postgres::Client, rows: usize) -> Duration {
    let read = client.copy_out("COPY (SELECT * FROM usage_logs) TO STDOUT (FORMAT binary)").await.unwrap();
    let chunks: Vec<Bytes> = read.try_collect().await.unwrap();
    client.batch_execute("TRUNCATE usage_logs; CHECKPOINT").await.unwrap();
    let mut whole = bytes::BytesMut::new();
    chunks.iter().for_each(|chunk| whole.extend_from_slice(chunk));
    let mut whole = whole.freeze();
    let begin = Instant::now();
    let mut sink = pin!(client.copy_in::<_, Bytes>("COPY usage_logs FROM STDIN (FORMAT binary)").await.unwrap());
    while !whole.is_empty() {
        let piece = whole.split_to(whole.len().min(1 << 16));
        sink.send(piece).await.unwrap();
    }
    let written = sink.finish().await.unwrap();
    let took = begin.elapsed();
    assert_eq!(written as usize, rows);
    took
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main]
async fn main() {
    let Ok(url) = std::env::var("FAREGATE_STORE_URL") else {
        return println!("flush: FAREGATE_STORE_URL is not set; `make bench-flush` starts a server");
    };
    let (rows, rounds) = (number("FLUSH_ROWS", 200_000), number("FLUSH_ROUNDS", 5));
    let shards = number("FLUSH_SHARDS", 1) as u32;
    let accounts = std::env::var("FLUSH_ACCOUNTS").unwrap_or_else(|_| "16 1000".to_owned());
    let settings = config::Store { url: url.clone(), timeout_ms: 60_000, ..config::Store::default() };
    let store = store::open(&settings, std::path::Path::new(".")).await.unwrap();
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut bench = Bench { store, settings, sequences: HashMap::new() };
    println!("{rows} rows a round, {rounds} rounds, {shards} shards; rows a second, medians");
    println!("{:>8} {:>10} {:>10} {:>6}", "accounts", "flusher", "COPY", "share");
    for count in accounts.split_whitespace().map(|text| text.parse::<usize>().expect("a number")) {
        let accounts = bench.accounts(count, shards).await;
        let (mut flushed, mut copied) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let log = bench.prepare(&accounts, rows, shards).await;
            client.batch_execute("TRUNCATE usage_logs; CHECKPOINT").await.unwrap();
            flushed.push(rows as f64 / bench.flush(log).await.as_secs_f64());
            copied.push(rows as f64 / copy(&client, rows).await.as_secs_f64());
        }
        let (flushed, copied) = (median(flushed), median(copied));
        println!("{count:>8} {flushed:>10.0} {copied:>10.0} {:>6.2}", flushed / copied);
    }
    bench.store.close().await;
    drop(client);
    connection.await.unwrap().unwrap();
}
