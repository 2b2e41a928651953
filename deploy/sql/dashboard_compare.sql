-- Today (UTC) until now beside yesterday and a week ago until the same time of day: what the admin page holds against
-- its targets, and by how much it changed.
WITH periods AS (
    SELECT
        name,
        extract(epoch FROM date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC') - days * 86400 AS since,
        extract(epoch FROM now()) - days * 86400 AS until
    FROM (VALUES ('today', 0), ('yesterday', 1), ('a week ago', 7)) AS each (name, days)
),
sums AS (
    SELECT
        name,
        since,
        count(request_id) AS requests,
        coalesce(sum(saved), 0) AS free,
        coalesce(sum(failed), 0) AS errors,
        coalesce(sum(upstream_usd), 0) AS usd,
        coalesce(sum(usage_requests.saved_usd + policy_saved_usd), 0) AS saved,
        percentile_disc(0.95) WITHIN GROUP (ORDER BY total_ms) AS p95_ms
    FROM periods
    LEFT JOIN usage_requests ON at >= since AND at < until
    GROUP BY name, since
)
SELECT
    name AS period,
    requests,
    round(100.0 * free / nullif(requests, 0), 1) AS without_a_call_percent,
    round(100.0 * errors / nullif(requests, 0), 2) AS error_percent,
    round(p95_ms::numeric, 1) AS p95_ms,
    round(usd::numeric, 6) AS cost_usd,
    round((1000 * usd / nullif(requests, 0))::numeric, 4) AS usd_per_1000,
    round(saved::numeric, 6) AS saved_usd,
    round((100 * (first_value(usd) OVER (ORDER BY since DESC) / nullif(usd, 0) - 1))::numeric, 1) AS today_costs_more_percent
FROM sums
ORDER BY since DESC;
