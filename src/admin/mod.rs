//! The operator's API, on the admin listener.
