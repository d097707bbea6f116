-- Users who sign in at an issuer of tokens, and their own keys.

ALTER TABLE users ADD COLUMN name text;
-- As of when mail and name are known: an older word about them changes nothing.
ALTER TABLE users ADD COLUMN profile_at timestamptz NOT NULL DEFAULT 'epoch';
-- Whether the sign-up credits are still to be decided: those of a user who is not verified yet.
ALTER TABLE users ADD COLUMN signup_open boolean NOT NULL DEFAULT false;

-- Which mail addresses have brought sign-up credits, by the hash of their plain form; a closed account's stay.
CREATE TABLE signup_claims (
    mail_hash       bytea       PRIMARY KEY CHECK (length(mail_hash) = 32),
    user_id         text COLLATE "C" NOT NULL REFERENCES users (id),
    created_at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX signup_claims_user ON signup_claims (user_id);

-- What the issuer told, by the id that is the same in every delivery. `at` is when it happened.
CREATE TABLE auth_events (
    id              text        PRIMARY KEY,
    event_type      text        NOT NULL,
    user_id         text COLLATE "C",
    at              timestamptz NOT NULL,
    received_at     timestamptz NOT NULL,
    state           text        NOT NULL CHECK (state IN ('pending', 'processed', 'ignored', 'parked')),
    attempts        integer     NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL,
    processed_at    timestamptz,
    error           text,
    payload         text        NOT NULL
);
CREATE INDEX auth_events_pending ON auth_events (next_attempt_at) WHERE state = 'pending';
CREATE INDEX auth_events_user ON auth_events (user_id);
CREATE INDEX auth_events_received ON auth_events (received_at);

-- What a key may do. A budget is what its requests may cost in all: used, held by requests in flight, and what is left.
ALTER TABLE api_keys ADD COLUMN expires_at timestamptz;
ALTER TABLE api_keys ADD COLUMN last_used_at timestamptz;
ALTER TABLE api_keys ADD COLUMN models text;
ALTER TABLE api_keys ADD COLUMN budget bigint CHECK (budget > 0);
ALTER TABLE api_keys ADD COLUMN budget_used bigint NOT NULL DEFAULT 0 CHECK (budget_used >= 0);
ALTER TABLE api_keys ADD COLUMN budget_held bigint NOT NULL DEFAULT 0 CHECK (budget_held >= 0);

-- What each request in flight holds of its key's budget. `owner` is the replica, which says now and then that it lives.
CREATE TABLE key_holds (
    id              uuid        PRIMARY KEY,
    key_id          text        NOT NULL REFERENCES api_keys (id),
    amount          bigint      NOT NULL CHECK (amount >= 0),
    owner           bigint      NOT NULL,
    seen_at         timestamptz NOT NULL
);
CREATE INDEX key_holds_seen ON key_holds (seen_at);
CREATE INDEX key_holds_owner ON key_holds (owner);
