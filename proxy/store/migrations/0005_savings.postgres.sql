-- What policies did and saved: one column for each, and the views with them.

ALTER TABLE usage ADD COLUMN tier text NOT NULL DEFAULT '';
ALTER TABLE usage ADD COLUMN cache_class text NOT NULL DEFAULT '';
ALTER TABLE usage ADD COLUMN pruned_tokens bigint NOT NULL DEFAULT 0;
ALTER TABLE usage ADD COLUMN policy_saved_picodollars bigint NOT NULL DEFAULT 0;
ALTER TABLE usage ADD COLUMN shadow_saved_picodollars bigint NOT NULL DEFAULT 0;
ALTER TABLE usage ADD COLUMN flagged text NOT NULL DEFAULT '';

-- Replaced, not dropped: whoever may read them still may. New columns come last.
CREATE OR REPLACE VIEW usage_requests AS
SELECT
    request_id,
    at,
    key_id,
    tenant,
    team,
    provider,
    route,
    model,
    role,
    outcome,
    status,
    streams,
    estimated,
    input_tokens,
    output_tokens,
    cached_input_tokens,
    upstream_tokens,
    saved_tokens,
    cost_picodollars,
    upstream_picodollars,
    saved_picodollars,
    first_byte_ms,
    total_ms,
    overhead_ms,
    flight_id,
    tags,
    to_char(to_timestamp(at) AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS day,
    CASE WHEN role IN ('leader', 'alone') THEN 1 ELSE 0 END AS called,
    CASE WHEN role IN ('follower', 'hit', 'pattern') THEN 1 ELSE 0 END AS saved,
    CASE WHEN status >= 500 OR outcome IN ('stream_broken', 'lost') THEN 1 ELSE 0 END AS failed,
    CASE WHEN status BETWEEN 400 AND 498 THEN 1 ELSE 0 END AS refused,
    CASE WHEN estimated THEN 1 ELSE 0 END AS guessed,
    cost_picodollars / 1e12::double precision AS cost_usd,
    upstream_picodollars / 1e12::double precision AS upstream_usd,
    saved_picodollars / 1e12::double precision AS saved_usd,
    tier,
    cache_class,
    pruned_tokens,
    policy_saved_picodollars,
    shadow_saved_picodollars,
    flagged,
    CASE WHEN role = 'hit' THEN 1 ELSE 0 END AS hit,
    CASE WHEN role = 'pattern' THEN 1 ELSE 0 END AS patterned,
    policy_saved_picodollars / 1e12::double precision AS policy_saved_usd,
    shadow_saved_picodollars / 1e12::double precision AS shadow_saved_usd
FROM usage;

CREATE OR REPLACE VIEW usage_daily AS
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
    sum(input_tokens) AS input_tokens,
    sum(output_tokens) AS output_tokens,
    sum(cached_input_tokens) AS cached_input_tokens,
    sum(upstream_tokens) AS upstream_tokens,
    sum(saved_tokens) AS saved_tokens,
    sum(cost_usd) AS cost_usd,
    sum(upstream_usd) AS upstream_usd,
    sum(saved_usd) AS saved_usd,
    sum(failed) AS errors,
    sum(refused) AS refused,
    sum(guessed) AS estimated,
    avg(total_ms) AS mean_ms,
    max(total_ms) AS max_ms,
    sum(hit) AS hits,
    sum(patterned) AS patterns,
    sum(pruned_tokens) AS pruned_tokens,
    sum(policy_saved_usd) AS policy_saved_usd,
    sum(shadow_saved_usd) AS shadow_saved_usd
FROM usage_requests
GROUP BY day, tenant, team, key_id, provider, route, model;

CREATE OR REPLACE VIEW usage_monthly AS
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
    sum(errors) AS errors,
    sum(patterns) AS patterns,
    sum(policy_saved_usd) AS policy_saved_usd,
    sum(shadow_saved_usd) AS shadow_saved_usd
FROM usage_daily
GROUP BY substr(day, 1, 7), tenant, team, key_id;
