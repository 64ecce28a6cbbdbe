-- Each table is made whole or not at all, and its comment says whose it is. The marks of the schema's version
-- come last, so that one who was interrupted begins again.
CREATE TABLE IF NOT EXISTS {prefix}meta (
    name VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    value BIGINT NOT NULL,
    PRIMARY KEY (name)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC COMMENT='{comment}';

-- VARBINARY compares bytes, which is the order of code points. An index has room for 3 072 bytes.
-- The small columns stand before the value, which is on pages of its own if it is large.
CREATE TABLE IF NOT EXISTS {prefix}kv (
    p VARBINARY(1536) NOT NULL,
    k VARBINARY(1536) NOT NULL,
    etag CHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    expires BIGINT NULL COMMENT 'milliseconds since 1970, NULL: never',
    content_type BLOB NULL,
    v LONGBLOB NOT NULL,
    PRIMARY KEY (p, k),
    KEY expires (expires)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC COMMENT='{comment}';

-- A row a partition: whoever writes to the partition locks it first, because rows that do not exist yet
-- cannot be locked. They stay when a partition is empty again: there are few, and to delete one is to have all
-- who wait for it begin anew.
CREATE TABLE IF NOT EXISTS {prefix}locks (
    p VARBINARY(1536) NOT NULL,
    PRIMARY KEY (p)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC COMMENT='{comment}';

-- The last transaction of each writer: what it asks for when a connection breaks during a commit.
CREATE TABLE IF NOT EXISTS {prefix}outcomes (
    writer BIGINT NOT NULL,
    number BIGINT NOT NULL,
    written BIGINT NOT NULL COMMENT 'milliseconds since 1970',
    PRIMARY KEY (writer)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC COMMENT='{comment}';

INSERT IGNORE INTO {prefix}meta (name, value) VALUES ('last-cleanup', 0);
