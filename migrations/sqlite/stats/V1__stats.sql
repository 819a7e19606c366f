-- Statistics: counters and sets of hashes per window of time, and the journal position they are counted up to.

-- One row: every journal entry before `next` is in the numbers below, and none after. `time` is when the last of them
-- was received (Unix ms).
CREATE TABLE stats_cursor (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    next INTEGER NOT NULL,
    time INTEGER
) STRICT;
INSERT INTO stats_cursor (id, next, time) VALUES (1, 0, NULL);

CREATE TABLE stats_sites (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

-- One row per site and window with events. Tier: 1 minute, 2 quarter of an hour, 3 UTC day; `start` in Unix ms.
CREATE TABLE stats_windows (
    id         INTEGER PRIMARY KEY,
    site       INTEGER NOT NULL,
    tier       INTEGER NOT NULL,
    start      INTEGER NOT NULL,
    page_views INTEGER NOT NULL,
    events     INTEGER NOT NULL,
    bots       INTEGER NOT NULL,
    UNIQUE (site, tier, start)
) STRICT;

-- Names (dim: 1 page, 2 referrer, 3 event type), once per UTC day: the windows of the day hold small numbers instead of
-- URLs, and the names can be dropped when the day's finer windows are.
CREATE TABLE stats_names (
    site INTEGER NOT NULL,
    day  INTEGER NOT NULL,
    dim  INTEGER NOT NULL,
    name TEXT NOT NULL,
    id   INTEGER NOT NULL,
    PRIMARY KEY (site, day, dim, name)
) STRICT, WITHOUT ROWID;

-- How often a name occurred in a window. Name 0 stands for all that came after the most names a window takes; for dim 4
-- (bots) it is the byte of the reason.
CREATE TABLE stats_counts (
    window INTEGER NOT NULL,
    dim    INTEGER NOT NULL,
    name   INTEGER NOT NULL,
    n      INTEGER NOT NULL,
    PRIMARY KEY (window, dim, name)
) STRICT, WITHOUT ROWID;

-- Visitors (kind 1) and sessions (kind 2) of a window. The set is the union of its parts: part 0 is the whole set at some
-- time, the others are what came since, so that a commit need not write a large set again for a few new hashes.
CREATE TABLE stats_uniques (
    window INTEGER NOT NULL,
    kind   INTEGER NOT NULL,
    part   INTEGER NOT NULL,
    data   BLOB NOT NULL,
    PRIMARY KEY (window, kind, part)
) STRICT, WITHOUT ROWID;

-- What became of the journal's entries, since ever. Code -1: counted; else the byte of the rejection.
CREATE TABLE stats_audit (
    site INTEGER NOT NULL,
    code INTEGER NOT NULL,
    n    INTEGER NOT NULL,
    PRIMARY KEY (site, code)
) STRICT, WITHOUT ROWID;

-- Up to which UTC day (exclusive) the names were dropped that only windows of a tier had used.
CREATE TABLE stats_swept (
    tier INTEGER PRIMARY KEY,
    day  INTEGER NOT NULL
) STRICT;

-- For people with a SQLite shell.
CREATE VIEW stats_readable AS
SELECT s.name AS site, CASE w.tier WHEN 1 THEN 'minute' WHEN 2 THEN 'quarter' ELSE 'day' END AS tier,
       datetime(w.start / 1000, 'unixepoch') AS start,
       CASE c.dim WHEN 1 THEN 'page' WHEN 2 THEN 'referrer' WHEN 3 THEN 'event' ELSE 'bot' END AS dim,
       CASE WHEN c.dim = 4 THEN c.name WHEN c.name = 0 THEN '(other)' ELSE n.name END AS name, c.n AS n
FROM stats_windows w JOIN stats_sites s ON s.id = w.site JOIN stats_counts c ON c.window = w.id
LEFT JOIN stats_names n ON n.site = w.site AND n.day = w.start / 86400000 AND n.dim = c.dim AND n.id = c.name;
