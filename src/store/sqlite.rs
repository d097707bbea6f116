//! The store as a SQLite file.
