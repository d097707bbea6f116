//! Redis's CPU time for a batch of a worker's session, and for each request in it (`cargo bench --bench ledger_batch`):
//! what the client spends does not count, so that the build's profile does not matter. It starts its own redis-server.
//!
//! `LEDGER_BENCH_REQUESTS` (200,000): requests for each batch size; `LEDGER_BENCH_SIZES`: the sizes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark may fail loudly")]

use std::collections::VecDeque;
use std::net::TcpListener;
use std::process::{Child, Command};
use std::time::Duration;

use faregate::credits::Credits;
use faregate::ledger::redis::connection::{Connector, Link};
use faregate::ledger::redis::script;
use faregate::ledger::redis::wire::Keyspace;
use faregate::ledger::redis::wire::decode::{self, BatchReply};
use faregate::ledger::redis::wire::encode::{self, Header, Packed};
use faregate::ledger::{
    AccountId, AccountState, Act, Answer, GrantId, GrantKind, GrantState, Limits, Op, Reserved, SessionId,
};
use faregate::usage::Usage;
use redis::Value;

const ACCOUNTS: usize = 500;
/// Requests under way.
const IN_FLIGHT: usize = 48;
/// Requests (a reserve and a settle each) in a batch.
const SIZES: &str = "0 1 4 12 32";

struct Server {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Server {
    fn start() -> Server {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--logfile", "log", "--dir"])
            .arg(dir.path())
            .spawn()
            .expect("redis-server starts");
        Server { child, dir, port }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.dir.path();
    }
}

struct Bench {
    link: Link,
    keys: Keyspace,
    packed: Packed,
    number: u64,
    accounts: Vec<AccountId>,
    turn: usize,
    holds: VecDeque<(AccountId, Reserved)>,
}

const SESSION: SessionId = SessionId(0x1f_ffff_dead_beef);

impl Bench {
    async fn batch(&mut self, ops: &[Op]) -> Vec<Answer> {
        self.number += 1;
        let header =
            Header { session: SESSION, number: self.number, max_backlog: u64::MAX, memory_full: false, seen: 0 };
        self.packed.pack(&self.keys, header, ops.iter());
        let command = self.packed.command();
        let bytes = self.link.call_bytes(&script::BATCH, &command).await.unwrap();
        match decode::batch(&bytes, SESSION, ops.iter()).unwrap() {
            BatchReply::Applied { answers, .. } => answers,
            other => panic!("{other:?}"),
        }
    }

    async fn open(&mut self) {
        let (meta, events) = (self.keys.meta(), self.keys.events());
        let command =
            script::OPEN.command([meta.as_str(), events.as_str()].into_iter(), &encode::numbers(&[self.keys.epoch, 1]));
        self.link.call(&script::OPEN, &command).await.unwrap();
        let grant = GrantState {
            id: GrantId(1),
            kind: GrantKind::Free,
            remaining_micro: 100_000_000_000_000,
            expires_at: 0,
            frozen: false,
        };
        let state = AccountState { change: 1, grants: vec![grant], ..AccountState::default() };
        for account in self.accounts.clone() {
            let op = |act| Op { account: account.clone(), act };
            let ops = [op(Act::Ticket { ticket: 1 }), op(Act::Load { ticket: 1, state: state.clone() })];
            assert_eq!(self.batch(&ops).await, [Answer::Ticketed, Answer::Loaded]);
        }
    }

    fn reserve(&mut self) -> Op {
        self.turn = (self.turn + 1) % self.accounts.len();
        let amount = Credits::from_micro(1_000_000).unwrap();
        let act = Act::Reserve { amount, floor: amount, tokens: 318, limits: Limits::default() };
        Op { account: self.accounts[self.turn].clone(), act }
    }

