-- Records of both ledgers are here now: those of a day may be many, of which the open ones are few.
CREATE INDEX ledger_records_open ON ledger_records (user_id) WHERE held;

-- Which process has the store to itself: one whose ledger is its own memory. It says so again every other second.
CREATE TABLE ledger_owners (
    one         boolean     PRIMARY KEY DEFAULT true CHECK (one),
    process     bigint      NOT NULL,
    seen_at     timestamptz NOT NULL
);
