-- The last 24 hours (UTC), hour by hour, as on the admin page's charts; an hour without requests has no row.
SELECT
    to_timestamp(floor(at / 3600) * 3600) AT TIME ZONE 'UTC' AS hour,
    count(*) AS requests,
    count(*) FILTER (WHERE role = 'pattern') AS patterns,
    count(*) FILTER (WHERE role = 'hit') AS hits,
    count(*) FILTER (WHERE role = 'follower') AS joined,
    sum(called) AS calls,
    sum(failed) AS errors,
    round(sum(upstream_usd)::numeric, 6) AS cost_usd,
    round(sum(saved_usd + policy_saved_usd)::numeric, 6) AS saved_usd,
    round((percentile_disc(0.5) WITHIN GROUP (ORDER BY total_ms))::numeric, 1) AS p50_ms,
    round((percentile_disc(0.95) WITHIN GROUP (ORDER BY total_ms))::numeric, 1) AS p95_ms
FROM usage_requests
WHERE at >= (floor(extract(epoch FROM now()) / 3600) - 23) * 3600
GROUP BY 1
ORDER BY 1;
