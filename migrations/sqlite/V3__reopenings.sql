-- The mark is the head of the entry at the cursor: a log that has another entry there is another history's. While a shard is
-- reopened, its epoch is raised already and its counter counts what was recovered.
ALTER TABLE ledger_cursors ADD COLUMN mark BLOB NOT NULL DEFAULT x'';
ALTER TABLE ledger_cursors ADD COLUMN reopening INTEGER NOT NULL DEFAULT 0 CHECK (reopening IN (0, 1));
