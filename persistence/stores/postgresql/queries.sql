-- :lock
-- In the order in which they are given, so that two batches cannot wait for each other.
SELECT count(pg_advisory_xact_lock(id)) FROM unnest(%b::int8[]) AS id

-- :lookup
-- A statement of its own after the lock, as it sees what was committed when it begins. One row for the whole
-- batch. LATERAL with OFFSET 0 is a lookup in the index for each key whatever the planner believes.
SELECT
    pg_current_xact_id()::text,
    (SELECT array_agg(DISTINCT w.p) FROM {schema}.watchers AS w
     WHERE w.p = ANY (%b::text[]) AND w.expires > clock_timestamp()),
    array_agg(q.n), string_agg(r.etag, '')
FROM unnest(%b::text[], %b::text[]) WITH ORDINALITY AS q (p, k, n)
CROSS JOIN LATERAL (
    SELECT kv.etag FROM {schema}.kv
    WHERE kv.p = q.p AND kv.k = q.k AND (kv.expires IS NULL OR kv.expires > clock_timestamp()) OFFSET 0
) AS r

-- :lookup-plain
SELECT
    NULL::text,
    (SELECT array_agg(DISTINCT w) FROM unnest(%b::text[]) AS w WHERE false),
    array_agg(q.n), string_agg(r.etag, '')
FROM unnest(%b::text[], %b::text[]) WITH ORDINALITY AS q (p, k, n)
CROSS JOIN LATERAL (
    SELECT kv.etag FROM {schema}.kv
    WHERE kv.p = q.p AND kv.k = q.k AND (kv.expires IS NULL OR kv.expires > clock_timestamp())
) AS r

-- :upsert
INSERT INTO {schema}.kv (p, k, etag, v)
SELECT p, k, etag, v FROM unnest(%b::text[], %b::text[], %b::text[], %b::bytea[]) AS q (p, k, etag, v)
ON CONFLICT (p, k) DO UPDATE
SET etag = excluded.etag, expires = NULL, content_type = NULL, v = excluded.v

-- :upsert-full
INSERT INTO {schema}.kv (p, k, etag, v, expires, content_type)
SELECT p, k, etag, v, clock_timestamp() + seconds * interval '1 second', content_type
FROM unnest(%b::text[], %b::text[], %b::text[], %b::bytea[], %b::int8[], %b::text[])
    AS q (p, k, etag, v, seconds, content_type)
ON CONFLICT (p, k) DO UPDATE
SET etag = excluded.etag, expires = excluded.expires, content_type = excluded.content_type, v = excluded.v

-- :delete
-- By address, because a join with the table may be carried out by reading all of it.
DELETE FROM {schema}.kv WHERE ctid = ANY (ARRAY (
    SELECT r.ctid FROM unnest(%b::text[], %b::text[]) AS q (p, k)
    CROSS JOIN LATERAL (SELECT kv.ctid FROM {schema}.kv WHERE kv.p = q.p AND kv.k = q.k OFFSET 0) AS r
))

-- :delete-plain
DELETE FROM {schema}.kv WHERE (p, k) IN (SELECT q.p, q.k FROM unnest(%b::text[], %b::text[]) AS q (p, k))

-- :notify
SELECT count(pg_notify(%b, payload)) FROM unnest(%b::text[]) AS payload

-- :delete-family
DELETE FROM {schema}.kv
WHERE p = %b AND k >= %b AND k < %b AND strpos(substr(k, %b), '||') = 0
    AND (expires IS NULL OR expires > clock_timestamp())

-- :status
SELECT pg_xact_status(%b::text::xid8)

-- :etags
SELECT r.etag FROM unnest(%b::text[], %b::text[]) AS q (p, k)
CROSS JOIN LATERAL (SELECT kv.etag FROM {schema}.kv WHERE kv.p = q.p AND kv.k = q.k OFFSET 0) AS r

-- :epoch
SELECT token FROM {schema}.epoch

-- :new-epoch
INSERT INTO {schema}.epoch (token) VALUES (%b) ON CONFLICT DO NOTHING

-- :rows
-- Values beyond the bytes that one answer shall have come back as NULL.
SELECT n, etag, (extract(epoch FROM expires) * 1000)::int8, content_type,
    CASE WHEN before IS NULL OR before < %b THEN v END
