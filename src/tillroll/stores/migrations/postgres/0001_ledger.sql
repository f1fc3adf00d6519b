-- The ledger: accounts, their entries, the answers that moved nothing, and the price book.
-- Every key of a table that grows carries account_id; nothing refers across accounts, nothing
-- counts across them: so the same tables can be spread over many servers by account_id.

-- One row an account: what is locked to decide about it, and its live state as one JSON document
-- as it was at `seq`; entries above that are folded on top. seq 0 is an account that was only
-- looked at. `next_due_at` is never later than what truly falls due next.
-- `least` is 0, or the lowest of all that may never be negative (what grants have left, what holds
-- hold): the ledger asserts it when it applies an entry, the database checks it again.
CREATE TABLE tillroll_accounts (
    account_id  uuid   NOT NULL PRIMARY KEY,
    project     text   COLLATE "C" NOT NULL,
    account     text   COLLATE "C" NOT NULL,
    seq         bigint NOT NULL CHECK (seq >= 0),
    head        bytea  NOT NULL CHECK (octet_length(head) IN (0, 32)),
    at          bigint NOT NULL,
    next_due_at bigint NOT NULL,
    least       bigint NOT NULL CHECK (least = 0),
    state       text   NOT NULL
) WITH (fillfactor = 80);

CREATE INDEX tillroll_accounts_due ON tillroll_accounts (next_due_at);
CREATE INDEX tillroll_accounts_name ON tillroll_accounts (project, account);

-- The till roll. `body` is the canonical JSON that the hash chain covers, kept as text so that it
-- stays as it was hashed; the other columns repeat parts of it for queries. `metadata` is outside
-- the chain (which covers its digest), so that it can be erased.
CREATE TABLE tillroll_entries (
    account_id   uuid   NOT NULL,
    seq          bigint NOT NULL CHECK (seq > 0),
    recorded_at  bigint NOT NULL,
    effective_at bigint NOT NULL,
    request_id   text   COLLATE "C",
    ref          text   COLLATE "C",
    kind         text   NOT NULL,
    body         text   NOT NULL,
    hash         bytea  NOT NULL CHECK (octet_length(hash) = 32),
    metadata     text,
    PRIMARY KEY (account_id, seq)
);

-- Request ids first: with time-ordered ids the index grows at its end, and any id can be searched.
CREATE UNIQUE INDEX tillroll_entries_request ON tillroll_entries (request_id, account_id);
-- The story of an id: what acted on a hold, a charge or a grant. No index but the key begins with
-- the account, so that none of them ever tempts the planner to read an account's whole history.
CREATE INDEX tillroll_entries_story ON tillroll_entries (ref, account_id) WHERE ref IS NOT NULL;

-- Refusals are answers too, remembered beside the history because they move nothing.
CREATE TABLE tillroll_refusals (
    request_id  text   COLLATE "C" NOT NULL,
    account_id  uuid   NOT NULL,
    project     text   COLLATE "C" NOT NULL,
    account     text   COLLATE "C" NOT NULL,
    recorded_at bigint NOT NULL,
    body        text   NOT NULL,
    PRIMARY KEY (request_id, account_id)
);

CREATE INDEX tillroll_refusals_age ON tillroll_refusals (recorded_at);

-- How often a request was repeated: for explaining a charge, not part of the history.
CREATE TABLE tillroll_replays (
    request_id text   COLLATE "C" NOT NULL,
    account_id uuid   NOT NULL,
    times      bigint NOT NULL,
    last_at    bigint NOT NULL,
    PRIMARY KEY (request_id, account_id)
);

-- Price versions never change; a charge names the one that made its amount.
CREATE TABLE tillroll_price_versions (
    project    text    COLLATE "C" NOT NULL,
    number     integer NOT NULL CHECK (number > 0),
    digest     text    NOT NULL,
    author     text    NOT NULL,
    reason     text    NOT NULL,
    applied_at bigint  NOT NULL,
    body       text    NOT NULL,
    PRIMARY KEY (project, number)
);

CREATE TABLE tillroll_meta (
    name  text NOT NULL PRIMARY KEY,
    value text NOT NULL
);

-- One row for each movement inside an account: the double entry, for SQL and accountants.
CREATE VIEW tillroll_postings AS
SELECT
    a.project,
    a.account,
    e.account_id,
    e.seq,
    p.line_no - 1                                          AS line_no,
    e.kind,
    e.recorded_at,
    e.effective_at,
    coalesce(e.body::jsonb ->> 'wallet', 'credits')        AS wallet,
    p.posting ->> 0                                        AS source,
    p.posting ->> 1                                        AS target,
    p.posting ->> 2                                        AS line,
    (p.posting ->> 3)::bigint                              AS units
FROM tillroll_entries AS e
INNER JOIN tillroll_accounts AS a ON e.account_id = a.account_id
CROSS JOIN LATERAL jsonb_array_elements(e.body::jsonb -> 'postings')
    WITH ORDINALITY AS p (posting, line_no);
