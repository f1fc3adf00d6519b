-- What a server needs beside the ledgers, such as its projects and keys: small documents by kind
-- and name, whose meaning is the server's. They are replaced and removed; no history is kept.
-- `registry_version` in tillroll_meta grows with each transaction that puts one.

SET LOCAL lock_timeout = '2s';

CREATE TABLE tillroll_registry (
    kind     text COLLATE "C" NOT NULL,
    name     text COLLATE "C" NOT NULL,
    document text NOT NULL,
    PRIMARY KEY (kind, name)
);
