-- Reports ask by time of creation; the rows do not change it.
CREATE INDEX users_created ON users (created_at);
CREATE INDEX purchases_created ON purchases (created_at);

-- What users say.
CREATE TABLE feedback (
    id          text        PRIMARY KEY,
    user_id     text COLLATE "C"    NOT NULL REFERENCES users (id),
    category    text        NOT NULL CHECK (category IN ('bug', 'idea', 'praise', 'billing', 'other')),
    rating      integer     CHECK (rating BETWEEN 1 AND 5),
    message     text        NOT NULL,
    request_id  text,
    created_at  timestamptz NOT NULL
);
CREATE INDEX feedback_created ON feedback (created_at, id);
CREATE INDEX feedback_user ON feedback (user_id, created_at);

-- Which variant of a price experiment a user sees: drawn once, kept whatever the weights become.
CREATE TABLE experiment_users (
    experiment  text        NOT NULL,
    user_id     text COLLATE "C"    NOT NULL REFERENCES users (id),
    variant     text        NOT NULL,
    assigned_at timestamptz NOT NULL,
    PRIMARY KEY (experiment, user_id)
);
CREATE INDEX experiment_users_user ON experiment_users (user_id);

-- How accounts came, for as long as the fraud checks look back. The block is a prefix of the address.
CREATE TABLE fraud_signups (
    user_id     text COLLATE "C"    PRIMARY KEY REFERENCES users (id),
    block       text,
    at          timestamptz NOT NULL
);
CREATE INDEX fraud_signups_block ON fraud_signups (block, at) WHERE block IS NOT NULL;
CREATE INDEX fraud_signups_at ON fraud_signups (at);

-- Cards that users paid with, by Stripe's fingerprint of the number.
CREATE TABLE fraud_cards (
    fingerprint text        NOT NULL,
    user_id     text COLLATE "C"    NOT NULL REFERENCES users (id),
    at          timestamptz NOT NULL,
    PRIMARY KEY (fingerprint, user_id)
);

-- What speaks against an account. A signal of one source is raised once; cleared ones no longer count.
CREATE TABLE fraud_signals (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id     text COLLATE "C"    NOT NULL REFERENCES users (id),
    signal      text        NOT NULL,
    source      text        NOT NULL,
    score       integer     NOT NULL CHECK (score BETWEEN 0 AND 100),
    reason      text        NOT NULL,
    at          timestamptz NOT NULL,
    cleared_at  timestamptz,
    cleared_by  text,
    UNIQUE (user_id, signal, source)
);

-- What was done about it, and what an operator took back.
CREATE TABLE fraud_actions (
    user_id     text COLLATE "C"    PRIMARY KEY REFERENCES users (id),
    action      text        NOT NULL CHECK (action IN ('log', 'warn', 'hold', 'freeze')),
    at          timestamptz NOT NULL
);

-- How far what Stripe told has been looked through.
CREATE TABLE fraud_cursor (
    one         boolean     PRIMARY KEY DEFAULT true CHECK (one),
    received_at timestamptz NOT NULL,
    event       text        NOT NULL
);
INSERT INTO fraud_cursor (received_at, event) VALUES (timestamptz 'epoch', '');
