//! The hot path's own parts, alone: nanoseconds each (`cargo bench --bench hot_path`), or instructions each under
//! valgrind (`benches/instructions.sh`), which hardly vary from run to run.
//!
//! `--case <name> --iterations <n>` runs one case so many times and prints nothing: what the script asks for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark may fail loudly")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use faregate::config;
use faregate::credits::Credits;
use faregate::gateway::meter::{AnswerMeter, Endpoint, Inspection, StreamMeter};
use faregate::ledger::account::{Account, Context};
use faregate::ledger::{
    AccountId, AccountState, Act, Answer, Event, GrantId, GrantKind, GrantState, Limits, Parts, SessionId,
};
use faregate::pricing::{Price, PriceList};
use faregate::usage::Usage;

/// Each measurement runs about so long.
const ROUND: Duration = Duration::from_millis(100);
const ROUNDS: usize = 15;

type Case = (&'static str, fn() -> Box<dyn FnMut()>);

const CASES: [Case; 6] = [
    ("reserve_and_settle", reserve_and_settle),
    ("encode_usage", encode_usage),
    ("inspect_request", inspect_request),
    ("rewrite_request", rewrite_request),
    ("meter_answer", meter_answer),
    ("meter_stream_of_100_chunks", meter_stream),
];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| Some(arguments.get(arguments.iter().position(|argument| argument == name)? + 1)?.as_str());
    if arguments.iter().any(|argument| argument == "--list-cases") {
        return CASES.iter().for_each(|(name, _)| println!("{name}"));
    }
    match (value("--case"), value("--iterations")) {
        (Some(case), Some(iterations)) => {
            let (_, make) = CASES.iter().find(|(name, _)| *name == case).expect("a case's name");
            let mut run = make();
            (0..iterations.parse::<u64>().expect("a number")).for_each(|_| run());
        }
        _ => CASES.iter().for_each(|(name, make)| println!("{name:<28} {:>9.1} ns", time(&mut *make()))),
    }
}

/// Nanoseconds of one run: the median of several rounds.
fn time(run: &mut dyn FnMut()) -> f64 {
    let mut batch = 1_u32;
    while once(run, batch) < ROUND / 20 {
        batch *= 2;
    }
    let batch = batch * 20;
    let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| once(run, batch).as_secs_f64() * 1e9 / f64::from(batch)).collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

fn once(run: &mut dyn FnMut(), count: u32) -> Duration {
    let start = Instant::now();
    (0..count).for_each(|_| run());
    start.elapsed()
}

fn reserve_and_settle() -> Box<dyn FnMut()> {
    let grant = |id: u64, micro: i64| GrantState {
        id: GrantId(id),
        kind: GrantKind::Free,
        remaining_micro: micro,
        expires_at: 0,
        frozen: false,
    };
    let state = AccountState { grants: vec![grant(1, 1 << 51), grant(2, 1 << 51)], ..AccountState::default() };
    let mut account = with_context(&mut Vec::new(), |context| Account::load(&state, context));
    let limits = Limits { requests_per_minute: 0, tokens_per_minute: 0, concurrency: 100 };
    let amount = Credits::from_micro(3).unwrap();
    let usage = sample_usage().encode();
    let mut events = Vec::new();
    Box::new(move || {
        with_context(&mut events, |context| {
            let reserve = Act::Reserve { amount, floor: amount, tokens: 100, limits };
            let parts: Parts = match account.apply(&reserve, context) {
                Answer::Reserved(reserved) => reserved.parts,
                other => panic!("{other:?}"),
            };
            let actual = Credits::from_micro(1).unwrap();
            let settle = Act::Settle { session: SESSION, parts, actual, tokens_back_us: 0, usage: usage.clone() };
            black_box(account.apply(&settle, context));
        });
        events.clear();
    })
}

const SESSION: SessionId = SessionId(7);

