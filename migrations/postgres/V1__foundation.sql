-- Amounts are micro-credits. Times that people read are timestamps; the ledger's own are microseconds since the Unix epoch.
-- User ids are ordered by bytes, as the program orders them.

CREATE TABLE users (
    id          text COLLATE "C" PRIMARY KEY,
    email       text,
    plan        text        NOT NULL,
    status      text        NOT NULL CHECK (status IN ('active', 'frozen', 'closed')),
    created_at  timestamptz NOT NULL
);

-- The account as of its last flushed event. What was granted, charged and written off adds up to balance - debt.
-- Every flush updates rows here and in credit_grants: the room left in their pages keeps those updates out of the indexes.
CREATE TABLE credits (
    user_id         text COLLATE "C"    PRIMARY KEY REFERENCES users (id),
    seq             bigint  NOT NULL DEFAULT 0 CHECK (seq >= 0),
    balance         bigint  NOT NULL DEFAULT 0,
    debt            bigint  NOT NULL DEFAULT 0 CHECK (debt >= 0),
    frozen          boolean NOT NULL DEFAULT false,
    granted         bigint  NOT NULL DEFAULT 0,
    charged         bigint  NOT NULL DEFAULT 0,
    written_off     bigint  NOT NULL DEFAULT 0,
    forfeited       bigint  NOT NULL DEFAULT 0,
    applied_change  bigint  NOT NULL DEFAULT 0,
    last_change     bigint  NOT NULL DEFAULT 0 CHECK (last_change >= applied_change)
) WITH (fillfactor = 70);

CREATE TABLE credit_changes (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id     text COLLATE "C"        NOT NULL REFERENCES credits (user_id),
    number      bigint      NOT NULL CHECK (number > 0),
    payload     text        NOT NULL,
    source_key  text        UNIQUE,
    note        text,
    actor       text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    applied     boolean     NOT NULL DEFAULT false,
    UNIQUE (user_id, number)
);
CREATE INDEX credit_changes_unapplied ON credit_changes (id) WHERE NOT applied;

-- A grant's id is the number of the change that made it. Once the row is there, only a flush changes what remains.
CREATE TABLE credit_grants (
    user_id     text COLLATE "C"        NOT NULL,
    id          bigint      NOT NULL,
    kind        text        NOT NULL CHECK (kind IN ('free', 'plan', 'topup', 'promo', 'adjust')),
    amount      bigint      NOT NULL CHECK (amount >= 0),
    remaining   bigint      NOT NULL CHECK (remaining >= 0 AND remaining <= amount),
    expires_at  timestamptz,
    frozen      boolean     NOT NULL DEFAULT false,
    source_key  text        UNIQUE,
    note        text,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, id),
    FOREIGN KEY (user_id, id) REFERENCES credit_changes (user_id, number)
) WITH (fillfactor = 70);

-- One row per settled request, partitioned by month through the time in its UUIDv7: so the request id alone stays unique.
CREATE TABLE usage_logs (
    request_id          uuid        PRIMARY KEY,
    user_id             text COLLATE "C"        NOT NULL,
    seq                 bigint      NOT NULL,
    client_request_id   text,
    key_id              text,
    route               text        NOT NULL,
    upstream            text,
    model               text,
    status              integer     NOT NULL,
    charged             bigint      NOT NULL CHECK (charged >= 0),
    input_tokens        bigint      NOT NULL,
    cached_tokens       bigint      NOT NULL,
    output_tokens       bigint      NOT NULL,
    estimated           boolean     NOT NULL,
    streamed            boolean     NOT NULL,
    latency_ms          bigint      NOT NULL,
    created_at          timestamptz NOT NULL,
    settled_at          timestamptz NOT NULL,
    reason              text
) PARTITION BY RANGE (request_id);
CREATE INDEX usage_logs_user ON usage_logs (user_id, seq);
CREATE TABLE usage_logs_other PARTITION OF usage_logs DEFAULT;

CREATE FUNCTION usage_logs_first_id(month timestamptz) RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM month) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

