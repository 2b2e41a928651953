-- How requests were answered since a day, in percent of each day and route: they led a flight, joined one, came from
-- the cache, by a rule, went alone, or were answered by the proxy itself (refused, too).
SELECT
    day,
    route,
    count(*) AS requests,
    round(100.0 * count(*) FILTER (WHERE role = 'leader') / count(*), 1) AS led_percent,
    round(100.0 * count(*) FILTER (WHERE role = 'follower') / count(*), 1) AS joined_percent,
    round(100.0 * count(*) FILTER (WHERE role = 'hit') / count(*), 1) AS cache_percent,
    round(100.0 * count(*) FILTER (WHERE role = 'pattern') / count(*), 1) AS pattern_percent,
    round(100.0 * count(*) FILTER (WHERE role = 'alone') / count(*), 1) AS alone_percent,
    round(100.0 * count(*) FILTER (WHERE role IN ('local', 'none')) / count(*), 1) AS itself_percent
FROM usage_requests
WHERE at >= extract(epoch FROM (:since)::timestamp AT TIME ZONE 'UTC')
GROUP BY day, route
ORDER BY day, count(*) DESC, route;
