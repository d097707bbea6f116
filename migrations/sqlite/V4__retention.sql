-- The pusher asks which accounts have changes that are not applied, in their order.
CREATE INDEX credit_changes_waiting ON credit_changes (user_id) WHERE applied = 0;
DROP INDEX credit_changes_unapplied;

-- Dead letters are pruned by their age.
CREATE INDEX dead_letters_at ON dead_letters (at);
