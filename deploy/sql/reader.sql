-- A role for reports: it reads the views, and neither keys nor the tables beneath. Run it as the owner of the database;
-- running it again sets the password anew and hands out what later versions of the views need.
--     psql "$SAMEFLIGHT_DATABASE_URL" -v password="'…'" -f reader.sql

\set ON_ERROR_STOP on

SELECT 'CREATE ROLE sameflight_reader NOINHERIT'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'sameflight_reader')
\gexec

ALTER ROLE sameflight_reader LOGIN PASSWORD :password CONNECTION LIMIT 10;
ALTER ROLE sameflight_reader SET default_transaction_read_only = on;
-- A report must not hold up the database that requests wait for.
ALTER ROLE sameflight_reader SET statement_timeout = '60s';
ALTER ROLE sameflight_reader SET idle_in_transaction_session_timeout = '60s';

REVOKE ALL ON ALL TABLES IN SCHEMA public FROM sameflight_reader;
GRANT USAGE ON SCHEMA public TO sameflight_reader;
GRANT SELECT ON usage_requests, usage_daily, usage_monthly, budget_windows TO sameflight_reader;
