//! Simulators for the demo and the tests.

pub mod upstream;
