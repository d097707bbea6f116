//! The two logs between ledger and store: events one way, billing changes the other.
