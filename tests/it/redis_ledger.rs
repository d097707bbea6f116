//! Tests of redis_ledger.
