-- :tables
SELECT table_name, table_comment, engine FROM information_schema.tables
WHERE table_schema = DATABASE() AND table_name IN ({tables})

-- :version
SELECT name, value FROM {prefix}meta WHERE name IN ('version', 'oldest')

-- :set-version
INSERT INTO {prefix}meta (name, value) VALUES ('version', {version}), ('oldest', {oldest})
ON DUPLICATE KEY UPDATE value = VALUES(value)

-- :take-schema-lock
-- The name is the server's, not a database's, and must not depend on how we have reached it.
SELECT GET_LOCK(CONCAT('hsm_', SHA1(CONCAT(DATABASE(), '/{prefix}'))), {seconds})

-- :release-schema-lock
DO RELEASE_LOCK(CONCAT('hsm_', SHA1(CONCAT(DATABASE(), '/{prefix}'))))

-- :lock
-- Sorted, so that two who lock the same partitions do not wait for each other; without the hint a small table
-- is read as a whole, and waits for locks that do not matter.
SELECT p FROM {prefix}locks FORCE INDEX (PRIMARY) WHERE p IN ({partitions}) ORDER BY p FOR UPDATE

-- :add-locks
INSERT IGNORE INTO {prefix}locks (p) VALUES {rows}

-- :etags
-- The hint is here and below because of the condition on `expires`, which has an index, too.
-- A statement after the one that locks: in READ COMMITTED each one sees what was committed when it began.
SELECT p, k, etag FROM {prefix}kv FORCE INDEX (PRIMARY)
WHERE (p, k) IN ({slots}) AND (expires IS NULL OR expires > {now})

-- :upsert
-- VALUES() is what MariaDB and MySQL both know; MySQL's alias of the new row MariaDB does not.
INSERT INTO {prefix}kv (p, k, etag, expires, content_type, v) VALUES {rows}
ON DUPLICATE KEY UPDATE etag = VALUES(etag), expires = VALUES(expires), content_type = VALUES(content_type),
v = VALUES(v)

-- :delete
-- MariaDB 10.11 reads the whole table to delete `(p, k) IN ((.., ..))`, a single pair, if it is not told otherwise;
-- and a hint has its place only in a DELETE that names its table twice.
DELETE kv FROM {prefix}kv AS kv FORCE INDEX (PRIMARY) WHERE (p, k) IN ({slots})

-- :note-outcome
-- The newest one stays, also if the server gets to one that was given up long ago after a later one.
INSERT INTO {prefix}outcomes (writer, number, written) VALUES ({writer}, {number}, {now})
ON DUPLICATE KEY UPDATE number = GREATEST(number, VALUES(number)), written = VALUES(written)

-- :outcome
SELECT number FROM {prefix}outcomes WHERE writer = {writer}

-- :rows
SELECT p, k, v, etag, expires, content_type FROM {prefix}kv FORCE INDEX (PRIMARY)
WHERE (p, k) IN ({slots}) AND (expires IS NULL OR expires > {now})

-- :page
-- Values over so many bytes are left out, and the reader comes back for them: a page must fit into memory.
SELECT k, IF(LENGTH(v) <= {inline_bytes}, v, NULL), etag, LENGTH(v) FROM {prefix}kv FORCE INDEX (PRIMARY)
WHERE {range} AND (expires IS NULL OR expires > {now}) ORDER BY k {direction} LIMIT {rows}

-- :keys
SELECT k FROM {prefix}kv FORCE INDEX (PRIMARY)
WHERE {range} AND (expires IS NULL OR expires > {now}) ORDER BY k {direction} LIMIT {rows}

-- :family
SELECT k FROM {prefix}kv FORCE INDEX (PRIMARY)
WHERE {range} AND LOCATE(x'7c7c', k, {name_start}) = 0 AND (expires IS NULL OR expires > {now})
ORDER BY k LIMIT {rows}

-- :claim-cleanup
-- Several processes share a database; the one whose row changes does the work of this interval.
UPDATE {prefix}meta SET value = {now}
WHERE name = 'last-cleanup' AND (value <= {now} - {interval} OR value > {now})

-- :expired
SELECT p, k FROM {prefix}kv WHERE expires <= {now} ORDER BY expires LIMIT {rows}

-- :delete-expired
DELETE kv FROM {prefix}kv AS kv FORCE INDEX (PRIMARY) WHERE (p, k) IN ({slots}) AND expires <= {now}

-- :forget-outcomes
DELETE FROM {prefix}outcomes WHERE written < {now} - {age}

-- :ping
SELECT 1
