-- Today (UTC) by how requests were answered, as the admin page shows it: rules, the cache, flights that were joined,
-- tiers, other calls, and the proxy itself; the first row is everything.
SELECT
    CASE
        WHEN grouping(kind) = 1 THEN '(all)'
        ELSE kind
    END AS answered_by,
    sum(requests) AS requests,
    round(100.0 * sum(requests) / max(sum(requests)) OVER (), 1) AS share_percent,
    round(sum(usd)::numeric, 6) AS cost_usd,
    round(sum(saved)::numeric, 6) AS saved_usd,
    round((sum(ms) / nullif(sum(requests), 0))::numeric, 1) AS mean_ms,
    sum(errors) AS errors
FROM (
    SELECT
        CASE
            WHEN role = 'pattern' THEN 'pattern'
            WHEN role = 'hit' THEN 'hit'
            WHEN role = 'follower' THEN 'joined'
            WHEN called = 0 THEN 'other'
            WHEN tier = '' THEN 'call'
            ELSE 'tier:' || tier
        END AS kind,
        count(*) AS requests,
        sum(upstream_usd) AS usd,
        sum(saved_usd + policy_saved_usd) AS saved,
        sum(total_ms) AS ms,
        sum(failed) AS errors
    FROM usage_requests
    WHERE at >= extract(epoch FROM date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC')
    GROUP BY 1
) AS today
GROUP BY ROLLUP (kind)
ORDER BY grouping(kind) DESC, sum(requests) DESC, kind;
