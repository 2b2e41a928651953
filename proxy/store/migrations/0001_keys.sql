-- Virtual keys, what teams and tenants may do, and budgets with their leases.
-- Money is whole picodollars, times are Unix seconds, lists are JSON arrays.

CREATE TABLE api_keys (
    id text PRIMARY KEY,
    digest bytea NOT NULL,
    name text NOT NULL,
    tenant text NOT NULL,
    team text NOT NULL,
    models text NOT NULL,
    routes text NOT NULL,
    requests_per_minute bigint NOT NULL,
    tokens_per_minute bigint NOT NULL,
    concurrent bigint NOT NULL,
    budget_picodollars bigint,
    budget_period text,
    scope text NOT NULL,
    cache text NOT NULL,
    charge text NOT NULL,
    expires_at double precision NOT NULL,
    tags text NOT NULL,
    created_at double precision NOT NULL,
    revoked_at double precision NOT NULL,
    version bigint NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX api_keys_digest ON api_keys (digest);
CREATE INDEX api_keys_version ON api_keys (version);
CREATE INDEX api_keys_name ON api_keys (tenant, name);
CREATE INDEX api_keys_tenant ON api_keys (tenant, id);
CREATE INDEX api_keys_team ON api_keys (team, id);

CREATE TABLE allowances (
    kind text NOT NULL,
    name text NOT NULL,
    requests_per_minute bigint NOT NULL,
    tokens_per_minute bigint NOT NULL,
    concurrent bigint NOT NULL,
    budget_picodollars bigint,
    budget_period text,
    version bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (kind, name)
);
CREATE INDEX allowances_version ON allowances (version);

-- One row for each window of an account: a new day or month is a new row, so it can begin only once.
CREATE TABLE budgets (
    account text NOT NULL,
    period text NOT NULL,
    spent bigint NOT NULL DEFAULT 0,
    leased bigint NOT NULL DEFAULT 0,
    ends_at double precision NOT NULL,
    PRIMARY KEY (account, period)
);

-- What a process (the holder) has got out of a window and what became of it, in totals. It has leased what is granted
-- and neither spent nor returned, and never less than nothing; `leased` of the window is the sum over its holders.
CREATE TABLE leases (
    account text NOT NULL,
    holder text NOT NULL,
    period text NOT NULL,
    granted bigint NOT NULL DEFAULT 0,
    spent bigint NOT NULL DEFAULT 0,
    returned bigint NOT NULL DEFAULT 0,
    expires_at double precision NOT NULL,
    PRIMARY KEY (account, holder, period)
);
CREATE INDEX leases_open ON leases (expires_at) WHERE granted <> spent + returned;
