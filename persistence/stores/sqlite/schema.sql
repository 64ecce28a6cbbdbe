-- The small columns stand before the value, so that reading them does not walk through a large value's pages.
-- Etag and value are never NULL. To have SQLite check it would make it keep every page that a statement of many
-- rows changes as it was, in order to undo the statement.
CREATE TABLE kv (
    p TEXT NOT NULL,
    k TEXT NOT NULL,
    etag TEXT,
    expires INTEGER, -- milliseconds since 1970, NULL: never
    content_type TEXT,
    v BLOB,
    PRIMARY KEY (p, k)
) WITHOUT ROWID;
CREATE INDEX kv_expires ON kv (expires) WHERE expires IS NOT NULL;
CREATE TABLE meta (name TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
