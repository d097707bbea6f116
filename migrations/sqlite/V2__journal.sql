-- What the embedded ledger wrote down and what is not in the tables yet: one row a group commit. Rows follow each other
-- without a hole, from the cursor on, all of its epoch.
CREATE TABLE ledger_journal (
    shard       INTEGER NOT NULL,
    last        INTEGER NOT NULL,
    epoch       INTEGER NOT NULL,
    first       INTEGER NOT NULL CHECK (first <= last),
    events      BLOB    NOT NULL,
    PRIMARY KEY (shard, last)
) STRICT, WITHOUT ROWID;

-- How far a fold is that is under way: of the events up to `last`, sorted by account, so many are in the tables.
CREATE TABLE ledger_folds (
    shard       INTEGER NOT NULL PRIMARY KEY,
    last        INTEGER NOT NULL,
    done        INTEGER NOT NULL CHECK (done > 0)
) STRICT;
