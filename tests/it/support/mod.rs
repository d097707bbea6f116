//! What the integration tests stand on: real servers of their own, the real binary, clients, and bounded waits.
//!
//! Everything listens on loopback, lives in a temporary folder, and is ended by pid: when its handle is dropped, or by
//! the [`reaper`] when the test binary itself dies.
#![allow(dead_code, unused_imports, reason = "no single test uses all of it")]

pub mod certificates;
pub mod chaos;
pub mod faregate;
pub mod http;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod reaper;
pub mod redis;
pub mod redis_cluster;
pub mod redis_sentinel;
pub mod stack_auth;
pub mod stripe;
#[cfg(test)]
mod tests;
pub mod upstream;

use std::future::Future;
use std::time::{Duration, Instant};

pub use certificates::{Authority, Pair};
pub use chaos::ChaosProxy;
pub use faregate::{Faregate, Options};
pub use http::{Answer, Http, raw};
pub use ports::free_port;
pub use postgres::Postgres;
pub use redis::Redis;
pub use redis_cluster::RedisCluster;
pub use redis_sentinel::Sentinels;
pub use stack_auth::StackAuth;
pub use stripe::Stripe;
pub use upstream::Sim;

/// Rounds of the tests in which something is killed or stopped: FAREGATE_FAULT_ROUNDS, five without it.
pub fn fault_rounds() -> usize {
    std::env::var("FAREGATE_FAULT_ROUNDS").ok().map_or(5, |rounds| rounds.parse().expect("a number of rounds"))
}

const POLL: Duration = Duration::from_millis(10);

/// Waits until `condition` answers `Some`, and gives that back.
///
/// # Panics
/// When `deadline` passes first; `what` says what never came.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    deadline: Duration,
    what: &str,
    mut condition: impl FnMut() -> F,
) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// [`eventually`] for a plain condition, outside async code.
pub fn eventually_blocking<T>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        std::thread::sleep(POLL);
    }
}
