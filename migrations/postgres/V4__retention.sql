-- The pusher asks which accounts have changes that are not applied, in their order.
CREATE INDEX credit_changes_waiting ON credit_changes (user_id) WHERE NOT applied;
DROP INDEX credit_changes_unapplied;
