//! Faregate: a gateway in front of an AI service that makes sure every request is paid for.

pub mod config;
pub mod credits;
pub mod identity;
pub mod ledger;
pub mod pricing;
pub mod store;
pub mod telemetry;
pub mod usage;
