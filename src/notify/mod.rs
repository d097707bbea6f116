//! Tells users what happens to their account, as it happens: event streams here, the product's backend by webhook.
//!
//! What is told was decided elsewhere: balances by the ledger, notifications in the transactions that raise them. This
//! room follows the store and the ledger for whoever listens, and costs those who do not listen nothing.

pub mod hub;
pub mod outbox;
pub mod seat;
mod topic;
pub mod webhook;
