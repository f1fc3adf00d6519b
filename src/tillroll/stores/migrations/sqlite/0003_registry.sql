-- What a server needs beside the ledgers, such as its projects and keys: small documents by kind
-- and name, whose meaning is the server's. They are replaced and removed; no history is kept.
-- `registry_version` in tillroll_meta grows with each transaction that puts one.

CREATE TABLE tillroll_registry (
    kind     TEXT NOT NULL,
    name     TEXT NOT NULL,
    document TEXT NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;
