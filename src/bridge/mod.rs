//! The two logs between ledger and store: events one way, billing changes the other.
//!
//! [`flush`] writes what the ledger emitted into the store, in order and exactly once: the store's cursor moves in the
//! same transaction. [`fold`] brings what it left in the store's journal into the tables. [`Pusher`] brings numbered billing changes to the ledger until it has acknowledged each.
//! [`StoreSource`] is where a ledger finds an account that it does not have.

pub mod audit;
pub mod flush;
pub mod fold;
mod pace;
pub mod push;
pub mod redis;
pub mod reopen;
pub mod source;
pub mod spenders;
pub mod usage_sums;

pub use crate::ledger::log::{Entries, EventLog, LogError};
pub use audit::{Auditor, RedisShards, Shards};
pub use push::{PushError, Pusher};
pub use redis::RedisEvents;
pub use reopen::StoreEpochs;
pub use source::StoreSource;
