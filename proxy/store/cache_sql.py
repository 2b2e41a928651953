"""Every statement of the shared cache where that is PostgreSQL. The tables are made when they are first needed: they
are unlogged, survive no crash of the server and are on no standby, as befits a cache."""

from __future__ import annotations

from typing import Final

FOREVER: Final = 1e15
"""Seconds; what is kept for so long has no end."""

_NOW: Final = "extract(epoch FROM clock_timestamp())::float8"
MAKE: Final = (
    # Two processes that make a table at once would trip over each other in the catalog.
    "SELECT pg_advisory_xact_lock(6013409, 5)",
    "CREATE UNLOGGED TABLE IF NOT EXISTS sameflight_cache"
    " (name text PRIMARY KEY, expires_at double precision NOT NULL, size_bytes integer NOT NULL,"
    " value bytea NOT NULL)"
    " WITH (autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_scale_factor = 0.02)",
    # Answers do not change, and compressing them costs more than it saves.
    "ALTER TABLE sameflight_cache ALTER COLUMN value SET STORAGE EXTERNAL",
    "CREATE INDEX IF NOT EXISTS sameflight_cache_expires ON sameflight_cache (expires_at)",
    "CREATE UNLOGGED TABLE IF NOT EXISTS sameflight_cache_generations"
    " (name text PRIMARY KEY, value bigint NOT NULL, cause text NOT NULL)",
)
MADE: Final = "SELECT to_regclass('sameflight_cache_generations') IS NOT NULL AS made"
# A generation lies in a table of its own, which is never swept; names do not say which is which.
READ: Final = (
    "SELECT asked.name, coalesce(held.value, convert_to(known.value::text, 'UTF8')) AS value"
    " FROM unnest($1::text[]) AS asked (name)"
    " LEFT JOIN LATERAL (SELECT substr(value, 1, $2) AS value FROM sameflight_cache WHERE name = asked.name"
    f" AND expires_at > {_NOW}) AS held ON true"
    " LEFT JOIN sameflight_cache_generations AS known ON known.name = asked.name"
)
WRITE: Final = (
    "INSERT INTO sameflight_cache (name, expires_at, size_bytes, value)"
    f" VALUES ($1, {_NOW} + $2::float8, octet_length($3::bytea), $3::bytea)"
    " ON CONFLICT (name) DO UPDATE SET expires_at = excluded.expires_at, size_bytes = excluded.size_bytes,"
    " value = excluded.value"
)
ADD: Final = (
    "INSERT INTO sameflight_cache AS held (name, expires_at, size_bytes, value)"
    f" VALUES ($1, {_NOW} + $2::float8, octet_length($3::bytea), $3::bytea)"
    " ON CONFLICT (name) DO UPDATE SET expires_at = excluded.expires_at, size_bytes = excluded.size_bytes,"
    f" value = excluded.value WHERE held.expires_at <= {_NOW} RETURNING name"
)
DELETE: Final = "DELETE FROM sameflight_cache WHERE name = $1 RETURNING name"
EXISTS: Final = f"SELECT 1 FROM sameflight_cache WHERE name = $1 AND expires_at > {_NOW}"
EXPIRE: Final = f"UPDATE sameflight_cache SET expires_at = {_NOW} + $2::float8 WHERE name = $1 RETURNING name"
CLEAR: Final = "DELETE FROM sameflight_cache WHERE starts_with(name, $1)"
# One process sweeps at a time; the others go on.
SWEEP: Final = (
    "DELETE FROM sameflight_cache WHERE name IN (SELECT name FROM sameflight_cache"
    f" WHERE expires_at <= {_NOW} AND pg_try_advisory_xact_lock(6013409, 6)"
    " ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING size_bytes"
)
WEIGH: Final = "SELECT coalesce(sum(size_bytes), 0)::float8 AS size_bytes FROM sameflight_cache"
EVICT: Final = (
    "DELETE FROM sameflight_cache WHERE name IN (SELECT name FROM (SELECT name,"
    " sum(size_bytes) OVER (ORDER BY expires_at, name) - size_bytes AS before FROM"
    " (SELECT name, size_bytes, expires_at FROM sameflight_cache ORDER BY expires_at, name LIMIT $1) AS soonest)"
    " AS placed WHERE before < $2 AND pg_try_advisory_xact_lock(6013409, 6)) RETURNING size_bytes"
)


TELL: Final = "SELECT value, cause FROM sameflight_cache_generations WHERE name = $1"
# As for Valkey (`cache.valkey`): the greatest number wins, and nonsense counts as nothing. $1 the name, $2 the number
# that the caller knows, $3 whether it must grow, $4 a cause, $5 the channel.
_SANE: Final = "(CASE WHEN {0} BETWEEN 0 AND now.us + 86400000000 THEN {0} ELSE 0 END)"
_HELD: Final = _SANE.format("held.value")
_KNOWN: Final = _SANE.format("$2::bigint")
SETTLE: Final = (
    "WITH now AS MATERIALIZED (SELECT (extract(epoch FROM clock_timestamp()) * 1e6)::bigint AS us),"
    " put AS (INSERT INTO sameflight_cache_generations AS held (name, value, cause)"
    f" SELECT $1, CASE WHEN $4 <> '' OR $3 OR {_KNOWN} = 0 THEN greatest(now.us, {_KNOWN} + 1) ELSE {_KNOWN} END, $4"
    " FROM now ON CONFLICT (name) DO UPDATE SET value = (SELECT CASE"
    f" WHEN $4 <> '' AND held.cause <> $4 THEN greatest(now.us, greatest({_HELD}, {_KNOWN}) + 1)"
    f" WHEN $3 AND {_KNOWN} <= {_HELD} THEN greatest(now.us, {_HELD} + 1)"
    f" ELSE coalesce(nullif(greatest({_HELD}, {_KNOWN}), 0), now.us) END FROM now),"
    " cause = CASE WHEN $4 <> '' THEN $4 ELSE held.cause END RETURNING value)"
    " SELECT value, pg_notify($5, value::text) FROM put"
)
