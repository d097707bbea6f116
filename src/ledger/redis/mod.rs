//! The ledger in Redis: worker sessions that send numbered batches to a Lua script.
