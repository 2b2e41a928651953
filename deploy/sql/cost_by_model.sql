-- What each model cost since a day, and what a million of its tokens cost on the whole.
SELECT
    provider,
    model,
    sum(requests) AS requests,
    sum(calls) AS calls,
    sum(input_tokens) AS input_tokens,
    sum(output_tokens) AS output_tokens,
    round(100.0 * sum(cached_input_tokens) / nullif(sum(input_tokens), 0), 1) AS cached_input_percent,
    round(sum(upstream_usd)::numeric, 6) AS upstream_usd,
    round((1e6 * sum(upstream_usd) / nullif(sum(upstream_tokens), 0))::numeric, 4) AS usd_per_million_tokens,
    round(100.0 * sum(estimated) / sum(requests), 1) AS estimated_percent
FROM usage_daily
WHERE day >= :since
GROUP BY provider, model
ORDER BY sum(upstream_usd) DESC, provider, model;
