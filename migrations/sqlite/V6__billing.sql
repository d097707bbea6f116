-- Payments through Stripe: who pays, what was sold, and what Stripe told. Amounts of money are in the currency's smallest unit.

-- What ended unused of a grant, other than by a revocation with an amount: a refund counts it as returned.
ALTER TABLE credit_grants ADD COLUMN lapsed INTEGER NOT NULL DEFAULT 0 CHECK (lapsed >= 0);

-- One customer a user, ever. Every change of what this user bought raises the version: a decision holds only while
-- the version it was made on stands.
CREATE TABLE billing_accounts (
    user_id              TEXT    NOT NULL PRIMARY KEY REFERENCES users (id),
    customer_id          TEXT    UNIQUE,
    version              INTEGER NOT NULL DEFAULT 0,
    flagged              INTEGER NOT NULL DEFAULT 0 CHECK (flagged IN (0, 1)),
    -- When the clock has something to do: a month of a year to grant, a grace that ends.
    due_at      INTEGER
) STRICT;
CREATE INDEX billing_accounts_due ON billing_accounts (due_at) WHERE due_at IS NOT NULL;

CREATE TABLE subscriptions (
    id                   TEXT    NOT NULL PRIMARY KEY,
    user_id              TEXT    NOT NULL REFERENCES billing_accounts (user_id),
    plan                 TEXT    NOT NULL,
    price_id             TEXT    NOT NULL,
    item_id              TEXT    NOT NULL,
    status               TEXT    NOT NULL,
    currency             TEXT    NOT NULL,
    period_start         INTEGER,
    period_end           INTEGER,
    trial_end            INTEGER,
    cancel_at_period_end INTEGER NOT NULL CHECK (cancel_at_period_end IN (0, 1)),
    cancel_at            INTEGER,
    ended_at             INTEGER,
    past_due_since       INTEGER,
    paused               INTEGER NOT NULL CHECK (paused IN (0, 1)),
    schedule_id          TEXT,
    created_at           INTEGER NOT NULL
) STRICT;
CREATE INDEX subscriptions_user ON subscriptions (user_id, created_at);

-- What was paid: an invoice of a subscription, or a pack. `reversed` went back to the payer, or is disputed.
CREATE TABLE purchases (
    id                   TEXT    NOT NULL PRIMARY KEY,
    user_id              TEXT    NOT NULL REFERENCES billing_accounts (user_id),
    kind                 TEXT    NOT NULL CHECK (kind IN ('period', 'proration', 'pack', 'trial')),
    name                 TEXT    NOT NULL,
    subscription_id      TEXT,
    payment_intent       TEXT,
    currency             TEXT    NOT NULL,
    amount               INTEGER NOT NULL CHECK (amount >= 0),
    reversed             INTEGER NOT NULL DEFAULT 0 CHECK (reversed >= 0),
    frozen               INTEGER NOT NULL DEFAULT 0 CHECK (frozen IN (0, 1)),
    credits              INTEGER NOT NULL CHECK (credits >= 0),
    months               INTEGER NOT NULL DEFAULT 1 CHECK (months BETWEEN 1 AND 12),
    period_start         INTEGER,
    period_end           INTEGER,
    created_at           INTEGER NOT NULL
) STRICT;
CREATE INDEX purchases_user ON purchases (user_id, created_at);
CREATE INDEX purchases_payment ON purchases (payment_intent) WHERE payment_intent IS NOT NULL;

-- Which credits came of a purchase, by the source key of the change that brought them.
CREATE TABLE purchase_grants (
    source_key           TEXT    NOT NULL PRIMARY KEY REFERENCES credit_changes (source_key),
    purchase_id          TEXT    NOT NULL REFERENCES purchases (id),
    user_id              TEXT    NOT NULL,
    use                  TEXT    NOT NULL CHECK (use IN ('main', 'rollover', 'restored')),
    parent               TEXT,
    month                INTEGER NOT NULL DEFAULT 0,
    amount               INTEGER NOT NULL CHECK (amount >= 0),
    starts_at            INTEGER,
    ends_at              INTEGER,
    ended                INTEGER NOT NULL DEFAULT 0 CHECK (ended IN (0, 1)),
    frozen               INTEGER NOT NULL DEFAULT 0 CHECK (frozen IN (0, 1)),
    -- What of the amount is claimed back, and what was taken for it.
    claimed              INTEGER NOT NULL DEFAULT 0 CHECK (claimed >= 0),
    taken                INTEGER NOT NULL DEFAULT 0 CHECK (taken >= 0),
    serial               INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX purchase_grants_user ON purchase_grants (user_id);

-- Everything that Stripe told, as it came. The amount is what the event's own object names.
CREATE TABLE billing_events (
    id                   TEXT    NOT NULL PRIMARY KEY,
    event_type           TEXT    NOT NULL,
    object_type          TEXT,
    object_id            TEXT,
    livemode             INTEGER NOT NULL CHECK (livemode IN (0, 1)),
    user_id              TEXT,
    amount               INTEGER,
    currency             TEXT,
    created_at           INTEGER NOT NULL,
    received_at          INTEGER NOT NULL,
    state                TEXT    NOT NULL CHECK (state IN ('pending', 'processed', 'ignored', 'parked')),
    attempts             INTEGER NOT NULL DEFAULT 0,
    next_attempt_at      INTEGER NOT NULL,
    processed_at         INTEGER,
    error                TEXT,
    payload              TEXT    NOT NULL
) STRICT;
CREATE INDEX billing_events_due ON billing_events (next_attempt_at) WHERE state = 'pending';
CREATE INDEX billing_events_received ON billing_events (received_at, id);
CREATE INDEX billing_events_user ON billing_events (user_id, received_at) WHERE user_id IS NOT NULL;

-- Pages at Stripe where a user pays; one open at a time, or two tabs make two subscriptions.
CREATE TABLE checkouts (
    id                   BLOB    NOT NULL PRIMARY KEY,
    user_id              TEXT    NOT NULL REFERENCES billing_accounts (user_id),
    session_id           TEXT    UNIQUE,
    kind                 TEXT    NOT NULL CHECK (kind IN ('plan', 'pack')),
    name                 TEXT    NOT NULL,
    price_id             TEXT    NOT NULL,
    currency             TEXT    NOT NULL,
    amount               INTEGER NOT NULL,
    state                TEXT    NOT NULL CHECK (state IN ('open', 'pending', 'paid', 'failed', 'expired')),
    created_at           INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX checkouts_open ON checkouts (user_id) WHERE state = 'open';

-- Keys of calls to Stripe that change something, stored before they are sent: a call whose answer was lost is sent
-- again under its key.
CREATE TABLE billing_calls (
    scope                TEXT    NOT NULL PRIMARY KEY,
    key                  TEXT    NOT NULL UNIQUE,
    fingerprint          INTEGER NOT NULL,
    created_at           INTEGER NOT NULL
) STRICT;
CREATE INDEX billing_calls_created ON billing_calls (created_at);

-- How far the comparison with Stripe has come, and who is at it.
CREATE TABLE billing_reconciliation (
    one                  INTEGER NOT NULL PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    due_at               INTEGER NOT NULL,
    done_until  INTEGER
) STRICT;
INSERT INTO billing_reconciliation (due_at) VALUES (0);
