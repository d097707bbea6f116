//! The ledger in the process: the account model behind locks.
