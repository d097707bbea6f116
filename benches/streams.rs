//! Many event streams at once: how long the first event takes, how far the gaps between events stray from what the
//! upstream keeps, and what a process weighs while all of them are open. `benches/footprint.sh` runs it against the
//! upstream itself and against the gateway in front of it.
//!
//! STREAMS_ADDRESS (host:port) · STREAMS_KEYS (a file, a key a line) · STREAMS (1000) · STREAMS_PER_SECOND (500; 0: all
//! at once) · STREAMS_GAP_MS (1000) · STREAMS_EVENTS (10) · STREAMS_PID (whose memory is told)
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark may fail loudly")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// After the last stream began and before the process is weighed.
const SETTLE: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(120);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// What one stream saw, in microseconds.
struct Seen {
    first: u64,
    gaps: Vec<u64>,
}

struct Plan {
    address: String,
    requests: Vec<String>,
    events: usize,
    begun: AtomicUsize,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let Ok(address) = std::env::var("STREAMS_ADDRESS") else {
        return println!("streams: STREAMS_ADDRESS is not set; `make bench-footprint` starts what it needs");
    };
    let keys = std::fs::read_to_string(std::env::var("STREAMS_KEYS").expect("STREAMS_KEYS")).unwrap();
    let (streams, rate) = (number("STREAMS", 1_000) as usize, number("STREAMS_PER_SECOND", 500));
    let (gap_ms, events) = (number("STREAMS_GAP_MS", 1_000), number("STREAMS_EVENTS", 10) as usize);
    let body = format!(
        r#"{{"model":"sim-1@tokens={events},chunk-ms={gap_ms}","stream":true,"messages":[{{"role":"user","content":"hello"}}]}}"#
    );
    let request = |key: &str| {
        let head = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\n");
        format!("{head}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    let requests = keys.lines().map(request).collect();
    let plan = Arc::new(Plan { address, requests, events, begun: AtomicUsize::new(0) });
    let idle = weight();
    let began = tokio::time::Instant::now();
    let mut running = JoinSet::new();
    for index in 0..streams {
        if let Some(micros) = (index as u64 * 1_000_000).checked_div(rate) {
            tokio::time::sleep_until(began + Duration::from_micros(micros)).await;
        }
        let plan = Arc::clone(&plan);
        running.spawn(async move { stream(&plan, index).await });
    }
    let full = tokio::spawn({
        let plan = Arc::clone(&plan);
        async move {
            while plan.begun.load(Ordering::Relaxed) < streams {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            tokio::time::sleep(SETTLE).await;
            weight()
        }
    });
    let seen = tokio::time::timeout(LONGEST, running.join_all()).await.expect("every stream ends");
    let full = full.await.unwrap();
    let each = full.zip(idle).map(|(full, idle)| (full.saturating_sub(idle)) * 1_024 / streams as u64);
    let each = each.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
    let firsts = seen.iter().map(|seen| seen.first).collect();
    let strays = seen.iter().flat_map(|seen| &seen.gaps).map(|gap| gap.abs_diff(gap_ms * 1_000)).collect();
    let (first, stray) = (quantiles(firsts), quantiles(strays));
    println!("STREAMS {} {} {} {} {each}", first.0, first.1, stray.0, stray.1);
}

async fn stream(plan: &Plan, index: usize) -> Seen {
    let mut connection = TcpStream::connect(&plan.address).await.unwrap();
    connection.set_nodelay(true).unwrap();
    let request = &plan.requests[index % plan.requests.len()];
    let asked = Instant::now();
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut seen = Seen { first: 0, gaps: Vec::with_capacity(plan.events) };
    let (mut before, mut tail, mut buffer) = (asked, Vec::new(), vec![0; 4_096]);
    while !tail.ends_with(b"0\r\n\r\n") {
        let count = connection.read(&mut buffer).await.unwrap();
        assert!(count > 0, "a stream broke off: {:?}", String::from_utf8_lossy(&tail));
        let (now, bytes) = (Instant::now(), &buffer[..count]);
        tail.extend_from_slice(bytes);
        tail.drain(..tail.len().saturating_sub(512));
        if bytes.windows(5).any(|window| window == b"data:") {
            let passed = now.duration_since(before).as_micros() as u64;
            before = now;
            if seen.first == 0 {
                assert!(bytes.starts_with(b"HTTP/1.1 200") || !bytes.starts_with(b"HTTP/"), "{:?}", tail);
                seen.first = passed.max(1);
                plan.begun.fetch_add(1, Ordering::Relaxed);
            } else if seen.gaps.len() + 2 < plan.events {
                // The last ones come together with the end.
                seen.gaps.push(passed);
            }
        }
    }
    seen
}

/// Resident kilobytes of the process in question.
fn weight() -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", std::env::var("STREAMS_PID").ok()?)).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()
}

/// Median and 99th percentile.
fn quantiles(mut values: Vec<u64>) -> (u64, u64) {
    values.sort_unstable();
    let at = |percent: usize| values.get((values.len() * percent / 100).min(values.len().saturating_sub(1))).copied();
    (at(50).unwrap_or(0), at(99).unwrap_or(0))
}
