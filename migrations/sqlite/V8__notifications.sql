-- What users are told: to be read and marked, as events, and for the product's backend.

-- How many notifications an account has had, and what was said about its balance since it was filled: 0 nothing, 1 that it
-- is low, 2 that it is used up.
ALTER TABLE credits ADD COLUMN notices INTEGER NOT NULL DEFAULT 0 CHECK (notices >= 0);
ALTER TABLE credits ADD COLUMN warned INTEGER NOT NULL DEFAULT 0 CHECK (warned BETWEEN 0 AND 2);

CREATE TABLE notifications (
    user_id     TEXT    NOT NULL REFERENCES credits (user_id),
    number      INTEGER NOT NULL CHECK (number > 0),
    kind        TEXT    NOT NULL,
    data        TEXT    NOT NULL,
    -- The same key again for the same user says nothing new.
    dedupe_key  TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    read_at     INTEGER,
    -- When it is sent to the product's backend next. Null: not, or not any more.
    due_at      INTEGER,
    attempts    INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (user_id, number),
    UNIQUE (user_id, dedupe_key)
) STRICT;
CREATE INDEX notifications_unread ON notifications (user_id, number) WHERE read_at IS NULL;
CREATE INDEX notifications_due ON notifications (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX notifications_created ON notifications (created_at);

-- Whether notifications are sent to the product's backend at all: what was raised before is not sent later.
CREATE TABLE notification_outlet (
    one         INTEGER NOT NULL PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    open        INTEGER NOT NULL CHECK (open IN (0, 1))
) STRICT;
INSERT INTO notification_outlet (open) VALUES (0);
