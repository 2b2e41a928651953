-- Windows of budgets that have not ended: what is spent, and what processes hold and may give back. The limits are known
-- to the proxy: `sameflight keys show`.
SELECT
    account,
    period,
    round(spent_usd::numeric, 6) AS spent_usd,
    round(leased_usd::numeric, 6) AS leased_usd,
    to_timestamp(ends_at) AT TIME ZONE 'UTC' AS ends
FROM budget_windows
WHERE ends_at > extract(epoch FROM now())
ORDER BY spent_usd DESC, account, period;
