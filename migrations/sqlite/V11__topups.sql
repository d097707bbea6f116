-- Of a purchase that changed the interval within a period: the first month brings less, as its rest was credited in money.
ALTER TABLE purchases ADD COLUMN first_credits INTEGER CHECK (first_credits >= 0);
-- When money that a dispute had taken came back.
ALTER TABLE purchases ADD COLUMN returned_at INTEGER;

-- What a user asked for: buy this pack by yourself whenever less than the threshold is left, for at most so much a month.
CREATE TABLE auto_topups (
    user_id     TEXT    NOT NULL PRIMARY KEY REFERENCES billing_accounts (user_id),
    enabled     INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    -- Micro-credits.
    threshold   INTEGER NOT NULL CHECK (threshold > 0),
    pack        TEXT    NOT NULL,
    currency    TEXT    NOT NULL,
    monthly_cap INTEGER NOT NULL CHECK (monthly_cap > 0),
    -- Declines in a row, and what the last one said.
    failures    INTEGER NOT NULL DEFAULT 0,
    error       TEXT,
    -- The card asks for its owner, or declined too often: not tried again until the user says so.
    stopped     INTEGER NOT NULL DEFAULT 0 CHECK (stopped IN (0, 1)),
    next_at     INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL
) STRICT;

-- One purchase by itself. Written before Stripe is asked; its id is the Idempotency-Key. One at a time runs.
CREATE TABLE topups (
    id              BLOB    NOT NULL PRIMARY KEY,
    user_id         TEXT    NOT NULL REFERENCES auto_topups (user_id),
    customer_id     TEXT    NOT NULL,
    pack            TEXT    NOT NULL,
    price_id        TEXT    NOT NULL,
    currency        TEXT    NOT NULL,
    amount          INTEGER NOT NULL CHECK (amount > 0),
    payment_method  TEXT,
    state           TEXT    NOT NULL CHECK (state IN ('running', 'paid', 'failed')),
    error           TEXT,
    -- Looks at one whose outcome is not known, and when the next is due.
    looks           INTEGER NOT NULL DEFAULT 0,
    look_at         INTEGER NOT NULL,
    created_at      INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX topups_running ON topups (user_id) WHERE state = 'running';
CREATE INDEX topups_due ON topups (look_at) WHERE state = 'running';
CREATE INDEX topups_user ON topups (user_id, created_at);
