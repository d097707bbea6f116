-- What users are told: to be read and marked, as events, and for the product's backend.

-- How many notifications an account has had, and what was said about its balance since it was filled: 0 nothing, 1 that it
-- is low, 2 that it is used up. The row is locked by whoever raises a notification, so numbers have no gaps and are
-- committed in their order.
ALTER TABLE credits
    ADD COLUMN notices bigint   NOT NULL DEFAULT 0 CHECK (notices >= 0),
    ADD COLUMN warned  smallint NOT NULL DEFAULT 0 CHECK (warned BETWEEN 0 AND 2);

CREATE TABLE notifications (
    user_id     text COLLATE "C" NOT NULL REFERENCES credits (user_id),
    number      bigint      NOT NULL CHECK (number > 0),
    kind        text        NOT NULL,
    data        text        NOT NULL,
    -- The same key again for the same user says nothing new.
    dedupe_key  text        NOT NULL,
    created_at  timestamptz NOT NULL,
    read_at     timestamptz,
    -- When it is sent to the product's backend next. Null: not, or not any more.
    due_at      timestamptz,
    attempts    integer     NOT NULL DEFAULT 0,
    PRIMARY KEY (user_id, number),
    UNIQUE (user_id, dedupe_key)
);
CREATE INDEX notifications_unread ON notifications (user_id, number) WHERE read_at IS NULL;
CREATE INDEX notifications_due ON notifications (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX notifications_created ON notifications (created_at);

-- Whether notifications are sent to the product's backend at all: what was raised before is not sent later.
CREATE TABLE notification_outlet (
    one         boolean     PRIMARY KEY DEFAULT true CHECK (one),
    open        boolean     NOT NULL
);
INSERT INTO notification_outlet (open) VALUES (false);
