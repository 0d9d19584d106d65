-- Bypasses: all connections of a workload pass untouched until a moment. One for each workload.
CREATE TABLE bypasses (
    workload TEXT PRIMARY KEY,
    id       TEXT NOT NULL UNIQUE,
    until    INTEGER NOT NULL,
    reason   TEXT NOT NULL,
    since    INTEGER NOT NULL,
    author   TEXT NOT NULL
) STRICT;
