-- What usage rows that are no longer kept had added to usage_days: the days can be proven without them. `until`: rows of months
-- before are gone, and what their days say cannot be added up anew.
ALTER TABLE usage_pruned
    ADD COLUMN until timestamptz,
    ADD COLUMN day_requests bigint NOT NULL DEFAULT 0,
    ADD COLUMN day_charged bigint NOT NULL DEFAULT 0,
    ADD COLUMN day_input_tokens bigint NOT NULL DEFAULT 0,
    ADD COLUMN day_cached_tokens bigint NOT NULL DEFAULT 0,
    ADD COLUMN day_output_tokens bigint NOT NULL DEFAULT 0,
    ADD COLUMN day_estimated bigint NOT NULL DEFAULT 0,
    ADD COLUMN day_client_errors bigint NOT NULL DEFAULT 0,
    ADD COLUMN day_server_errors bigint NOT NULL DEFAULT 0;

-- Of what is gone already the days are the record.
UPDATE usage_pruned AS p SET until = coalesce(u.first, date_trunc('month', now(), 'UTC')),
        day_requests = d.requests - u.requests, day_charged = d.charged - u.charged,
        day_input_tokens = d.input - u.input, day_cached_tokens = d.cached - u.cached, day_output_tokens = d.output - u.output,
        day_estimated = d.estimated - u.estimated, day_client_errors = d.client - u.client, day_server_errors = d.server - u.server
    FROM usage_pruned AS known
    CROSS JOIN LATERAL (SELECT coalesce(sum(requests), 0) AS requests, coalesce(sum(charged), 0) AS charged,
            coalesce(sum(input_tokens), 0) AS input, coalesce(sum(cached_tokens), 0) AS cached,
            coalesce(sum(output_tokens), 0) AS output, coalesce(sum(estimated), 0) AS estimated,
            coalesce(sum(client_errors), 0) AS client, coalesce(sum(server_errors), 0) AS server
        FROM usage_days WHERE user_id = known.user_id) AS d
    CROSS JOIN LATERAL (SELECT count(*) AS requests, coalesce(sum(charged), 0) AS charged,
            coalesce(sum(input_tokens), 0) AS input, coalesce(sum(cached_tokens), 0) AS cached,
            coalesce(sum(output_tokens), 0) AS output, count(*) FILTER (WHERE estimated) AS estimated,
            count(*) FILTER (WHERE status BETWEEN 400 AND 499) AS client, count(*) FILTER (WHERE status >= 500) AS server,
            date_trunc('month', min(created_at), 'UTC') AS first
        FROM usage_logs WHERE user_id = known.user_id
            AND seq <= coalesce((SELECT seq FROM usage_rolled WHERE user_id = known.user_id), 0)) AS u
    WHERE p.user_id = known.user_id;

-- Takes a partition away and keeps what its rows charged and added to the days. Answers how many rows they were; null where
-- some of them are in no day yet: then it stays for now.
CREATE OR REPLACE FUNCTION usage_logs_drop_partition(name text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    gone bigint;
    missing boolean;
    until timestamptz := (to_date(right(name, 7), 'YYYY_MM') + interval '1 month') AT TIME ZONE 'UTC';
BEGIN
    -- Late rows of that month wait; everything else goes on while the rows are summed up.
    EXECUTE format('LOCK TABLE %I IN SHARE MODE', name);
    EXECUTE format('SELECT EXISTS (SELECT 1 FROM %I AS u LEFT JOIN usage_rolled AS r ON r.user_id = u.user_id
        WHERE u.seq > coalesce(r.seq, 0))', name) INTO missing;
    IF missing THEN
        RETURN NULL;
    END IF;
    EXECUTE format('INSERT INTO usage_pruned AS known
        SELECT user_id, sum(charged)::bigint, count(*), %L::timestamptz, count(*), sum(charged)::bigint,
            sum(input_tokens)::bigint, sum(cached_tokens)::bigint, sum(output_tokens)::bigint,
            count(*) FILTER (WHERE estimated), count(*) FILTER (WHERE status BETWEEN 400 AND 499),
            count(*) FILTER (WHERE status >= 500)
        FROM %I GROUP BY user_id ORDER BY user_id
        ON CONFLICT (user_id) DO UPDATE SET charged = known.charged + excluded.charged, rows = known.rows + excluded.rows,
            until = greatest(known.until, excluded.until), day_requests = known.day_requests + excluded.day_requests,
            day_charged = known.day_charged + excluded.day_charged,
            day_input_tokens = known.day_input_tokens + excluded.day_input_tokens,
            day_cached_tokens = known.day_cached_tokens + excluded.day_cached_tokens,
            day_output_tokens = known.day_output_tokens + excluded.day_output_tokens,
            day_estimated = known.day_estimated + excluded.day_estimated,
            day_client_errors = known.day_client_errors + excluded.day_client_errors,
            day_server_errors = known.day_server_errors + excluded.day_server_errors', until, name);
    EXECUTE format('SELECT count(*) FROM %I', name) INTO gone;
    EXECUTE format('ALTER TABLE usage_logs DETACH PARTITION %I', name);
    EXECUTE format('DROP TABLE %I', name);
    RETURN gone;
END
$$;
