-- What each key, team and tenant cost since a day; the subtotals have no key, no team, no tenant.
-- cost_usd is what the key was billed, upstream_usd what providers charged for it.
SELECT
    tenant,
    team,
    key_id,
    sum(requests) AS requests,
    sum(calls) AS calls,
    round(sum(cost_usd)::numeric, 6) AS cost_usd,
    round(sum(upstream_usd)::numeric, 6) AS upstream_usd,
    round(sum(saved_usd)::numeric, 6) AS saved_usd,
    sum(errors) AS errors
FROM usage_daily
WHERE day >= :since
GROUP BY ROLLUP (tenant, team, key_id)
ORDER BY grouping(tenant) DESC, tenant, grouping(team) DESC, team, grouping(key_id) DESC, sum(cost_usd) DESC;
