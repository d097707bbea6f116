-- Records of both ledgers are here now: those of a day may be many, of which the open ones are few.
CREATE INDEX ledger_records_open ON ledger_records (user_id) WHERE held = 1;

-- Which process has the store to itself: one whose ledger is its own memory. It says so again every other second.
CREATE TABLE ledger_owners (
    one         INTEGER PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    process     INTEGER NOT NULL,
    seen_at     INTEGER NOT NULL
) STRICT;
