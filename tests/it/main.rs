//! The integration tests: one binary, against real servers that it starts itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "nothing is reachable from outside a test binary")]

mod admission;
mod api;
mod billing;
mod cluster;
mod docs;
mod embedded;
mod faults;
mod identity;
mod ledger_props;
mod metering;
mod notify;
mod page;
mod protocol;
mod proxy;
mod recovery;
mod redis_ledger;
mod rollout;
mod smoke;
mod store;
mod support;
mod through_stripe;
mod tls;
mod traces;
