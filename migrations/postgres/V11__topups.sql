-- Of a purchase that changed the interval within a period: the first month brings less, as its rest was credited in money.
ALTER TABLE purchases ADD COLUMN first_credits bigint CHECK (first_credits >= 0);
-- When money that a dispute had taken came back.
ALTER TABLE purchases ADD COLUMN returned_at timestamptz;

-- What a user asked for: buy this pack by yourself whenever less than the threshold is left, for at most so much a month.
CREATE TABLE auto_topups (
    user_id     text COLLATE "C"    PRIMARY KEY REFERENCES billing_accounts (user_id),
    enabled     boolean     NOT NULL,
    -- Micro-credits.
    threshold   bigint      NOT NULL CHECK (threshold > 0),
    pack        text        NOT NULL,
    currency    text        NOT NULL,
    monthly_cap bigint      NOT NULL CHECK (monthly_cap > 0),
    -- Declines in a row, and what the last one said.
    failures    integer     NOT NULL DEFAULT 0,
    error       text,
    -- The card asks for its owner, or declined too often: not tried again until the user says so.
    stopped     boolean     NOT NULL DEFAULT false,
    next_at     timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL
);

-- One purchase by itself. Written before Stripe is asked; its id is the Idempotency-Key. One at a time runs.
CREATE TABLE topups (
    id              uuid        PRIMARY KEY,
    user_id         text COLLATE "C"    NOT NULL REFERENCES auto_topups (user_id),
    customer_id     text        NOT NULL,
    pack            text        NOT NULL,
    price_id        text        NOT NULL,
    currency        text        NOT NULL,
    amount          bigint      NOT NULL CHECK (amount > 0),
    payment_method  text,
    state           text        NOT NULL CHECK (state IN ('running', 'paid', 'failed')),
    error           text,
    -- Looks at one whose outcome is not known, and when the next is due.
    looks           integer     NOT NULL DEFAULT 0,
    look_at         timestamptz NOT NULL,
    created_at      timestamptz NOT NULL
);
CREATE UNIQUE INDEX topups_running ON topups (user_id) WHERE state = 'running';
CREATE INDEX topups_due ON topups (look_at) WHERE state = 'running';
CREATE INDEX topups_user ON topups (user_id, created_at);
