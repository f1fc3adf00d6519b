-- The ledger: accounts, their entries, the answers that moved nothing, and the price book.
-- Every key carries account_id; nothing refers across accounts, so the same shape can be sharded.

-- One row an account: where its history stands, and its live state as one JSON document.
-- `least` is 0, or the lowest of all that may never be negative (what grants have left, what holds
-- hold): the ledger asserts it when it applies an entry, the database checks it again.
CREATE TABLE tillroll_accounts (
    account_id  BLOB    NOT NULL PRIMARY KEY CHECK (length(account_id) = 16),
    project     TEXT    NOT NULL,
    account     TEXT    NOT NULL,
    seq         INTEGER NOT NULL CHECK (seq > 0),
    head        BLOB    NOT NULL CHECK (length(head) = 32),
    at          INTEGER NOT NULL,
    next_due_at INTEGER NOT NULL,
    least       INTEGER NOT NULL CHECK (least = 0),
    state       TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX tillroll_accounts_due ON tillroll_accounts (next_due_at);

-- The till roll. `body` is the canonical JSON that the hash chain covers; the other columns repeat
-- parts of it for queries. `metadata` is outside the chain (which covers its digest), so that it
-- can be erased.
CREATE TABLE tillroll_entries (
    account_id   BLOB    NOT NULL,
    seq          INTEGER NOT NULL,
    request_id   TEXT,
    ref          TEXT,
    kind         TEXT    NOT NULL,
    recorded_at  INTEGER NOT NULL,
    effective_at INTEGER NOT NULL,
    body         TEXT    NOT NULL,
    hash         BLOB    NOT NULL,
    metadata     TEXT
) STRICT;

CREATE UNIQUE INDEX tillroll_entries_history ON tillroll_entries (account_id, seq);
-- Request ids first: with time-ordered ids the index grows at its end, and any id can be searched.
CREATE UNIQUE INDEX tillroll_entries_request ON tillroll_entries (request_id, account_id);
-- The story of an id: what acted on a hold, a charge or a grant.
CREATE INDEX tillroll_entries_story ON tillroll_entries (account_id, ref) WHERE ref IS NOT NULL;

-- Refusals are answers too, remembered beside the history because they move nothing.
CREATE TABLE tillroll_refusals (
    request_id  TEXT    NOT NULL,
    account_id  BLOB    NOT NULL,
    project     TEXT    NOT NULL,
    account     TEXT    NOT NULL,
    recorded_at INTEGER NOT NULL,
    body        TEXT    NOT NULL,
    PRIMARY KEY (request_id, account_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX tillroll_refusals_age ON tillroll_refusals (recorded_at);

-- How often a request was repeated: for explaining a charge, not part of the history.
CREATE TABLE tillroll_replays (
    request_id TEXT    NOT NULL,
    account_id BLOB    NOT NULL,
    times      INTEGER NOT NULL,
    last_at    INTEGER NOT NULL,
    PRIMARY KEY (request_id, account_id)
) STRICT, WITHOUT ROWID;

-- Price versions never change; a charge names the one that made its amount.
CREATE TABLE tillroll_price_versions (
    project    TEXT    NOT NULL,
    number     INTEGER NOT NULL CHECK (number > 0),
    digest     TEXT    NOT NULL,
    author     TEXT    NOT NULL,
    reason     TEXT    NOT NULL,
    applied_at INTEGER NOT NULL,
    body       TEXT    NOT NULL,
    PRIMARY KEY (project, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE tillroll_meta (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- One row for each movement inside an account: the double entry, for SQL and accountants.
CREATE VIEW tillroll_postings AS
SELECT
    a.project,
    a.account,
    e.account_id,
    e.seq,
    p.key                                              AS line_no,
    e.kind,
    e.recorded_at,
    e.effective_at,
    coalesce(e.body ->> '$.wallet', 'credits')         AS wallet,
    p.value ->> '$[0]'                                 AS source,
    p.value ->> '$[1]'                                 AS target,
    p.value ->> '$[2]'                                 AS line,
    p.value ->> '$[3]'                                 AS units
FROM tillroll_entries AS e
INNER JOIN tillroll_accounts AS a ON e.account_id = a.account_id
INNER JOIN json_each(e.body, '$.postings') AS p;

-- What is in the history stays as it is; only metadata may be erased.
CREATE TRIGGER tillroll_entries_keep BEFORE DELETE ON tillroll_entries
BEGIN
    SELECT raise(ABORT, 'entries are never deleted');
END;

CREATE TRIGGER tillroll_entries_fixed BEFORE UPDATE ON tillroll_entries
WHEN new.metadata IS NOT NULL
OR (new.account_id, new.seq, new.request_id, new.ref, new.kind)
IS NOT (old.account_id, old.seq, old.request_id, old.ref, old.kind)
OR (new.recorded_at, new.effective_at, new.body, new.hash)
IS NOT (old.recorded_at, old.effective_at, old.body, old.hash)
BEGIN
    SELECT raise(ABORT, 'entries are never changed');
END;

CREATE TRIGGER tillroll_price_versions_fixed BEFORE UPDATE ON tillroll_price_versions
BEGIN
    SELECT raise(ABORT, 'price versions are never changed');
END;
