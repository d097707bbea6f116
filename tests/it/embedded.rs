//! Tests of embedded.
