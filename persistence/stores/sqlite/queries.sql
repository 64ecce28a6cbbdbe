-- :get
SELECT v, etag, expires, content_type FROM kv WHERE p = ? AND k = ?

-- :values
SELECT k, v FROM kv WHERE p = ? AND (expires IS NULL OR expires > ?) AND k IN ({rows})

-- :lookup
-- One row for the whole batch: every row fetched costs a hand-over of the interpreter lock. CROSS JOIN fixes
-- the order of the loops; without it, or with `(p, k) IN (VALUES ...)`, SQLite 3.40 scans the whole table.
WITH q(i, p, k) AS (VALUES {rows})
SELECT group_concat(kv.etag || q.i) FROM q CROSS JOIN kv ON kv.p = q.p AND kv.k = q.k
WHERE kv.expires IS NULL OR kv.expires > ?

-- :etag
SELECT etag FROM kv WHERE p = ? AND k = ? AND (expires IS NULL OR expires > ?)

-- :upsert
-- Not INSERT OR REPLACE, which deletes the old row first: a fifth slower. OR FAIL leaves undoing to the
-- transaction.
INSERT OR FAIL INTO kv (p, k, etag, expires, content_type, v) VALUES {rows}
ON CONFLICT (p, k) DO UPDATE
SET etag = excluded.etag, expires = excluded.expires, content_type = excluded.content_type, v = excluded.v

-- :delete
DELETE FROM kv WHERE {rows}

-- :scan
-- A bound of x'' as the end is none: a blob is greater than every text.
SELECT k, v, etag FROM kv
WHERE p = ? AND k >= ? AND k < ? AND (expires IS NULL OR expires > ?) ORDER BY k LIMIT ?

-- :scan-reverse
SELECT k, v, etag FROM kv
WHERE p = ? AND k >= ? AND k < ? AND (expires IS NULL OR expires > ?) ORDER BY k DESC LIMIT ?

-- :keys-like
SELECT k FROM kv
WHERE p = ? AND k >= ? AND k < ? AND k GLOB ? AND (expires IS NULL OR expires > ?) ORDER BY k LIMIT ?

-- :delete-family
DELETE FROM kv
WHERE p = ? AND k >= ? AND k < ? AND instr(substr(k, ?), '||') = 0 AND (expires IS NULL OR expires > ?)

-- :any-expired
SELECT 1 FROM kv WHERE expires <= ? LIMIT 1

-- :claim-cleanup
-- Several processes share a file; the one whose row changes does the work of this interval.
INSERT INTO meta (name, value) VALUES ('last-cleanup', ?)
ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE value <= ? OR value > excluded.value

-- :expired
SELECT p, k FROM kv WHERE expires <= ? ORDER BY expires LIMIT ?

-- :delete-expired
DELETE FROM kv WHERE p = ? AND k = ? AND expires <= ?

-- :ping
SELECT count(*) FROM sqlite_schema

-- :fill-log
INSERT INTO kv (p, k, etag, v) VALUES ('', '', '', zeroblob(?))
