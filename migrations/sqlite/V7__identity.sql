-- Users who sign in at an issuer of tokens, and their own keys.

ALTER TABLE users ADD COLUMN name TEXT;
-- As of when mail and name are known: an older word about them changes nothing.
ALTER TABLE users ADD COLUMN profile_at INTEGER NOT NULL DEFAULT 0;
-- Whether the sign-up credits are still to be decided: those of a user who is not verified yet.
ALTER TABLE users ADD COLUMN signup_open INTEGER NOT NULL DEFAULT 0 CHECK (signup_open IN (0, 1));

-- Which mail addresses have brought sign-up credits, by the hash of their plain form; a closed account's stay.
CREATE TABLE signup_claims (
    mail_hash       BLOB    NOT NULL PRIMARY KEY CHECK (length(mail_hash) = 32),
    user_id         TEXT    NOT NULL REFERENCES users (id),
    created_at      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX signup_claims_user ON signup_claims (user_id);

-- What the issuer told, by the id that is the same in every delivery. `at` is when it happened.
CREATE TABLE auth_events (
    id              TEXT    NOT NULL PRIMARY KEY,
    event_type      TEXT    NOT NULL,
    user_id         TEXT,
    at              INTEGER NOT NULL,
    received_at     INTEGER NOT NULL,
    state           TEXT    NOT NULL CHECK (state IN ('pending', 'processed', 'ignored', 'parked')),
    attempts        INTEGER NOT NULL DEFAULT 0,
    next_attempt_at INTEGER NOT NULL,
    processed_at    INTEGER,
    error           TEXT,
    payload         TEXT    NOT NULL
) STRICT;
CREATE INDEX auth_events_pending ON auth_events (next_attempt_at) WHERE state = 'pending';
CREATE INDEX auth_events_user ON auth_events (user_id);
CREATE INDEX auth_events_received ON auth_events (received_at);

-- What a key may do. A budget is what its requests may cost in all: used, held by requests in flight, and what is left.
ALTER TABLE api_keys ADD COLUMN expires_at INTEGER;
ALTER TABLE api_keys ADD COLUMN last_used_at INTEGER;
ALTER TABLE api_keys ADD COLUMN models TEXT;
ALTER TABLE api_keys ADD COLUMN budget INTEGER CHECK (budget > 0);
ALTER TABLE api_keys ADD COLUMN budget_used INTEGER NOT NULL DEFAULT 0 CHECK (budget_used >= 0);
ALTER TABLE api_keys ADD COLUMN budget_held INTEGER NOT NULL DEFAULT 0 CHECK (budget_held >= 0);

-- What each request in flight holds of its key's budget. `owner` is the replica, which says now and then that it lives.
CREATE TABLE key_holds (
    id              BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    key_id          TEXT    NOT NULL REFERENCES api_keys (id),
    amount          INTEGER NOT NULL CHECK (amount >= 0),
    owner           INTEGER NOT NULL,
    seen_at         INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX key_holds_seen ON key_holds (seen_at);
CREATE INDEX key_holds_owner ON key_holds (owner);