fn with_context<T>(events: &mut Vec<Event>, work: impl FnOnce(&mut Context<'_>) -> T) -> T {
    work(&mut Context {
        account: &AccountId::parse("bench").unwrap(),
        now: 1_760_000_000_000_000,
        session: SESSION,
        fenced: &|_| false,
        backlogged: false,
        record: &mut None,
        events,
    })
}

fn sample_usage() -> Usage {
    Usage {
        key_id: Some("key_0123456789".to_owned()),
        route: "openai".to_owned(),
        upstream: Some("default".to_owned()),
        model: Some("gpt-4o-mini".to_owned()),
        status: 200,
        input_tokens: 61,
        output_tokens: 52,
        latency_ms: 12,
        created_at_ms: 1_760_000_000_000,
        ..Usage::default()
    }
}

fn encode_usage() -> Box<dyn FnMut()> {
    let usage = sample_usage();
    Box::new(move || {
        black_box(usage.encode());
    })
}

fn request(stream: bool) -> Bytes {
    let text = "How far is it to the harbour, and which line goes there? ".repeat(4);
    let body = serde_json::json!({
        "model": "gpt-4o-mini", "messages": [{ "role": "user", "content": text }], "max_tokens": 64, "stream": stream,
    });
    body.to_string().into()
}

fn inspect(body: &Bytes) -> Inspection {
    Inspection::read(Endpoint::Chat, body, &config::Metering::default()).unwrap()
}

fn price() -> Price {
    let model = config::ModelPrice {
        input_per_million: Credits::whole(1),
        output_per_million: Credits::whole(4),
        ..config::ModelPrice::default()
    };
    let list = config::Price { models: vec![model], ..config::Price::default() };
    PriceList::new(&list).unwrap().price(Some("gpt-4o-mini")).unwrap()
}

fn inspect_request() -> Box<dyn FnMut()> {
    let (body, price) = (request(false), price());
    Box::new(move || {
        let inspection = inspect(black_box(&body));
        black_box(price.upper_bound(inspection.upper_tokens(&price, None)));
    })
}

fn rewrite_request() -> Box<dyn FnMut()> {
    let body = request(true);
    let inspection = inspect(&body);
    Box::new(move || {
        black_box(inspection.forward_body(black_box(body.clone()), Some(32)));
    })
}

fn meter_answer() -> Box<dyn FnMut()> {
    let inspection = inspect(&request(false));
    let answer = Bytes::from(
        serde_json::json!({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1_760_000_000, "model": "gpt-4o-mini",
            "choices": [{ "index": 0, "finish_reason": "stop", "message": {
                "role": "assistant", "content": "The gate is open, take your seat and enjoy the ride. ".repeat(8) } }],
            "usage": { "prompt_tokens": 61, "completion_tokens": 52, "total_tokens": 113 },
        })
        .to_string(),
    );
    Box::new(move || {
        let mut meter = AnswerMeter::new(Endpoint::Chat, &inspection);
        meter.push(black_box(&answer));
        black_box(meter.finish());
    })
}

fn meter_stream() -> Box<dyn FnMut()> {
    let inspection = inspect(&request(true));
    let chunk = |choices: serde_json::Value, usage: serde_json::Value| {
        let data = serde_json::json!({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_760_000_000, "model": "gpt-4o-mini",
            "choices": choices, "usage": usage,
        });
        Bytes::from(format!("data: {data}\n\n"))
    };
    let delta = serde_json::json!([{ "index": 0, "delta": { "content": " gate" }, "finish_reason": null }]);
    let mut chunks = vec![chunk(delta, serde_json::Value::Null); 98];
    let usage = serde_json::json!({ "prompt_tokens": 61, "completion_tokens": 98, "total_tokens": 159 });
    chunks.push(chunk(serde_json::json!([]), usage));
    chunks.push(Bytes::from_static(b"data: [DONE]\n\n"));
    Box::new(move || {
        let mut meter = StreamMeter::new(Endpoint::Chat, &inspection);
        for chunk in &chunks {
            black_box(meter.push(chunk.clone()));
        }
        black_box(meter.end());
        black_box(meter.tally());
    })
}
