//! Tests of smoke.
