-- What is to be told: events written with the entries that make them, what became of each at each
-- endpoint, and who does which job. `spread` says whether the deliveries of an event were made.

CREATE TABLE tillroll_outbox (
    account_id BLOB    NOT NULL,
    seq        INTEGER NOT NULL,
    n          INTEGER NOT NULL,
    project    TEXT    NOT NULL,
    topic      TEXT    NOT NULL,
    payload    TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    spread     INTEGER NOT NULL CHECK (spread IN (0, 1)),
    PRIMARY KEY (account_id, seq, n)
) STRICT, WITHOUT ROWID;

CREATE INDEX tillroll_outbox_new ON tillroll_outbox (created_at) WHERE spread = 0;
CREATE INDEX tillroll_outbox_age ON tillroll_outbox (created_at);

-- `next_at` is when a delivery is to be tried. Whoever takes it raises `lease` and sets `next_at`
-- to when the others may take it from him; only with that lease may it be said what came of it.
CREATE TABLE tillroll_deliveries (
    account_id BLOB    NOT NULL,
    seq        INTEGER NOT NULL,
    n          INTEGER NOT NULL,
    endpoint   TEXT    NOT NULL,
    project    TEXT    NOT NULL,
    topic      TEXT    NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('pending', 'delivered', 'dead')),
    attempts   INTEGER NOT NULL,
    next_at    INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    lease      INTEGER NOT NULL,
    log        TEXT    NOT NULL,
    PRIMARY KEY (account_id, seq, n, endpoint)
) STRICT, WITHOUT ROWID;

CREATE INDEX tillroll_deliveries_due ON tillroll_deliveries (next_at) WHERE state = 'pending';
CREATE INDEX tillroll_deliveries_dead ON tillroll_deliveries (project) WHERE state = 'dead';
CREATE INDEX tillroll_deliveries_page ON tillroll_deliveries (project, created_at);

-- Who does a job, until when it is his, and when he last said so.
CREATE TABLE tillroll_leases (
    name    TEXT    NOT NULL PRIMARY KEY,
    holder  TEXT    NOT NULL,
    ends_at INTEGER NOT NULL,
    beat_at INTEGER NOT NULL,
    told    TEXT    NOT NULL
) STRICT, WITHOUT ROWID;
