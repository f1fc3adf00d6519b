-- What is kept about payments: what providers said, what was asked of them and how far that is.
-- Small documents by owner, kind and name, each with the version that the next writer must have
-- seen. `account` is whose it is, empty as long as nobody knows; `due_at` when a job looks at it.

CREATE TABLE tillroll_notes (
    account_id BLOB    NOT NULL,
    kind       TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    project    TEXT    NOT NULL,
    account    TEXT    NOT NULL,
    version    INTEGER NOT NULL CHECK (version > 0),
    due_at     INTEGER NOT NULL,
    document   TEXT    NOT NULL,
    PRIMARY KEY (account_id, kind, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX tillroll_notes_due ON tillroll_notes (project, kind, due_at);
CREATE INDEX tillroll_notes_account ON tillroll_notes (project, account, kind, name);
