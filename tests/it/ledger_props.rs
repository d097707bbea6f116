//! Tests of ledger_props.
