-- What was charged by usage rows and dead letters that are no longer kept: the books add up without them.
CREATE TABLE usage_pruned (
    user_id     text COLLATE "C"    PRIMARY KEY REFERENCES credits (user_id),
    charged     bigint  NOT NULL,
    rows        bigint  NOT NULL
);

-- The audit asks for the dead letters of one account.
CREATE INDEX dead_letters_user ON dead_letters (user_id, seq);

-- Usage by day (UTC), kept also where its rows are not. Model and key are empty where there was none.
CREATE TABLE usage_days (
    user_id         text COLLATE "C"    NOT NULL,
    day             date    NOT NULL,
    model           text COLLATE "C"    NOT NULL,
    route           text COLLATE "C"    NOT NULL,
    key_id          text COLLATE "C"    NOT NULL,
    requests        bigint  NOT NULL,
    charged         bigint  NOT NULL,
    input_tokens    bigint  NOT NULL,
    cached_tokens   bigint  NOT NULL,
    output_tokens   bigint  NOT NULL,
    estimated       bigint  NOT NULL,
    client_errors   bigint  NOT NULL,
    server_errors   bigint  NOT NULL,
    PRIMARY KEY (user_id, day, model, route, key_id)
) WITH (fillfactor = 80);
CREATE INDEX usage_days_day ON usage_days (day, user_id);

-- Up to which sequence number an account's usage is in usage_days.
CREATE TABLE usage_rolled (
    user_id     text COLLATE "C"    PRIMARY KEY REFERENCES credits (user_id),
    seq         bigint  NOT NULL
) WITH (fillfactor = 70);
