-- For people with tools of their own; described in the handbook and kept compatible.

-- Each request with what the reports count: a day (UTC), flags of 0 or 1, and money in dollars.
CREATE VIEW usage_requests AS
SELECT
    usage.*,
    strftime('%Y-%m-%d', at, 'unixepoch') AS day,
    CASE WHEN role IN ('leader', 'alone') THEN 1 ELSE 0 END AS called,
    CASE WHEN role IN ('follower', 'hit') THEN 1 ELSE 0 END AS saved,
    CASE WHEN status >= 500 OR outcome IN ('stream_broken', 'lost') THEN 1 ELSE 0 END AS failed,
    CASE WHEN status BETWEEN 400 AND 498 THEN 1 ELSE 0 END AS refused,
    CASE WHEN estimated THEN 1 ELSE 0 END AS guessed,
    cost_picodollars / 1e12 AS cost_usd,
    upstream_picodollars / 1e12 AS upstream_usd,
    saved_picodollars / 1e12 AS saved_usd
FROM usage;

-- Sums of a day for each key, provider, route and model.
CREATE VIEW usage_daily AS
SELECT
    day,
    tenant,
    team,
    key_id,
    provider,
    route,
    model,
    count(*) AS requests,
    sum(called) AS calls,
    sum(saved) AS saved_calls,
    CAST(total(input_tokens) AS bigint) AS input_tokens,
    CAST(total(output_tokens) AS bigint) AS output_tokens,
    CAST(total(cached_input_tokens) AS bigint) AS cached_input_tokens,
    CAST(total(upstream_tokens) AS bigint) AS upstream_tokens,
    CAST(total(saved_tokens) AS bigint) AS saved_tokens,
    sum(cost_usd) AS cost_usd,
    sum(upstream_usd) AS upstream_usd,
    sum(saved_usd) AS saved_usd,
    sum(failed) AS errors,
    sum(refused) AS refused,
    sum(guessed) AS estimated,
    avg(total_ms) AS mean_ms,
    max(total_ms) AS max_ms
FROM usage_requests
GROUP BY day, tenant, team, key_id, provider, route, model;

-- Sums of a month for each tenant, team and key.
CREATE VIEW usage_monthly AS
SELECT
    substr(day, 1, 7) AS month,
    tenant,
    team,
    key_id,
    sum(requests) AS requests,
    sum(calls) AS calls,
    sum(saved_calls) AS saved_calls,
    sum(cost_usd) AS cost_usd,
    sum(upstream_usd) AS upstream_usd,
    sum(saved_usd) AS saved_usd,
    sum(errors) AS errors
FROM usage_daily
GROUP BY substr(day, 1, 7), tenant, team, key_id;

-- What every account has left of its current window is for the proxy to say: it knows the limits.
CREATE VIEW budget_windows AS
SELECT
    account,
    period,
    spent / 1e12 AS spent_usd,
    leased / 1e12 AS leased_usd,
    ends_at
FROM budgets;
