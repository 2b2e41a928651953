-- What each day cost since a day, days without requests included, beside the mean of the seven days up to it.
WITH days AS (
    SELECT to_char(day, 'YYYY-MM-DD') AS day
    FROM generate_series((:since)::date, (now() AT TIME ZONE 'UTC')::date, interval '1 day') AS each (day)
),
sums AS (
    SELECT
        day,
        sum(requests) AS requests,
        sum(calls) AS calls,
        sum(upstream_usd) AS upstream_usd,
        sum(saved_usd) AS saved_usd
    FROM usage_daily
    WHERE day >= :since
    GROUP BY day
)
SELECT
    days.day,
    coalesce(requests, 0) AS requests,
    coalesce(calls, 0) AS calls,
    round(coalesce(upstream_usd, 0)::numeric, 6) AS upstream_usd,
    round(coalesce(saved_usd, 0)::numeric, 6) AS saved_usd,
    round((avg(coalesce(upstream_usd, 0)) OVER (ORDER BY days.day ROWS 6 PRECEDING))::numeric, 6) AS mean_of_seven_days_usd
FROM days
LEFT JOIN sums ON sums.day = days.day
ORDER BY days.day;
