//! What a request costs Redis: a measurement, for `cargo test --test it redis_ledger::cost -- --ignored --nocapture`.

use std::time::Duration;

use faregate::ledger::redis::connection::Connector;
use faregate::ledger::redis::script;
use faregate::ledger::redis::wire::Keyspace;
use faregate::ledger::redis::wire::decode::{self, BatchReply};
use faregate::ledger::redis::wire::encode::{Header, Packed};
use faregate::ledger::{AccountId, Act, Answer, Limits, Op, SessionId};

use super::fixture::{Fixture, credits};
use crate::support::Redis;

const ACCOUNTS: usize = 200;
const REQUESTS: usize = 60_000;

#[tokio::test]
#[ignore = "a measurement, not a test"]
async fn cpu_of_redis_per_request() {
    let one = std::env::var("FAREGATE_COST_BATCH").ok().and_then(|batch| batch.parse().ok());
    for batch in one.map_or(vec![1, 8, 25, 64], |batch| vec![batch]) {
        let redis = Redis::start();
        let fixture = Fixture::new(&redis).await;
        let accounts: Vec<AccountId> =
            (0..ACCOUNTS).map(|number| fixture.account(&format!("user_{number:016}"), 1 << 50)).collect();
        for account in &accounts {
            fixture.balance(account).await;
        }
        redis.command(&["CONFIG", "SET", "slowlog-max-len", "5000", "slowlog-log-slower-than", "0"]);
        let before = cpu_us(&redis);
        let requests = REQUESTS.min(batch * 6_000);
        drive(&redis, &accounts, batch, requests).await;
        let used = cpu_us(&redis) - before;
        let undisturbed = script_us(&redis) / batch as f64;
        let all = used / requests as f64;
        println!(
            "batches of {batch:2} requests: {all:.2} us of Redis a request, the script undisturbed {undisturbed:.2} us"
        );
        fixture.shut_down().await;
    }
}

/// Each batch settles what the one before reserved, and reserves as much again.
async fn drive(redis: &Redis, accounts: &[AccountId], batch: usize, requests: usize) {
    let keys = Keyspace::new(0, 0);
    let reconnects = prometheus::IntCounter::new("reconnects", "reconnects").unwrap();
    let mut link = Connector::new(&redis.url(), Duration::from_secs(5)).unwrap().link(reconnects);
    let limits = Limits { requests_per_minute: 1_000_000_000, tokens_per_minute: 1_000_000_000, concurrency: 1_000 };
    let session = SessionId(4_503_599_627_370_495);
    let mut settles: Vec<Op> = Vec::new();
    let mut packed = Packed::default();
    for number in 1..=(requests / batch) as u64 {
        let mut ops = std::mem::take(&mut settles);
        for index in 0..batch {
            let account = accounts[(number as usize * batch + index) * 7919 % accounts.len()].clone();
            let act = Act::Reserve { amount: credits(1_000_000), floor: credits(1_000_000), tokens: 500, limits };
            ops.push(Op { account, act });
        }
        let header = Header { session, number, max_backlog: 1 << 50, memory_full: false };
        packed.pack(&keys, header, ops.iter());
        let command = script::BATCH.command(packed.keys(), &packed.argument.0);
        let bytes = link.call_bytes(&script::BATCH, &command).await.unwrap();
        let BatchReply::Applied { answers, .. } = decode::batch(&bytes, session, ops.iter()).unwrap() else {
            panic!("not applied")
        };
        for (op, answer) in ops.into_iter().zip(answers) {
            match answer {
                Answer::Reserved(reserved) => {
                    let usage = bytes::Bytes::from_static(&[7; 120]);
                    let actual = credits(700_000);
                    let act = Act::Settle { session, parts: reserved.parts, actual, tokens_back_us: 10, usage };
                    settles.push(Op { account: op.account, act });
                }
                Answer::Settled { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        if number % 64 == 0 {
            redis.command(&["XTRIM", "fg:{00}:0:events", "MAXLEN", "0"]);
        }
    }
}

/// Time of a call that nothing disturbed: one in ten is as fast.
fn script_us(redis: &Redis) -> f64 {
    let script = "local times = {} for _, entry in ipairs(redis.call('SLOWLOG', 'GET', '5000')) do \
                  if entry[4][1] == 'EVALSHA' then times[#times + 1] = entry[3] end end \
                  table.sort(times) return times[math.floor(#times / 10) + 1]";
    redis.command(&["EVAL", script, "0"]).parse().unwrap()
}

fn cpu_us(redis: &Redis) -> f64 {
    let info = redis.command(&["INFO", "cpu"]);
    let seconds = |name: &str| -> f64 {
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.trim().parse().unwrap()
    };
    (seconds("used_cpu_user") + seconds("used_cpu_sys")) * 1e6
}
