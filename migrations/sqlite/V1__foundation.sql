-- Amounts are micro-credits, times microseconds since the Unix epoch. Strict tables: an overflowing sum is an error, not a float.

CREATE TABLE users (
    id          TEXT    NOT NULL PRIMARY KEY,
    email       TEXT,
    plan        TEXT    NOT NULL,
    status      TEXT    NOT NULL CHECK (status IN ('active', 'frozen', 'closed')),
    created_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The account as of its last flushed event. What was granted, charged and written off adds up to balance - debt.
CREATE TABLE credits (
    user_id         TEXT    NOT NULL PRIMARY KEY REFERENCES users (id),
    seq             INTEGER NOT NULL DEFAULT 0 CHECK (seq >= 0),
    balance         INTEGER NOT NULL DEFAULT 0,
    debt            INTEGER NOT NULL DEFAULT 0 CHECK (debt >= 0),
    frozen          INTEGER NOT NULL DEFAULT 0 CHECK (frozen IN (0, 1)),
    granted         INTEGER NOT NULL DEFAULT 0,
    charged         INTEGER NOT NULL DEFAULT 0,
    written_off     INTEGER NOT NULL DEFAULT 0,
    forfeited       INTEGER NOT NULL DEFAULT 0,
    applied_change  INTEGER NOT NULL DEFAULT 0,
    last_change     INTEGER NOT NULL DEFAULT 0 CHECK (last_change >= applied_change)
) STRICT, WITHOUT ROWID;

CREATE TABLE credit_changes (
    id          INTEGER PRIMARY KEY,
    user_id     TEXT    NOT NULL REFERENCES credits (user_id),
    number      INTEGER NOT NULL CHECK (number > 0),
    payload     TEXT    NOT NULL,
    source_key  TEXT    UNIQUE,
    note        TEXT,
    actor       TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    applied     INTEGER NOT NULL DEFAULT 0 CHECK (applied IN (0, 1)),
    UNIQUE (user_id, number)
) STRICT;
CREATE INDEX credit_changes_unapplied ON credit_changes (id) WHERE applied = 0;

-- A grant's id is the number of the change that made it. Once the row is there, only a flush changes what remains.
CREATE TABLE credit_grants (
    user_id     TEXT    NOT NULL,
    id          INTEGER NOT NULL,
    kind        TEXT    NOT NULL CHECK (kind IN ('free', 'plan', 'topup', 'promo', 'adjust')),
    amount      INTEGER NOT NULL CHECK (amount >= 0),
    remaining   INTEGER NOT NULL CHECK (remaining >= 0 AND remaining <= amount),
    expires_at  INTEGER,
    frozen      INTEGER NOT NULL DEFAULT 0 CHECK (frozen IN (0, 1)),
    source_key  TEXT    UNIQUE,
    note        TEXT,
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (user_id, id),
    FOREIGN KEY (user_id, id) REFERENCES credit_changes (user_id, number)
) STRICT, WITHOUT ROWID;

-- One row per settled request, appended; the index by account and sequence is the order of pages. (Wide rows kept in that
-- order themselves cost about as much for a few accounts and half as much again for a thousand.)
CREATE TABLE usage_logs (
    user_id             TEXT    NOT NULL,
    seq                 INTEGER NOT NULL,
    request_id          BLOB    NOT NULL UNIQUE CHECK (length(request_id) = 16),
    client_request_id   TEXT,
    key_id              TEXT,
    route               TEXT    NOT NULL,
    upstream            TEXT,
    model               TEXT,
    status              INTEGER NOT NULL,
    charged             INTEGER NOT NULL CHECK (charged >= 0),
    input_tokens        INTEGER NOT NULL,
    cached_tokens       INTEGER NOT NULL,
    output_tokens       INTEGER NOT NULL,
    estimated           INTEGER NOT NULL,
    streamed            INTEGER NOT NULL,
    latency_ms          INTEGER NOT NULL,
    created_at          INTEGER NOT NULL,
    settled_at          INTEGER NOT NULL,
    reason              TEXT,
    UNIQUE (user_id, seq)
) STRICT;

CREATE TABLE api_keys (
    id          TEXT    NOT NULL PRIMARY KEY,
    hash        BLOB    NOT NULL UNIQUE CHECK (length(hash) = 32),
    prefix      TEXT    NOT NULL,
    kind        TEXT    NOT NULL CHECK (kind IN ('live', 'test', 'service')),
    user_id     TEXT    REFERENCES users (id),
    name        TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    revoked_at  INTEGER,
    CHECK ((kind = 'service') = (user_id IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX api_keys_user ON api_keys (user_id);

-- AUTOINCREMENT: a number is never given twice, also after pruning.
CREATE TABLE identity_changes (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    key_hash    BLOB,
    user_id     TEXT,
    at          INTEGER NOT NULL,
    CHECK ((key_hash IS NULL) <> (user_id IS NULL))
) STRICT;
-- Number 1 is given away: who asks for the last number never gets 0.
INSERT INTO identity_changes (user_id, at) VALUES ('-', 0);
DELETE FROM identity_changes;

CREATE TABLE audit_log (
    id          INTEGER PRIMARY KEY,
    at          INTEGER NOT NULL,
    actor       TEXT    NOT NULL,
    action      TEXT    NOT NULL,
    user_id     TEXT,
    detail      TEXT    NOT NULL
) STRICT;
CREATE INDEX audit_log_user ON audit_log (user_id, id);

CREATE TABLE ledger_cursors (
    shard       INTEGER NOT NULL PRIMARY KEY,
    epoch       INTEGER NOT NULL,
    counter     INTEGER NOT NULL
) STRICT;

CREATE TABLE ledger_sessions (
    shard       INTEGER NOT NULL,
    session     INTEGER NOT NULL,
    batch       INTEGER NOT NULL,
    seen_at     INTEGER NOT NULL,
    PRIMARY KEY (shard, session)
) STRICT, WITHOUT ROWID;

-- API holds and kept answers of the embedded ledger. `held` ones are never pruned.
CREATE TABLE ledger_records (
    id          BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    user_id     TEXT    NOT NULL REFERENCES credits (user_id),
    held        INTEGER NOT NULL CHECK (held IN (0, 1)),
    until       INTEGER NOT NULL,
    state       BLOB    NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX ledger_records_user ON ledger_records (user_id);
CREATE INDEX ledger_records_until ON ledger_records (until) WHERE held = 0;

-- What a flush could not write as it should be: for people to look at.
CREATE TABLE dead_letters (
    id          INTEGER PRIMARY KEY,
    at          INTEGER NOT NULL,
    shard       INTEGER NOT NULL,
    epoch       INTEGER NOT NULL,
    user_id     TEXT    NOT NULL,
    seq         INTEGER NOT NULL,
    reason      TEXT    NOT NULL,
    detail      TEXT    NOT NULL,
    event       TEXT    NOT NULL,
    usage       BLOB    NOT NULL
) STRICT;

CREATE TABLE idempotency_keys (
    scope       TEXT    NOT NULL,
    key         TEXT    NOT NULL,
    fingerprint INTEGER NOT NULL,
    status      INTEGER,
    body        TEXT,
    begun_at    INTEGER NOT NULL,
    PRIMARY KEY (scope, key),
    CHECK ((status IS NULL) = (body IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_keys_begun ON idempotency_keys (begun_at);