    /// Settles what has been under way for the longest, and reserves as often.
    async fn requests(&mut self, count: usize, usage: &bytes::Bytes) {
        let mut ops = Vec::with_capacity(count * 2);
        for _ in 0..count.min((self.holds.len() + count).saturating_sub(IN_FLIGHT)) {
            let Some((account, hold)) = self.holds.pop_front() else { break };
            let Reserved { session, parts, .. } = hold;
            let actual = Credits::from_micro(1_000_000).unwrap();
            let act = Act::Settle { session, parts, actual, tokens_back_us: 0, usage: usage.clone() };
            ops.push(Op { account, act });
        }
        for _ in 0..count {
            ops.push(self.reserve());
        }
        let answers = self.batch(&ops).await;
        for (op, answer) in ops.into_iter().zip(answers) {
            match answer {
                Answer::Reserved(hold) => self.holds.push_back((op.account, hold)),
                Answer::Settled { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// What a flusher would say, so that the stream stays short.
    async fn trim(&mut self) {
        self.link.send(redis::cmd("XTRIM").arg(self.keys.events()).arg("MAXLEN").arg(0)).await.unwrap();
    }

    /// Microseconds that the server's main thread has worked.
    async fn cpu(&mut self) -> f64 {
        let Value::BulkString(info) = self.link.send(redis::cmd("INFO").arg("cpu")).await.unwrap() else {
            panic!("INFO answers text")
        };
        let info = String::from_utf8(info).unwrap();
        let seconds = |name: &str| -> f64 {
            let line = info.lines().find_map(|line| line.strip_prefix(name)).expect("redis 7 tells it");
            line.trim().parse().unwrap()
        };
        (seconds("used_cpu_user_main_thread:") + seconds("used_cpu_sys_main_thread:")) * 1e6
    }

    async fn run(&mut self, size: usize, requests: usize, usage: &bytes::Bytes) {
        let batches = (requests / size.max(8)).max(1);
        for _ in 0..batches / 10 {
            self.requests(size, usage).await;
        }
        let mut spent = 0.0;
        for piece in 0..10 {
            self.trim().await;
            let begun = self.cpu().await;
            for _ in 0..batches * (piece + 1) / 10 - batches * piece / 10 {
                self.requests(size, usage).await;
            }
            spent += self.cpu().await - begun;
        }
        let batch = spent / batches as f64;
        match size {
            0 => println!("{size:>3} requests a batch: {batch:>8.2} us a batch"),
            _ => println!(
                "{size:>3} requests a batch: {batch:>8.2} us a batch, {:>6.2} us a request",
                batch / size as f64
            ),
        }
    }
}

fn main() {
    let requests = std::env::var("LEDGER_BENCH_REQUESTS").map_or(200_000, |text| text.parse().expect("a number"));
    let server = Server::start();
    eprintln!("redis-server: process {}", server.child.id());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connector = Connector::new(&format!("redis://127.0.0.1:{}/", server.port), Duration::from_secs(5)).unwrap();
        let mut link = connector.link(prometheus::IntCounter::new("reconnects", "reconnects").unwrap());
        while link.send(&redis::cmd("PING")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let account = |index| AccountId::parse(&format!("01999999-aaaa-7000-8000-{index:012}")).unwrap();
        let mut bench = Bench {
            link,
            keys: Keyspace::new(0, 1),
            packed: Packed::default(),
            number: 0,
            accounts: (0..ACCOUNTS).map(account).collect(),
            turn: 0,
            holds: VecDeque::new(),
        };
        bench.open().await;
        let usage = Usage {
            key_id: Some("key_0123456789".to_owned()),
            route: "openai".to_owned(),
            upstream: Some("default".to_owned()),
            model: Some("bench-1".to_owned()),
            status: 200,
            input_tokens: 61,
            output_tokens: 52,
            latency_ms: 12,
            created_at_ms: 1_760_000_000_000,
            ..Usage::default()
        };
        let usage = usage.encode();
        let sizes = std::env::var("LEDGER_BENCH_SIZES").unwrap_or_else(|_| SIZES.to_owned());
        for size in sizes.split_whitespace() {
            bench.run(size.parse().expect("a number"), requests, &usage).await;
        }
    });
}
