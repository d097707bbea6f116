-- What usage rows that are no longer kept had added to usage_days: the days can be proven without them. `until` (in µs): rows
-- of months before are gone, and what their days say cannot be added up anew.
ALTER TABLE usage_pruned ADD COLUMN until INTEGER;
ALTER TABLE usage_pruned ADD COLUMN day_requests INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_pruned ADD COLUMN day_charged INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_pruned ADD COLUMN day_input_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_pruned ADD COLUMN day_cached_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_pruned ADD COLUMN day_output_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_pruned ADD COLUMN day_estimated INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_pruned ADD COLUMN day_client_errors INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_pruned ADD COLUMN day_server_errors INTEGER NOT NULL DEFAULT 0;

-- Of what is gone already the days are the record.
UPDATE usage_pruned AS p SET until = coalesce(u.first, unixepoch('now', 'start of month') * 1000000),
        day_requests = d.requests - u.requests, day_charged = d.charged - u.charged,
        day_input_tokens = d.input - u.input, day_cached_tokens = d.cached - u.cached, day_output_tokens = d.output - u.output,
        day_estimated = d.estimated - u.estimated, day_client_errors = d.client - u.client, day_server_errors = d.server - u.server
    FROM (SELECT k.user_id, coalesce(sum(t.requests), 0) AS requests, coalesce(sum(t.charged), 0) AS charged,
            coalesce(sum(t.input_tokens), 0) AS input, coalesce(sum(t.cached_tokens), 0) AS cached,
            coalesce(sum(t.output_tokens), 0) AS output, coalesce(sum(t.estimated), 0) AS estimated,
            coalesce(sum(t.client_errors), 0) AS client, coalesce(sum(t.server_errors), 0) AS server
        FROM usage_pruned AS k LEFT JOIN usage_days AS t ON t.user_id = k.user_id GROUP BY k.user_id) AS d,
        (SELECT k.user_id, count(l.seq) AS requests, coalesce(sum(l.charged), 0) AS charged,
            coalesce(sum(input_tokens), 0) AS input, coalesce(sum(cached_tokens), 0) AS cached,
            coalesce(sum(output_tokens), 0) AS output, coalesce(sum(estimated), 0) AS estimated,
            coalesce(sum(status BETWEEN 400 AND 499), 0) AS client, coalesce(sum(status >= 500), 0) AS server,
            unixepoch(min(created_at) / 1000000, 'unixepoch', 'start of month') * 1000000 AS first
        FROM usage_pruned AS k LEFT JOIN usage_rolled AS r ON r.user_id = k.user_id
        LEFT JOIN usage_logs AS l ON l.user_id = k.user_id AND l.seq <= coalesce(r.seq, 0) GROUP BY k.user_id) AS u
    WHERE d.user_id = p.user_id AND u.user_id = p.user_id;
