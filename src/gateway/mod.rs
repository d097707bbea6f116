//! The data plane: one request's way from the client to the upstream and back.

pub mod meter;
