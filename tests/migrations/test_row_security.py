"""Row-level security: a session sees and writes the rows of its project, whatever it asks for."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import tillroll
from tests.servers.cluster import Cluster
from tests.servers.pgbouncer import PgBouncer, program
from tillroll import webhooks
from tillroll.embedded.opening import open_store
from tillroll.jobs import Deliverer, Sender
from tillroll.ledger.commands import account_id
from tillroll.stores.base import Note
from tillroll.stores.postgres import PostgresStore
from tillroll.stores.postgres_schema import POLICIES
from tillroll.testing import conformance

TABLES = [*POLICIES, "tillroll_postings"]
ODD = 'o\'dd \\ "project" %s'


def with_role(url: str, role: str) -> str:
    return url.replace("postgres@", f"{role}@", 1)


@pytest.fixture
def url(postgres_url: str, postgres_role: str) -> str:
    """The URL under a role of the application, in a database with row-level security."""
    tillroll.migrate(postgres_url, role=postgres_role, row_level_security=True)
    return with_role(postgres_url, postgres_role)


def use(ledger: tillroll.Ledger) -> None:
    """Put a row into every table."""
    ledger.apply_prices([], author="ann", reason=f"of {ledger.project}")
    perform = ledger._engine.perform
    perform(lambda tx: webhooks.make(tx, ledger.project, "https://x.test/", at=0))
    ledger.grant("acme", 100, request_id="g", metadata={"of": ledger.project})
    for _ in range(2):
        ledger.consume("acme", units=5, request_id="c")
    with pytest.raises(tillroll.InsufficientUnits):
        ledger.consume("acme", units=500, request_id="much")
    batch = [{"account": f"a{n}", "units": 1, "request_id": f"b{n}"} for n in range(40)]
    for item in batch:
        ledger.grant(item["account"], 1, request_id="g")
    assert all(outcome.ok for outcome in ledger.consume_many(batch))  # too many for single rows
    deliverer = Deliverer(ledger._engine, Sender())
    assert deliverer._spread() > 80  # the events of all that have become deliveries
    owner = account_id(ledger.project, "acme")
    note = Note(owner=owner, kind="k", name="n", project=ledger.project, document="{}")
    ledger._engine.perform(lambda tx: tx.put_note(note))


@pytest.fixture
def used(url: str) -> str:
    for project in ("one", ODD):
        with tillroll.open(url, project=project) as ledger:
            use(ledger)
    return url


@pytest.fixture
def sessions(used: str) -> Iterator[dict[str, psycopg.Connection]]:
    """Plain sessions of the same role, by the project that each has named."""
    made = {}
    for project in ("one", ODD, "none", ""):
        made[project] = psycopg.connect(used, autocommit=True)
        made[project].execute("SELECT set_config('tillroll.project', %s, false)", (project,))
    made["unset"] = psycopg.connect(used, autocommit=True)
    yield made
    for session in made.values():
        session.close()


def count(session: psycopg.Connection, table: str) -> int:
    [(found,)] = session.execute(f"SELECT count(*) FROM {table}".encode()).fetchall()  # noqa: S608
    assert isinstance(found, int)
    return found


@pytest.mark.parametrize("table", TABLES)
def test_a_session_sees_its_project_only(
    sessions: dict[str, psycopg.Connection], postgres_url: str, table: str
):
    with psycopg.connect(postgres_url) as owner:
        everything = count(owner, table)
    assert count(sessions["one"], table) == count(sessions[ODD], table) == everything // 2 > 0
    assert [count(sessions[name], table) for name in ("none", "", "unset")] == [0, 0, 0]


def test_a_session_reaches_no_other_row(sessions: dict[str, psycopg.Connection], postgres_url: str):
    one = sessions["one"]
    other = account_id(ODD, "acme")
    for table in ("accounts", "entries", "refusals", "replays"):
        asked = f"SELECT 1 FROM tillroll_{table} WHERE account_id = %s::uuid"  # noqa: S608
        assert one.execute(asked.encode(), (other.hex(),)).fetchall() == []
    assert (
        one.execute(
            "UPDATE tillroll_accounts SET at = 0 WHERE account_id = %s::uuid", (other.hex(),)
        ).rowcount
        == 0
    )
    assert one.execute("DELETE FROM tillroll_refusals WHERE project <> 'one'").rowcount == 0
    assert {row[0] for row in one.execute("SELECT project FROM tillroll_postings")} == {"one"}
    with psycopg.connect(postgres_url) as owner:
        assert count(owner, "tillroll_refusals") == 2


@pytest.mark.parametrize(
    "write",
    [
        "INSERT INTO tillroll_accounts VALUES (gen_random_uuid(), 'two', 'a', 0, '', 0, 0, 0, '')",
        "INSERT INTO tillroll_refusals VALUES ('r', gen_random_uuid(), 'two', 'a', 0, '')",
        "INSERT INTO tillroll_price_versions VALUES ('two', 9, '', '', '', 0, '')",
        "INSERT INTO tillroll_replays VALUES ('r', gen_random_uuid(), 1, 1)",
        "UPDATE tillroll_accounts SET project = 'two'",
    ],
)
def test_a_session_writes_its_project_only(sessions: dict[str, psycopg.Connection], write: str):
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
        sessions["one"].execute(write.encode())


def test_an_entry_of_another_project_is_not_written(sessions: dict[str, psycopg.Connection]):
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
        sessions["one"].execute(
            "INSERT INTO tillroll_entries SELECT %s::uuid, 999, recorded_at, effective_at, 'x', "
            "ref, kind, body, hash, metadata FROM tillroll_entries LIMIT 1",
            (account_id(ODD, "acme").hex(),),
        )


def test_the_ledger_of_a_project(used: str):
    for project in ("one", ODD):
        with tillroll.open(used, project=project) as ledger:
            assert ledger.verify().ok
            assert ledger.store.check() == []
            assert ledger.balance("acme").used == 5
            assert ledger.explain("c", account="acme")["replays"] == 1
            assert len(list(ledger.accounts())) == 41
            assert ledger.prices().version(1).reason == f"of {project}"
            facts = {name: value for name, value, _ in ledger.store.facts()}
            assert facts["row-level security"] == f"project {project} only"


def test_odd_texts_in_a_batch(url: str):
    """Without COPY a batch goes in by arrays, in which other characters mean something."""
    odd = [
        "NULL",
        "null",
        "{}",
        "a,b",
        'a"b',
        "a\\b",
        "a\\\\",
        '\\"',
        "é ☃ \U0001f9fe",
        " ",
        "%s",
        "'",
    ]
    with tillroll.open(url) as ledger:
        ledger.grant("acme", 100)
        batch = [
            {"account": "acme", "units": 1, "request_id": text, "metadata": {text: [text, None]}}
            for text in odd
        ]
        assert all(outcome.ok for outcome in ledger.consume_many(batch))
        assert all(outcome.receipt.replayed for outcome in ledger.consume_many(batch))
        for text in odd:
            assert ledger.explain(text)["metadata"] == {text: [text, None]}
        assert ledger.verify().ok


def test_every_promise_is_kept(url: str):
    report = conformance.run(lambda clock: tillroll.open(url, clock=clock))
    assert [result.name for result in report.failures] == ["metadata_can_be_erased"]  # the owner's


def test_behind_a_pooler(used: str, postgres: Cluster, postgres_role: str, postgres_database: str):
    """Sessions are shared there: each transaction names its project."""
    assert used
    if not program():
        pytest.skip("needs PgBouncer: apt-get install pgbouncer")
    with PgBouncer(postgres, users=[postgres_role]) as bouncer:
        url = with_role(bouncer.url(postgres_database), postgres_role)
        with tillroll.open(url, project="one") as one, tillroll.open(url, project=ODD) as other:
            for number in range(10):
                one.consume("acme", units=1, request_id=f"p{number}")
                assert other.balance("acme").used == 5
                assert one.balance("acme").used == 6 + number
            batch = [{"account": "acme", "units": 1, "request_id": f"q{n}"} for n in range(20)]
            assert all(outcome.ok for outcome in other.consume_many(batch))
            assert one.verify().ok
            assert other.verify().ok


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
def test_within_a_transaction_of_the_hosts(used: str, isolation: str):
    """Each ledger that joins names its project, for this transaction only."""
    with (
        tillroll.open(used, project="one") as one,
        tillroll.open(used, project=ODD) as other,
        psycopg.connect(used) as host,
    ):
        host.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}".encode())
        for ledger in (one, other):
            joined = ledger.join(host)
            assert joined.balance("acme").used == 5
            joined.grant("new", 20, request_id="g")
            batch = [{"account": "new", "units": 1, "request_id": f"j{n}"} for n in range(9)]
            assert all(outcome.ok for outcome in joined.consume_many(batch))
            assert joined.consume("acme", units=2).available == 93
        host.commit()
        assert count(host, "tillroll_entries") == 0
        for ledger in (one, other):
            assert ledger.balance("new").used == 9
            assert ledger.verify().ok


def test_written_by_appending(used: str, postgres_url: str):
    with tillroll.open(postgres_url) as owner:
        assert isinstance(owner.store, PostgresStore)
        owner.store.set_writing("append")
    with tillroll.open(used, project="one") as one, tillroll.open(used, project="one") as again:
        for ledger in (one, again, one):
            ledger.grant("new", 20)
            batch = [{"account": "new", "units": 1} for _ in range(9)]
            assert all(outcome.ok for outcome in ledger.consume_many(batch))
        assert one.balance("new").used == 27
        assert one.verify().ok


def test_switched_on_and_off_under_a_ledger_in_use(postgres_url: str, postgres_role: str):
    tillroll.migrate(postgres_url, role=postgres_role)
    with tillroll.open(with_role(postgres_url, postgres_role)) as ledger:
        for number, on in enumerate((None, True, False, True)):
            statements = tillroll.migrate(postgres_url, row_level_security=on).statements
            assert bool(statements) == (on is not None)
            ledger.grant("acme", 100)
            batch = [
                {"account": "acme", "units": 1, "request_id": f"{number}-{n}"} for n in range(9)
            ]
            assert all(outcome.ok for outcome in ledger.consume_many(batch))
            assert ledger.balance("acme").used == 9 * (number + 1)
        assert ledger.verify().ok


def test_what_is_about_all_projects_is_the_owners(used: str, postgres_url: str, tmp_path: Path):
    target = tmp_path / "copy.db"
    with pytest.raises(tillroll.StoreReadOnly, match="one project only"):
        tillroll.copy(used, target)
    with pytest.raises(tillroll.StoreReadOnly, match="one project only"):
        open_store(used)
    assert tillroll.copy(postgres_url, target, keep=True).projects == 2


def test_an_owner_is_not_limited(used: str, postgres_url: str):
    assert used
    with tillroll.open(postgres_url, project="one") as ledger:
        assert ledger.erase_metadata("acme") == 1
        batch = [{"account": "acme", "units": 1, "request_id": f"o{n}"} for n in range(9)]
        assert all(outcome.ok for outcome in ledger.consume_many(batch))
        assert ledger.verify().ok


def test_what_it_runs_is_shown_first(postgres: Cluster, postgres_url: str):
    planned = tillroll.migrate(postgres_url, plan=True, row_level_security=True)
    assert sum("CREATE POLICY" in statement for statement in planned.statements) == len(POLICIES)
    tillroll.migrate(postgres_url)
    tillroll.migrate(postgres_url, plan=True, row_level_security=True)
    with psycopg.connect(postgres_url) as owner:
        assert owner.execute("SELECT 1 FROM pg_policies").fetchall() == []
    tillroll.migrate(postgres_url, row_level_security=True)
    tillroll.migrate(postgres_url, row_level_security=True)  # again: the same
    with psycopg.connect(postgres_url) as owner:
        tables = {name for (name,) in owner.execute("SELECT tablename FROM pg_policies")}
    assert tables == set(POLICIES)
    assert postgres
