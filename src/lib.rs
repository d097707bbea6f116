//! Faregate: a gateway in front of an AI service that makes sure every request is paid for.

pub mod admin;
pub mod api;
pub mod billing;
pub mod bridge;
pub mod cli;
pub mod config;
pub(crate) mod cors;
pub mod credits;
pub mod error;
pub mod fraud;
pub mod gateway;
pub mod identity;
pub mod ledger;
pub mod limits;
pub mod mail;
pub mod notify;
pub(crate) mod outbound;
pub mod page;
pub mod pricing;
pub mod rollout;
pub mod serve;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod usage;
