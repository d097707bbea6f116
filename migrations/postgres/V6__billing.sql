-- Payments through Stripe: who pays, what was sold, and what Stripe told. Amounts of money are in the currency's smallest unit.

-- What ended unused of a grant, other than by a revocation with an amount: a refund counts it as returned.
ALTER TABLE credit_grants ADD COLUMN lapsed bigint NOT NULL DEFAULT 0 CHECK (lapsed >= 0 AND lapsed <= amount);

-- One customer a user, ever. Every change of what this user bought raises the version: a decision holds only while
-- the version it was made on stands.
CREATE TABLE billing_accounts (
    user_id     text COLLATE "C"    PRIMARY KEY REFERENCES users (id),
    customer_id text        UNIQUE,
    version     bigint      NOT NULL DEFAULT 0,
    flagged     boolean     NOT NULL DEFAULT false,
    -- When the clock has something to do: a month of a year to grant, a grace that ends.
    due_at      timestamptz
);
CREATE INDEX billing_accounts_due ON billing_accounts (due_at) WHERE due_at IS NOT NULL;

CREATE TABLE subscriptions (
    id                  text        PRIMARY KEY,
    user_id             text COLLATE "C"    NOT NULL REFERENCES billing_accounts (user_id),
    plan                text        NOT NULL,
    price_id            text        NOT NULL,
    item_id             text        NOT NULL,
    status              text        NOT NULL,
    currency            text        NOT NULL,
    period_start        timestamptz,
    period_end          timestamptz,
    trial_end           timestamptz,
    cancel_at_period_end boolean    NOT NULL,
    cancel_at           timestamptz,
    ended_at            timestamptz,
    past_due_since      timestamptz,
    paused              boolean     NOT NULL,
    schedule_id         text,
    created_at          timestamptz NOT NULL
);
CREATE INDEX subscriptions_user ON subscriptions (user_id, created_at);

-- What was paid: an invoice of a subscription, or a pack. `reversed` went back to the payer, or is disputed.
CREATE TABLE purchases (
    id              text        PRIMARY KEY,
    user_id         text COLLATE "C"    NOT NULL REFERENCES billing_accounts (user_id),
    kind            text        NOT NULL CHECK (kind IN ('period', 'proration', 'pack', 'trial')),
    name            text        NOT NULL,
    subscription_id text,
    payment_intent  text,
    currency        text        NOT NULL,
    amount          bigint      NOT NULL CHECK (amount >= 0),
    reversed        bigint      NOT NULL DEFAULT 0 CHECK (reversed >= 0),
    frozen          boolean     NOT NULL DEFAULT false,
    credits         bigint      NOT NULL CHECK (credits >= 0),
    months          integer     NOT NULL DEFAULT 1 CHECK (months BETWEEN 1 AND 12),
    period_start    timestamptz,
    period_end      timestamptz,
    created_at      timestamptz NOT NULL
);
CREATE INDEX purchases_user ON purchases (user_id, created_at);
CREATE INDEX purchases_payment ON purchases (payment_intent) WHERE payment_intent IS NOT NULL;

-- Which credits came of a purchase, by the source key of the change that brought them.
CREATE TABLE purchase_grants (
    source_key  text        PRIMARY KEY REFERENCES credit_changes (source_key),
    purchase_id text        NOT NULL REFERENCES purchases (id),
    user_id     text COLLATE "C"    NOT NULL,
    use         text        NOT NULL CHECK (use IN ('main', 'rollover', 'restored')),
    parent      text,
    month       integer     NOT NULL DEFAULT 0,
    amount      bigint      NOT NULL CHECK (amount >= 0),
    starts_at   timestamptz,
    ends_at     timestamptz,
    ended       boolean     NOT NULL DEFAULT false,
    frozen      boolean     NOT NULL DEFAULT false,
    -- What of the amount is claimed back, and what was taken for it.
    claimed     bigint      NOT NULL DEFAULT 0 CHECK (claimed >= 0),
    taken       bigint      NOT NULL DEFAULT 0 CHECK (taken >= 0),
    serial      integer     NOT NULL DEFAULT 0
);
CREATE INDEX purchase_grants_user ON purchase_grants (user_id);

-- Everything that Stripe told, as it came. The amount is what the event's own object names.
CREATE TABLE billing_events (
    id              text        PRIMARY KEY,
    event_type      text        NOT NULL,
    object_type     text,
    object_id       text,
    livemode        boolean     NOT NULL,
    user_id         text COLLATE "C",
    amount          bigint,
    currency        text,
    created_at      timestamptz NOT NULL,
    received_at     timestamptz NOT NULL DEFAULT now(),
    state           text        NOT NULL CHECK (state IN ('pending', 'processed', 'ignored', 'parked')),
    attempts        integer     NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    processed_at    timestamptz,
    error           text,
    payload         text        NOT NULL
);
CREATE INDEX billing_events_due ON billing_events (next_attempt_at) WHERE state = 'pending';
CREATE INDEX billing_events_received ON billing_events (received_at, id);
CREATE INDEX billing_events_user ON billing_events (user_id, received_at) WHERE user_id IS NOT NULL;

-- Pages at Stripe where a user pays; one open at a time, or two tabs make two subscriptions.
CREATE TABLE checkouts (
    id          uuid        PRIMARY KEY,
    user_id     text COLLATE "C"    NOT NULL REFERENCES billing_accounts (user_id),
    session_id  text        UNIQUE,
    kind        text        NOT NULL CHECK (kind IN ('plan', 'pack')),
    name        text        NOT NULL,
    price_id    text        NOT NULL,
    currency    text        NOT NULL,
    amount      bigint      NOT NULL,
    state       text        NOT NULL CHECK (state IN ('open', 'pending', 'paid', 'failed', 'expired')),
    created_at  timestamptz NOT NULL
);
CREATE UNIQUE INDEX checkouts_open ON checkouts (user_id) WHERE state = 'open';

-- Keys of calls to Stripe that change something, stored before they are sent: a call whose answer was lost is sent
-- again under its key.
CREATE TABLE billing_calls (
    scope       text        PRIMARY KEY,
    key         text        NOT NULL UNIQUE,
    fingerprint bigint      NOT NULL,
    created_at  timestamptz NOT NULL
);
CREATE INDEX billing_calls_created ON billing_calls (created_at);

-- How far the comparison with Stripe has come, and who is at it.
CREATE TABLE billing_reconciliation (
    one         boolean     PRIMARY KEY DEFAULT true CHECK (one),
    due_at      timestamptz NOT NULL,
    done_until  timestamptz
);
INSERT INTO billing_reconciliation (due_at) VALUES (now());
