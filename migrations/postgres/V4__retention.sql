-- The pusher asks which accounts have changes that are not applied, in their order.
CREATE INDEX credit_changes_waiting ON credit_changes (user_id) WHERE NOT applied;
DROP INDEX credit_changes_unapplied;

-- Dead letters are pruned by their age.
CREATE INDEX dead_letters_at ON dead_letters (at);

-- The time in a UUIDv7.
CREATE FUNCTION usage_logs_time(request uuid) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$
    SELECT to_timestamp(('x' || substr(replace(request::text, '-', ''), 1, 12))::bit(48)::bigint / 1000.0)
$$;

CREATE FUNCTION usage_logs_partition(month timestamptz) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT 'usage_logs_' || to_char(month AT TIME ZONE 'UTC', 'YYYY_MM')
$$;

-- Makes one month's partition and moves into it what usage_logs_other has of that month. Answers whether it was missing.
CREATE FUNCTION usage_logs_make_partition(month timestamptz) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    name text := usage_logs_partition(month);
    first_id uuid := usage_logs_first_id(month);
    next_id uuid := usage_logs_first_id(date_trunc('month', month + interval '32 days', 'UTC'));
BEGIN
    IF to_regclass(name) IS NOT NULL THEN
        RETURN false;
    END IF;
    -- Nothing of the month may be written between the move and the attachment.
    LOCK TABLE usage_logs IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('CREATE TABLE %I (LIKE usage_logs INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
    EXECUTE format('WITH moved AS (DELETE FROM usage_logs_other WHERE request_id >= %L AND request_id < %L RETURNING *)
        INSERT INTO %I SELECT * FROM moved', first_id, next_id, name);
    EXECUTE format('ALTER TABLE usage_logs ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, first_id, next_id);
    RETURN true;
END
$$;

-- Makes the partitions of this month and the next ones, and those of the past ten years whose rows are in usage_logs_other.
CREATE OR REPLACE FUNCTION usage_logs_make_partitions(months integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    this_month timestamptz := date_trunc('month', now(), 'UTC');
    month timestamptz;
    made integer := 0;
BEGIN
    FOR month IN
        SELECT (this_month AT TIME ZONE 'UTC' + make_interval(months => step)) AT TIME ZONE 'UTC'
            FROM generate_series(0, months) AS step
        UNION
        SELECT date_trunc('month', usage_logs_time(request_id), 'UTC') FROM usage_logs_other
            WHERE request_id >= usage_logs_first_id(this_month - interval '10 years')
                AND request_id < usage_logs_first_id(date_trunc('month', this_month + interval '32 days', 'UTC'))
        ORDER BY 1
    LOOP
        made := made + usage_logs_make_partition(month)::integer;
    END LOOP;
    RETURN made;
END
$$;

-- The oldest partition whose month ended before `until`; null where there is none.
CREATE FUNCTION usage_logs_oldest(until timestamptz) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT child.relname::text FROM pg_inherits AS i
        JOIN pg_class AS child ON child.oid = i.inhrelid
        WHERE i.inhparent = 'usage_logs'::regclass AND child.relname ~ '^usage_logs_[0-9]{4}_[0-9]{2}$'
            AND child.relname::text COLLATE "C" < usage_logs_partition(until)
        ORDER BY child.relname LIMIT 1
$$;

-- Takes a partition away and keeps what its rows charged. Answers how many rows they were.
CREATE FUNCTION usage_logs_drop_partition(name text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    gone bigint;
BEGIN
    -- Late rows of that month wait; everything else goes on while the rows are summed up.
    EXECUTE format('LOCK TABLE %I IN SHARE MODE', name);
    EXECUTE format('INSERT INTO usage_pruned AS known (user_id, charged, rows)
        SELECT user_id, sum(charged)::bigint, count(*) FROM %I GROUP BY user_id ORDER BY user_id
        ON CONFLICT (user_id) DO UPDATE SET charged = known.charged + excluded.charged, rows = known.rows + excluded.rows',
        name);
    EXECUTE format('SELECT count(*) FROM %I', name) INTO gone;
    EXECUTE format('ALTER TABLE usage_logs DETACH PARTITION %I', name);
    EXECUTE format('DROP TABLE %I', name);
    RETURN gone;
END
$$;
