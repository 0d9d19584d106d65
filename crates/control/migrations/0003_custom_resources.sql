-- Whose a document is: NULL for one that was applied, else the UID and the generation of its custom resource.
ALTER TABLE documents ADD COLUMN owner_uid TEXT;
ALTER TABLE documents ADD COLUMN owner_generation INTEGER;

-- Egress modes that namespaces of a cluster say.
CREATE TABLE namespaces (
    name   TEXT PRIMARY KEY,
    egress TEXT NOT NULL -- observe, enforce
) STRICT;
