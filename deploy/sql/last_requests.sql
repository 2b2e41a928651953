-- The last hundred requests of a key, to compare with an application's own log.
SELECT
    to_timestamp(at) AT TIME ZONE 'UTC' AS at,
    request_id,
    provider,
    route,
    model,
    role,
    outcome,
    status,
    input_tokens,
    output_tokens,
    round(cost_usd::numeric, 8) AS cost_usd,
    round(saved_usd::numeric, 8) AS saved_usd,
    round(first_byte_ms::numeric, 1) AS first_byte_ms,
    round(total_ms::numeric, 1) AS total_ms
FROM usage_requests
WHERE key_id = :key_id
ORDER BY at DESC
LIMIT 100;