FROM (
    SELECT q.n, r.etag, r.expires, r.content_type, r.v,
        sum(octet_length(r.v)) OVER (ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
    FROM unnest(%b::text[], %b::text[]) WITH ORDINALITY AS q (p, k, n)
    CROSS JOIN LATERAL (
        SELECT kv.etag, kv.expires, kv.content_type, kv.v FROM {schema}.kv
        WHERE kv.p = q.p AND kv.k = q.k AND (kv.expires IS NULL OR kv.expires > statement_timestamp()) OFFSET 0
    ) AS r
) AS sized

-- :values
-- Values alone, of one partition, bounded as above.
SELECT k, CASE WHEN before IS NULL OR before < %b THEN v END
FROM (
    SELECT k, v, sum(octet_length(v)) OVER (ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
    FROM {schema}.kv
    WHERE p = %b AND k = ANY (%b::text[]) AND (expires IS NULL OR expires > statement_timestamp())
) AS sized

-- :scan
-- The page ends with the row by which it has the bytes that a page shall have.
SELECT k, v, etag FROM (
    SELECT k, v, etag,
        sum(octet_length(v)) OVER (
            ORDER BY k {order} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS before
    FROM (
        SELECT k, v, etag FROM {schema}.kv
        WHERE p = %b AND k {above} %b {below} AND (expires IS NULL OR expires > statement_timestamp())
        ORDER BY k {order} LIMIT %b
    ) AS page
) AS sized
WHERE before IS NULL OR before < %b ORDER BY k {order}

-- :keys
SELECT k FROM {schema}.kv
WHERE p = %b AND k {above} %b {below} AND (expires IS NULL OR expires > statement_timestamp())
ORDER BY k {order} LIMIT %b

-- :any-expired
-- Ordered, so that the planner takes the index, where the first entry tells.
SELECT 1 FROM {schema}.kv WHERE expires <= statement_timestamp() ORDER BY expires LIMIT 1

-- :claim-cleanup
-- Several processes share a schema; the one whose row changes does the work of this interval.
INSERT INTO {schema}.meta AS m (name, value)
VALUES ('last-cleanup', (extract(epoch FROM clock_timestamp()) * 1000)::int8::text)
ON CONFLICT (name) DO UPDATE SET value = excluded.value
WHERE m.value::int8 <= excluded.value::int8 - %b OR m.value::int8 > excluded.value::int8

-- :delete-expired
-- Without the lock of a partition: a row that has expired is absent already, so that no condition sees it go. A
-- row that somebody writes at this moment is skipped, or checked again by the server after it was written.
DELETE FROM {schema}.kv WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM {schema}.kv WHERE expires <= statement_timestamp()
    ORDER BY expires LIMIT %b FOR UPDATE SKIP LOCKED
)) AND expires <= statement_timestamp()

-- :delete-expired-plain
DELETE FROM {schema}.kv WHERE expires <= statement_timestamp() LIMIT %b

-- :register
INSERT INTO {schema}.watchers (p, listener, expires)
VALUES (%b, %b, clock_timestamp() + %b * interval '1 second')
ON CONFLICT (p, listener) DO UPDATE SET expires = excluded.expires

-- :renew
-- Only what has some time left: a writer that is about to look may already find the others expired.
UPDATE {schema}.watchers SET expires = clock_timestamp() + %b * interval '1 second'
WHERE listener = %b AND p = ANY (%b::text[]) AND expires > clock_timestamp() + %b * interval '1 second'
RETURNING p

-- :forget
DELETE FROM {schema}.watchers WHERE listener = %b AND p <> ALL (%b::text[])

-- :forget-expired
DELETE FROM {schema}.watchers WHERE expires < clock_timestamp() - interval '1 minute'

-- :ping
SELECT 1 FROM {schema}.meta LIMIT 1

-- :server
SELECT version(), current_setting('server_version_num')::int4, current_setting('server_encoding'),
    pg_is_in_recovery(), pg_backend_pid(), current_setting('synchronous_commit', true),
    current_setting('fsync', true), current_setting('full_page_writes', true),
    current_setting('synchronous_standby_names', true)

-- :settings
SELECT count(set_config(name, value, %b)) FROM unnest(%b::text[], %b::text[]) AS s (name, value)

-- :tables
SELECT c.relname::text FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %b AND c.relname = ANY (%b::text[])

-- :has-schema
SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = %b

-- :create-schema
CREATE SCHEMA {schema}

-- :meta-columns
SELECT a.attname::text FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %b AND c.relname = 'meta' AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum

-- :meta
SELECT name, value FROM {schema}.meta WHERE name = ANY (%b::text[])

-- :set-meta
INSERT INTO {schema}.meta (name, value) SELECT name, value FROM unnest(%b::text[], %b::text[]) AS q (name, value)
ON CONFLICT (name) DO UPDATE SET value = excluded.value
