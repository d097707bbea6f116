-- Reports ask by time of creation; the rows do not change it.
CREATE INDEX users_created ON users (created_at);
CREATE INDEX purchases_created ON purchases (created_at);

-- What users say.
CREATE TABLE feedback (
    id          TEXT    NOT NULL PRIMARY KEY,
    user_id     TEXT    NOT NULL REFERENCES users (id),
    category    TEXT    NOT NULL CHECK (category IN ('bug', 'idea', 'praise', 'billing', 'other')),
    rating      INTEGER CHECK (rating BETWEEN 1 AND 5),
    message     TEXT    NOT NULL,
    request_id  TEXT,
    created_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX feedback_created ON feedback (created_at, id);
CREATE INDEX feedback_user ON feedback (user_id, created_at);

-- Which variant of a price experiment a user sees: drawn once, kept whatever the weights become.
CREATE TABLE experiment_users (
    experiment  TEXT    NOT NULL,
    user_id     TEXT    NOT NULL REFERENCES users (id),
    variant     TEXT    NOT NULL,
    assigned_at INTEGER NOT NULL,
    PRIMARY KEY (experiment, user_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX experiment_users_user ON experiment_users (user_id);

-- How accounts came, for as long as the fraud checks look back. The block is a prefix of the address.
CREATE TABLE fraud_signups (
    user_id     TEXT    NOT NULL PRIMARY KEY REFERENCES users (id),
    block       TEXT,
    at          INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX fraud_signups_block ON fraud_signups (block, at) WHERE block IS NOT NULL;
CREATE INDEX fraud_signups_at ON fraud_signups (at);

-- Cards that users paid with, by Stripe's fingerprint of the number.
CREATE TABLE fraud_cards (
    fingerprint TEXT    NOT NULL,
    user_id     TEXT    NOT NULL REFERENCES users (id),
    at          INTEGER NOT NULL,
    PRIMARY KEY (fingerprint, user_id)
) STRICT, WITHOUT ROWID;

-- What speaks against an account. A signal of one source is raised once; cleared ones no longer count.
CREATE TABLE fraud_signals (
    id          INTEGER PRIMARY KEY,
    user_id     TEXT    NOT NULL REFERENCES users (id),
    signal      TEXT    NOT NULL,
    source      TEXT    NOT NULL,
    score       INTEGER NOT NULL CHECK (score BETWEEN 0 AND 100),
    reason      TEXT    NOT NULL,
    at          INTEGER NOT NULL,
    cleared_at  INTEGER,
    cleared_by  TEXT,
    UNIQUE (user_id, signal, source)
) STRICT;

-- What was done about it, and what an operator took back.
CREATE TABLE fraud_actions (
    user_id     TEXT    NOT NULL PRIMARY KEY REFERENCES users (id),
    action      TEXT    NOT NULL CHECK (action IN ('log', 'warn', 'hold', 'freeze')),
    at          INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- How far what Stripe told has been looked through.
CREATE TABLE fraud_cursor (
    one         INTEGER NOT NULL PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    received_at INTEGER NOT NULL,
    event       TEXT    NOT NULL
) STRICT;
INSERT INTO fraud_cursor (received_at, event) VALUES (0, '');
