//! Tests of metering.