-- Makes the partitions of this month and the next ones. Rows of a month that has none are in usage_logs_other.
CREATE FUNCTION usage_logs_make_partitions(months integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    month timestamptz := date_trunc('month', now(), 'UTC');
    following timestamptz;
    name text;
    made integer := 0;
BEGIN
    FOR step IN 0..months LOOP
        following := date_trunc('month', month + interval '32 days', 'UTC');
        name := 'usage_logs_' || to_char(month AT TIME ZONE 'UTC', 'YYYY_MM');
        IF to_regclass(name) IS NULL THEN
            BEGIN
                EXECUTE format('CREATE TABLE %I PARTITION OF usage_logs FOR VALUES FROM (%L) TO (%L)',
                    name, usage_logs_first_id(month), usage_logs_first_id(following));
                made := made + 1;
            EXCEPTION WHEN check_violation THEN
                RAISE WARNING 'usage of % is in usage_logs_other already and stays there', name;
            END;
        END IF;
        month := following;
    END LOOP;
    RETURN made;
END
$$;

CREATE TABLE api_keys (
    id          text        PRIMARY KEY,
    hash        bytea       NOT NULL UNIQUE CHECK (length(hash) = 32),
    prefix      text        NOT NULL,
    kind        text        NOT NULL CHECK (kind IN ('live', 'test', 'service')),
    user_id     text COLLATE "C"        REFERENCES users (id),
    name        text        NOT NULL,
    created_at  timestamptz NOT NULL,
    revoked_at  timestamptz,
    CHECK ((kind = 'service') = (user_id IS NULL))
);
CREATE INDEX api_keys_user ON api_keys (user_id);

-- Numbers come from one row, locked until the commit: a number that is seen has nothing uncommitted before it.
CREATE TABLE identity_counter (
    one         boolean     PRIMARY KEY DEFAULT true CHECK (one),
    last        bigint      NOT NULL
);
INSERT INTO identity_counter (last) VALUES (1);

CREATE TABLE identity_changes (
    number      bigint      PRIMARY KEY,
    key_hash    bytea,
    user_id     text COLLATE "C",
    at          timestamptz NOT NULL DEFAULT now(),
    CHECK ((key_hash IS NULL) <> (user_id IS NULL))
);

CREATE TABLE audit_log (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT now(),
    actor       text        NOT NULL,
    action      text        NOT NULL,
    user_id     text COLLATE "C",
    detail      text        NOT NULL
);
CREATE INDEX audit_log_user ON audit_log (user_id, id);

CREATE TABLE ledger_cursors (
    shard       bigint      PRIMARY KEY,
    epoch       bigint      NOT NULL,
    counter     bigint      NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE ledger_sessions (
    shard       bigint      NOT NULL,
    session     bigint      NOT NULL,
    batch       bigint      NOT NULL,
    seen_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard, session)
) WITH (fillfactor = 70);

-- API holds and kept answers of the embedded ledger. `held` ones are never pruned.
CREATE TABLE ledger_records (
    id          uuid        PRIMARY KEY,
    user_id     text COLLATE "C"        NOT NULL REFERENCES credits (user_id),
    held        boolean     NOT NULL,
    until       bigint      NOT NULL,
    state       bytea       NOT NULL
);
CREATE INDEX ledger_records_user ON ledger_records (user_id);
CREATE INDEX ledger_records_until ON ledger_records (until) WHERE NOT held;

-- What a flush could not write as it should be: for people to look at.
CREATE TABLE dead_letters (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT now(),
    shard       bigint      NOT NULL,
    epoch       bigint      NOT NULL,
    user_id     text COLLATE "C"        NOT NULL,
    seq         bigint      NOT NULL,
    reason      text        NOT NULL,
    detail      text        NOT NULL,
    event       text        NOT NULL,
    usage       bytea       NOT NULL
);

CREATE TABLE idempotency_keys (
    scope       text        NOT NULL,
    key         text        NOT NULL,
    fingerprint bigint      NOT NULL,
    status      integer,
    body        text,
    begun_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (scope, key),
    CHECK ((status IS NULL) = (body IS NULL))
);
CREATE INDEX idempotency_keys_begun ON idempotency_keys (begun_at);
