-- How the classes of answers did since a day: how often they were found, what that saved, and how many were asked for.
SELECT
    day,
    CASE cache_class WHEN '' THEN '(none)' ELSE cache_class END AS cache_class,
    count(*) AS requests,
    sum(hit) AS hits,
    round(100.0 * sum(hit) / count(*), 1) AS hit_percent,
    round(100.0 * count(*) FILTER (WHERE role = 'follower') / count(*), 1) AS joined_percent,
    round(sum(saved_usd)::numeric, 6) AS saved_usd
FROM usage_requests
WHERE at >= extract(epoch FROM (:since)::timestamp AT TIME ZONE 'UTC')
GROUP BY day, cache_class
ORDER BY day, count(*) DESC, cache_class;
