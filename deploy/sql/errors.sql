-- What failed since a day, and how slow the rest was: outcomes by provider, route and model, with milliseconds to the
-- first byte.
SELECT
    provider,
    route,
    model,
    outcome,
    status,
    count(*) AS requests,
    round((percentile_cont(0.5) WITHIN GROUP (ORDER BY first_byte_ms))::numeric, 1) AS p50_first_byte_ms,
    round((percentile_cont(0.95) WITHIN GROUP (ORDER BY first_byte_ms))::numeric, 1) AS p95_first_byte_ms,
    round((percentile_cont(0.95) WITHIN GROUP (ORDER BY overhead_ms))::numeric, 3) AS p95_overhead_ms
FROM usage_requests
WHERE at >= extract(epoch FROM (:since)::timestamp AT TIME ZONE 'UTC')
GROUP BY provider, route, model, outcome, status
ORDER BY sum(failed) DESC, count(*) DESC, provider, route, model, outcome, status;
