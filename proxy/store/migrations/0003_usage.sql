-- One row for every admitted request. No prompt, no answer, no credential.

CREATE TABLE usage (
    request_id text PRIMARY KEY,
    at double precision NOT NULL,
    key_id text NOT NULL,
    tenant text NOT NULL,
    team text NOT NULL,
    provider text NOT NULL,
    route text NOT NULL,
    model text NOT NULL,
    role text NOT NULL,
    outcome text NOT NULL,
    status integer NOT NULL,
    streams boolean NOT NULL,
    estimated boolean NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cached_input_tokens bigint NOT NULL,
    upstream_tokens bigint NOT NULL,
    saved_tokens bigint NOT NULL,
    cost_picodollars bigint NOT NULL,
    upstream_picodollars bigint NOT NULL,
    saved_picodollars bigint NOT NULL,
    first_byte_ms double precision NOT NULL,
    total_ms double precision NOT NULL,
    overhead_ms double precision NOT NULL,
    flight_id bigint NOT NULL,
    tags text NOT NULL
);
CREATE INDEX usage_at ON usage (at);
CREATE INDEX usage_key ON usage (key_id, at);
