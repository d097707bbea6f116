-- The mark is the head of the entry at the cursor: a log that has another entry there is another history's. While a shard is
-- reopened, its epoch is raised already and its counter counts what was recovered.
ALTER TABLE ledger_cursors ADD COLUMN mark bytea NOT NULL DEFAULT '';
ALTER TABLE ledger_cursors ADD COLUMN reopening boolean NOT NULL DEFAULT false;
