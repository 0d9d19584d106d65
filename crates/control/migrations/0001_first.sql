-- The first schema. A migration that has been released is never edited: what it lacks comes in the next one.
-- Times are milliseconds since the Unix epoch.

-- One row each for `epoch` and `revision`: (epoch, revision) is the version of everything below.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT;

CREATE TABLE documents (
    kind       TEXT NOT NULL,
    name       TEXT NOT NULL, -- namespace/name, or name for cluster-scoped kinds
    json       TEXT NOT NULL,
    revision   INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,
    author     TEXT NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT;

CREATE TABLE blocks (
    kind   TEXT NOT NULL, -- workload, destination, credentialprovider, everything
    name   TEXT NOT NULL, -- empty for everything
    id     TEXT NOT NULL UNIQUE,
    reason TEXT NOT NULL,
    since  INTEGER NOT NULL,
    author TEXT NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT;

-- One row for each running copy that ever attested: whom its evidence proved, and which key it is bound to.
CREATE TABLE instances (
    provider           TEXT NOT NULL,
    instance           TEXT NOT NULL,
    key                BLOB NOT NULL, -- SHA-256 of the proxy's public key
    caller             TEXT NOT NULL,
    namespace          TEXT NOT NULL,
    attributes         TEXT NOT NULL, -- JSON
    kind               TEXT NOT NULL,
    evidence_issued_at INTEGER NOT NULL,
    evidence_ends_at   INTEGER NOT NULL,
    changed_at         INTEGER NOT NULL,
    PRIMARY KEY (provider, instance)
) STRICT;
CREATE INDEX instances_by_key ON instances (key);

-- Credentials that were made; never a credential itself.
CREATE TABLE grants (
    id          TEXT PRIMARY KEY,
    caller      TEXT NOT NULL,
    instance    TEXT NOT NULL,
    destination TEXT NOT NULL,
    provider    TEXT NOT NULL,
    hash        BLOB NOT NULL,
    issued_at   INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    revoked_at  INTEGER
) STRICT;
CREATE INDEX grants_by_end ON grants (expires_at);

-- Who may write to which audit stream: whoever wrote to it first.
CREATE TABLE streams (
    stream     TEXT PRIMARY KEY,
    caller     TEXT NOT NULL,
    instance   TEXT NOT NULL,
    first_seen INTEGER NOT NULL
) STRICT;

-- The audit chains. Append-only: nothing in the program updates or deletes a row.
CREATE TABLE records (
    cursor    INTEGER PRIMARY KEY AUTOINCREMENT,
    stream    TEXT NOT NULL,
    sequence  INTEGER NOT NULL,
    previous  BLOB NOT NULL,
    payload   BLOB NOT NULL,
    hash      BLOB NOT NULL,
    stored_at INTEGER NOT NULL,
    UNIQUE (stream, sequence)
) STRICT;

CREATE TABLE checkpoints (
    number    INTEGER PRIMARY KEY,
    body      BLOB NOT NULL,
    signature BLOB NOT NULL,
    key_id    TEXT NOT NULL
) STRICT;

-- Private keys, sealed: the data key of each row is wrapped by a key that is not in this database.
CREATE TABLE keys (
    purpose     TEXT NOT NULL,
    id          TEXT NOT NULL,
    wrapped_key BLOB NOT NULL,
    sealed      BLOB NOT NULL,
    public      BLOB NOT NULL,
    created_at  INTEGER NOT NULL,
    active_from INTEGER NOT NULL,
    retires_at  INTEGER,
    PRIMARY KEY (purpose, id)
) STRICT;
