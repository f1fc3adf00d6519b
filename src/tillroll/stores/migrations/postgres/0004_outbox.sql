-- What is to be told: events written with the entries that make them, what became of each at each
-- endpoint, and who does which job. `spread` says whether the deliveries of an event were made.

SET LOCAL lock_timeout = '2s';

CREATE TABLE tillroll_outbox (
    account_id uuid    NOT NULL,
    seq        bigint  NOT NULL,
    n          integer NOT NULL,
    project    text    COLLATE "C" NOT NULL,
    topic      text    NOT NULL,
    payload    text    NOT NULL,
    created_at bigint  NOT NULL,
    spread     integer NOT NULL CHECK (spread IN (0, 1)),
    PRIMARY KEY (account_id, seq, n)
);

CREATE INDEX tillroll_outbox_new ON tillroll_outbox (created_at) WHERE spread = 0;
CREATE INDEX tillroll_outbox_age ON tillroll_outbox (created_at);

-- `next_at` is when a delivery is to be tried. Whoever takes it raises `lease` and sets `next_at`
-- to when the others may take it from him; only with that lease may it be said what came of it.
CREATE TABLE tillroll_deliveries (
    account_id uuid    NOT NULL,
    seq        bigint  NOT NULL,
    n          integer NOT NULL,
    endpoint   text    COLLATE "C" NOT NULL,
    project    text    COLLATE "C" NOT NULL,
    topic      text    NOT NULL,
    state      text    NOT NULL CHECK (state IN ('pending', 'delivered', 'dead')),
    attempts   integer NOT NULL,
    next_at    bigint  NOT NULL,
    created_at bigint  NOT NULL,
    lease      bigint  NOT NULL,
    log        text    NOT NULL,
    PRIMARY KEY (account_id, seq, n, endpoint)
);

CREATE INDEX tillroll_deliveries_due ON tillroll_deliveries (next_at) WHERE state = 'pending';
CREATE INDEX tillroll_deliveries_dead ON tillroll_deliveries (project) WHERE state = 'dead';
CREATE INDEX tillroll_deliveries_page ON tillroll_deliveries (project, created_at);

-- Who does a job, until when it is his, and when he last said so.
CREATE TABLE tillroll_leases (
    name    text   COLLATE "C" NOT NULL PRIMARY KEY,
    holder  text   NOT NULL,
    ends_at bigint NOT NULL,
    beat_at bigint NOT NULL,
    told    text   NOT NULL
);
