-- What was read is pruned by when that was.
CREATE INDEX notifications_read ON notifications (read_at) WHERE read_at IS NOT NULL;
