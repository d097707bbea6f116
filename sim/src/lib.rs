//! Simulators for the demo and the tests.

// An invoice has more fields than a JSON literal may have by default.
#![recursion_limit = "512"]

pub mod stack_auth;
pub mod stripe;
pub mod upstream;
