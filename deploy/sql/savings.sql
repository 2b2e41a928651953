-- What sharing, caching and policies saved since a day: calls, tokens and dollars, and the share of what would have
-- been spent. Policies are rules' answers, cheaper tiers and shorter prompts; what they save may be below 0.
SELECT
    provider,
    route,
    model,
    sum(requests) AS requests,
    sum(saved_calls) AS saved_calls,
    round(100.0 * sum(saved_calls) / sum(requests), 1) AS saved_calls_percent,
    sum(saved_tokens) AS saved_tokens,
    round(sum(saved_usd)::numeric, 6) AS saved_usd,
    sum(patterns) AS patterns,
    sum(pruned_tokens) AS pruned_tokens,
    round(sum(policy_saved_usd)::numeric, 6) AS policy_saved_usd,
    round((
        100 * sum(saved_usd + policy_saved_usd) / nullif(sum(saved_usd + policy_saved_usd + upstream_usd), 0)
    )::numeric, 1) AS saved_usd_percent
FROM usage_daily
WHERE day >= :since
GROUP BY provider, route, model
ORDER BY sum(saved_usd + policy_saved_usd) DESC, sum(saved_calls) DESC, provider, route, model;
