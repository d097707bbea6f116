-- What was charged by usage rows and dead letters that are no longer kept: the books add up without them.
CREATE TABLE usage_pruned (
    user_id     text COLLATE "C"    PRIMARY KEY REFERENCES credits (user_id),
    charged     bigint  NOT NULL,
    rows        bigint  NOT NULL
);

-- The audit asks for the dead letters of one account.
CREATE INDEX dead_letters_user ON dead_letters (user_id, seq);
