-- The first schema. Oldest code that works on it: 1.

CREATE TABLE {schema}.meta (
    name text COLLATE "C" PRIMARY KEY,
    value text NOT NULL
);

-- Room on each page lets a row be replaced beside its old version, without touching the index; the rows of tasks
-- come and go fast, so that dead ones are collected sooner than by default.
CREATE TABLE {schema}.kv (
    p text COLLATE "C" NOT NULL,
    k text COLLATE "C" NOT NULL,
    etag text COLLATE "C" NOT NULL,
    expires timestamptz,
    content_type text,
    v bytea NOT NULL,
    PRIMARY KEY (p, k)
) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX kv_expires ON {schema}.kv (expires) WHERE expires IS NOT NULL;

-- Who wants to be told of changes. Unlogged: after a crash nobody listens any more.
CREATE UNLOGGED TABLE {schema}.watchers (
    p text COLLATE "C" NOT NULL,
    listener text COLLATE "C" NOT NULL,
    expires timestamptz NOT NULL,
    PRIMARY KEY (p, listener)
);

-- One random row, which is gone after a crash or a failover because the table is unlogged. As long as it is the
-- same, no transaction number was given out twice.
CREATE UNLOGGED TABLE {schema}.epoch (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    token text COLLATE "C" NOT NULL
);
