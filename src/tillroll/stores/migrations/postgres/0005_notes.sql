-- What is kept about payments: what providers said, what was asked of them and how far that is.
-- Small documents by owner, kind and name, each with the version that the next writer must have
-- seen. `account` is whose it is, empty as long as nobody knows; `due_at` when a job looks at it.

SET LOCAL lock_timeout = '2s';

CREATE TABLE tillroll_notes (
    account_id uuid   NOT NULL,
    kind       text   COLLATE "C" NOT NULL,
    name       text   COLLATE "C" NOT NULL,
    project    text   COLLATE "C" NOT NULL,
    account    text   COLLATE "C" NOT NULL,
    version    bigint NOT NULL CHECK (version > 0),
    due_at     bigint NOT NULL,
    document   text   NOT NULL,
    PRIMARY KEY (account_id, kind, name)
);

CREATE INDEX tillroll_notes_due ON tillroll_notes (project, kind, due_at);
CREATE INDEX tillroll_notes_account ON tillroll_notes (project, account, kind, name);
