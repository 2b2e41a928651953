-- What this month will cost: what it has cost so far, and the pace of the last seven full days until its end. A tenant
-- that is new is projected by the days it was there.
WITH clock AS (
    SELECT
        now() AT TIME ZONE 'UTC' AS now,
        date_trunc('month', now() AT TIME ZONE 'UTC') AS month,
        date_trunc('day', now() AT TIME ZONE 'UTC') AS today
),
so_far AS (
    SELECT tenant, sum(upstream_usd) AS usd
    FROM usage_daily, clock
    WHERE day >= to_char(month, 'YYYY-MM-DD')
    GROUP BY tenant
),
week AS (
    SELECT
        tenant,
        sum(upstream_usd) AS usd,
        greatest(1, least(7, max(today)::date - min(day)::date)) AS days
    FROM usage_daily, clock
    WHERE day >= to_char(today - interval '7 days', 'YYYY-MM-DD') AND day < to_char(today, 'YYYY-MM-DD')
    GROUP BY tenant
)
SELECT
    coalesce(so_far.tenant, week.tenant) AS tenant,
    round(coalesce(so_far.usd, 0)::numeric, 2) AS so_far_usd,
    round(coalesce(week.usd / week.days, 0)::numeric, 2) AS a_day_usd,
    round((
        coalesce(so_far.usd, 0)
        + coalesce(week.usd / week.days, 0) * extract(epoch FROM month + interval '1 month' - now) / 86400
    )::numeric, 2) AS month_usd
FROM so_far
FULL JOIN week ON week.tenant = so_far.tenant
CROSS JOIN clock
ORDER BY month_usd DESC, tenant;
