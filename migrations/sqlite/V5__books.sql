-- What was charged by usage rows and dead letters that are no longer kept: the books add up without them.
CREATE TABLE usage_pruned (
    user_id     TEXT    NOT NULL PRIMARY KEY REFERENCES credits (user_id),
    charged     INTEGER NOT NULL,
    rows        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The audit asks for the dead letters of one account.
CREATE INDEX dead_letters_user ON dead_letters (user_id, seq);

-- Usage by day (UTC, days since 1970), kept also where its rows are not. Model and key are empty where there was none.
CREATE TABLE usage_days (
    user_id         TEXT    NOT NULL,
    day             INTEGER NOT NULL,
    model           TEXT    NOT NULL,
    route           TEXT    NOT NULL,
    key_id          TEXT    NOT NULL,
    requests        INTEGER NOT NULL,
    charged         INTEGER NOT NULL,
    input_tokens    INTEGER NOT NULL,
    cached_tokens   INTEGER NOT NULL,
    output_tokens   INTEGER NOT NULL,
    estimated       INTEGER NOT NULL,
    client_errors   INTEGER NOT NULL,
    server_errors   INTEGER NOT NULL,
    PRIMARY KEY (user_id, day, model, route, key_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_days_day ON usage_days (day, user_id);

-- Up to which sequence number an account's usage is in usage_days.
CREATE TABLE usage_rolled (
    user_id     TEXT    NOT NULL PRIMARY KEY REFERENCES credits (user_id),
    seq         INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
