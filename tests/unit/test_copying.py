"""Moving a ledger: every row arrives, both sides are equal, and only one of them is written."""

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest
from msgspec.structs import replace

import tillroll
from tests.servers.cluster import Cluster
from tests.servers.proxy import Proxy
from tillroll import copying
from tillroll.cli.app import run as cli
from tillroll.embedded.opening import open_store
from tillroll.ledger.commands import account_id
from tillroll.ledger.pricing import Price, Rate
from tillroll.stores.base import Note
from tillroll.stores.memory import MemoryStore
from tillroll.stores.postgres import PostgresStore

ODD = 'odd "id" \\ é'
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def lived_in(url: str, accounts: int = 5) -> None:
    """Make a ledger with something of every kind, in two projects."""
    for project in ("default", "other"):
        with tillroll.open(url, project=project, clock=lambda: NOW) as ledger:
            price = Price(operation="image", rates={"images": Rate(units=Decimal("0.5"))})
            ledger.apply_prices([price], author="ann", reason="first")
            for number in range(accounts):
                name = f"{project}-{number}"
                ledger.grant(name, 100, request_id="g", expires_in="9d", metadata={"n": number})
                ledger.hold(name, units=20, request_id="h")
                ledger.settle(name, "h", units=7, final=False)
                ledger.consume(name, "image", meters={"images": 3}, request_id=ODD)
                ledger.consume(name, "image", meters={"images": 3}, request_id=ODD)
                with pytest.raises(tillroll.InsufficientUnits):
                    ledger.consume(name, units=1_000, request_id="much")
                ledger.set_budget(name, "month", 50)
            put(url, project, f"documents of {project}")
            put(url, ODD, ODD)
            with tillroll.open(url, project=project) as same:
                same._engine.perform(
                    lambda tx, project=project: tx.put_note(
                        Note(owner=b"n" * 16, kind=project, name=ODD, project=project, document=ODD)
                    )
                )


def put(url: str, name: str, document: str | None, kind: str = "key") -> None:
    """Put a document, as a server does; a ledger that was moved refuses."""
    with tillroll.open(url) as ledger:
        ledger._engine.perform(lambda tx: tx.put_document(kind, name, document))


def rows_of(url: str) -> list[object]:
    """Return all that a store holds, as its readers show it."""
    with closing(open_store(url)) as store, store.read() as reader:
        found: list[object] = [reader.refusals(), reader.repeats(), reader.registry_version()]
        found += reader.notes()
        found += [(kind, reader.documents(kind)) for kind in reader.kinds()]
        for project in reader.projects():
            found.append(reader.prices(project).versions)
            for name in reader.names(project):
                owner = account_id(project, name)
                found.append((reader.entries(owner), reader.accounts([(owner, name)])))
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
def other_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgres_url")
        return url
    return f"sqlite:///{tmp_path}/other.db"


@pytest.mark.parametrize("account", ["", "acme"])
def test_a_note_that_was_deleted_since(tmp_path: Path, other_url: str, account: str):
    """One of no account goes in the target, too; any other is deleted by nobody."""
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 1)
    facts = {"owner": bytes(16), "kind": "kept", "name": "n", "project": "default"}
    note = Note(**facts, document="{}", account=account)
    with tillroll.open(here) as ledger:
        ledger._engine.perform(lambda tx: tx.put_note(note))
    tillroll.copy(here, other_url, keep=True)
    with tillroll.open(here) as ledger:
        ledger._engine.perform(lambda tx: tx.drop_note(replace(note, version=1)))
    if account:
        with pytest.raises(tillroll.CopyMismatch, match="notes"):
            tillroll.copy(here, other_url)
    else:
        tillroll.copy(here, other_url)
        assert rows_of(other_url) == rows_of(here)


def note_in(url: str, *, name: str = "n", account: str = "") -> Note:
    """Return a note of a ledger as it stands, or a new one."""
    facts = {"owner": bytes(16), "kind": "kept", "name": name, "project": "default"}
    new = Note(**facts, document="{}", account=account)
    with closing(open_store(url)) as store, store.read() as reader:
        return reader.note(new.key) or new


def put_note(url: str, note: Note, document: str) -> None:
    with tillroll.open(url) as ledger:
        ledger._engine.perform(lambda tx: tx.put_note(replace(note, document=document)))


def drop_note(url: str, note: Note) -> None:
    with tillroll.open(url) as ledger:
        ledger._engine.perform(lambda tx: tx.drop_note(note))


@pytest.mark.parametrize("keep", [True, False])
def test_a_note_that_was_deleted_and_made_anew_since(tmp_path: Path, other_url: str, *, keep: bool):
    """Its versions begin anew, so the older note in the target has the higher one."""
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 1)
    for turn in range(3):
        put_note(here, note_in(here), f"old {turn}")
    tillroll.copy(here, other_url, keep=True)
    drop_note(here, note_in(here))
    put_note(here, note_in(here), "anew")
    tillroll.copy(here, other_url, keep=keep)
    assert rows_of(other_url) == rows_of(here)
    assert (note_in(other_url).version, note_in(other_url).document) == (1, "anew")


def test_a_note_made_anew_comes_back_to_where_it_left(tmp_path: Path, other_url: str):
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 1)
    for turn in range(3):
        put_note(here, note_in(here), f"old {turn}")
    tillroll.copy(here, other_url)
    drop_note(other_url, note_in(other_url))
    put_note(other_url, note_in(other_url), "anew")
    tillroll.copy(other_url, here)
    assert rows_of(here) == rows_of(other_url)


@pytest.mark.parametrize("account", ["", "acme"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_note_that_both_sides_wrote_is_not_overwritten(
    tmp_path: Path, other_url: str, account: str, times: int
):
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 1)
    put_note(here, note_in(here, account=account), "first")
    tillroll.copy(here, other_url, keep=True)
    put_note(here, note_in(here), "here")
    for _ in range(times):
        put_note(other_url, note_in(other_url), "there")
    before = rows_of(other_url)
    for keep in (True, False):
        with pytest.raises(tillroll.CopyMismatch, match="written in the target"):
            tillroll.copy(here, other_url, keep=keep)
    assert rows_of(other_url) == before


def test_a_note_that_the_target_made_is_not_deleted(tmp_path: Path, other_url: str):
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 1)
    tillroll.copy(here, other_url, keep=True)
    put_note(other_url, note_in(other_url), "there")
    with pytest.raises(tillroll.CopyMismatch, match="notes"):
        tillroll.copy(here, other_url)
    assert note_in(other_url).document == "there"


def test_a_copy_into_memory_knows_what_it_brought(tmp_path: Path):
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 1)
    with closing(MemoryStore()) as target:
        for turn in range(2):
            for _ in range(2 - turn):
                put_note(here, note_in(here), f"{turn}")
            with closing(open_store(here)) as source:
                copying.copy(source, target, keep=True)
                with source.read() as left, target.read() as right:
                    assert left.notes() == right.notes()
            drop_note(here, note_in(here))


def test_two_servers_reached_by_sockets_are_two(own_postgres: Cluster, postgres: Cluster):
    """Their databases have the same name, and only the folder of the socket tells them apart."""
    name = postgres.create_database()
    own_postgres.run(f"CREATE DATABASE {name}")
    here, there = postgres.url(name), own_postgres.url(name)
    with tillroll.open(here) as ledger:
        ledger.grant("acme", 5)
    found = tillroll.copy(here, there)
    assert found.source != found.target
    assert str(own_postgres.folder) in found.target
    with tillroll.open(here) as ledger, pytest.raises(tillroll.StoreReadOnly) as caught:
        ledger.grant("acme", 1)
    assert str(own_postgres.folder) in str(caught.value)
    with pytest.raises(tillroll.InvalidInput, match="both"):
        tillroll.copy(there, there)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("keep", [True, False])
def test_one_ledger_that_is_reached_in_two_ways_is_not_retired(
    tmp_path: Path,
    postgres: Cluster,
    postgres_database: str,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    *,
    keep: bool,
):
    monkeypatch.chdir(tmp_path)
    here, there = "sqlite:///here.db", f"sqlite:///{tmp_path}/here.db"
    if kind == "postgresql":
        here, there = postgres.url(postgres_database), postgres.url(postgres_database, tcp=True)
    lived_in(here, 1)
    before = rows_of(here)
    if keep:
        assert tillroll.copy(here, there, keep=True).copied == 0
    else:
        with pytest.raises(tillroll.InvalidInput, match="one ledger"):
            tillroll.copy(here, there)
    assert rows_of(here) == before
    put(here, "default", "{}")  # stays in use


def test_two_schemas_of_one_database_are_two(postgres_url: str):
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE SCHEMA one; CREATE SCHEMA two")
    here, there = (f"{postgres_url}&options=-csearch_path%3D{name}" for name in ("one", "two"))
    with tillroll.open(here) as ledger:
        ledger.grant("acme", 5)
    assert tillroll.copy(here, there).entries == 1
    with tillroll.open(there) as ledger:
        assert ledger.balance("acme").available == 5


def test_there_and_back(tmp_path: Path, other_url: str):
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here)
    before = rows_of(here)
    found = tillroll.copy(here, other_url)
    assert (found.projects, found.accounts, found.copied, found.kept) == (2, 10, 50, False)
    assert (found.entries, found.refusals, found.repeats, found.price_versions) == (50, 10, 10, 2)
    assert (found.documents, found.notes) == (3, 2)
    assert rows_of(other_url) == before
    with tillroll.open(here) as ledger:
        with pytest.raises(tillroll.StoreReadOnly, match="moved to"):
            ledger.grant("default-0", 1)
        with pytest.raises(tillroll.StoreReadOnly, match="moved to"):
            ledger.book_due()
        assert ledger.balance("default-0").issued == 100  # still to be read
    with tillroll.open(other_url, clock=lambda: NOW) as ledger:
        ledger.settle("default-0", "h", units=1)
        ledger.grant("new", 5)
        assert ledger.verify().ok
    again = tillroll.copy(other_url, here)
    assert again.copied == 2
    with tillroll.open(here, clock=lambda: NOW) as ledger:
        assert ledger.balance("new").available == 5
        again_ = ledger.consume("default-0", "image", meters={"images": 3}, request_id=ODD)
        assert again_.replayed
        assert ledger.verify().ok


def test_quotes_stay_good(tmp_path: Path, other_url: str):
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 1)
    with tillroll.open(here, clock=lambda: NOW) as ledger:
        token = ledger.quote("default-0", "image", meters={"images": 2}, lock_for="1h").token
    tillroll.copy(here, other_url)
    with tillroll.open(other_url, clock=lambda: NOW + timedelta(minutes=1)) as ledger:
        assert ledger.hold("default-0", "image", meters={"images": 2}, quote=token).units == 1


def test_a_copy_that_was_cut_off_goes_on(tmp_path: Path, other_url: str, monkeypatch):
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 30)
    monkeypatch.setattr(copying, "ACCOUNTS_PAGE", 7)
    monkeypatch.setattr(copying, "ENTRIES_PAGE", 10)
    done = []

    class Cut(Exception):
        pass

    def cut(what: str, count: int) -> None:
        done.append((what, count))
        if len(done) == 3:
            raise Cut

    with pytest.raises(Cut):
        tillroll.copy(here, other_url, progress=cut)
    with tillroll.open(here, clock=lambda: NOW) as ledger:
        ledger.grant("late", 1)  # the source is in use until the end
    found = tillroll.copy(here, other_url)
    assert found.entries == 301
    assert 0 < found.copied < 301
    assert rows_of(other_url) == rows_of(here)


def test_the_source_may_stay_in_use(tmp_path: Path, other_url: str):
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 1)
    assert tillroll.copy(here, other_url, keep=True).kept
    with tillroll.open(here, clock=lambda: NOW) as ledger:
        ledger.consume("default-0", units=1)
    assert tillroll.copy(here, other_url).copied == 1


def test_what_was_pruned_since_an_earlier_copy_is_gone_there_too(tmp_path: Path, other_url: str):
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 1)
    tillroll.copy(here, other_url, keep=True)
    with tillroll.open(here, clock=lambda: NOW + timedelta(days=91)) as ledger:
        with pytest.raises(tillroll.InsufficientUnits):
            ledger.consume("new", units=1)
        assert ledger.prune_refusals() == 2
    assert tillroll.copy(here, other_url).refusals == 1
    assert rows_of(other_url) == rows_of(here)


@pytest.mark.parametrize("keep", [True, False])
def test_what_was_erased_since_an_earlier_copy_is_erased_there_too(
    tmp_path: Path, other_url: str, *, keep: bool
):
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 2)
    tillroll.copy(here, other_url, keep=True)
    with tillroll.open(here, clock=lambda: NOW) as ledger:
        assert ledger.erase_metadata("default-0") == 1
        ledger.grant("default-0", 1, metadata={"n": "later"})
    tillroll.copy(here, other_url, keep=keep)
    assert rows_of(other_url) == rows_of(here)


def test_what_is_written_during_the_copy_is_copied(tmp_path: Path, other_url: str):
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 3)
    with tillroll.open(here, clock=lambda: NOW) as ledger:

        def charge(what: str, _count: int) -> None:
            if what == "entries" and not written:
                written.append(ledger.consume("default-0", units=1))
                written.append(ledger.grant("new", 1))

        written: list[tillroll.Receipt] = []
        found = tillroll.copy(here, other_url, progress=charge)
        assert found.entries == 32
        with pytest.raises(tillroll.StoreReadOnly):
            ledger.consume("default-0", units=1)
    assert rows_of(other_url) == rows_of(here)


@pytest.mark.parametrize("keep", [True, False])
def test_documents_that_changed_since_an_earlier_copy(
    tmp_path: Path, other_url: str, *, keep: bool
):
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 1)
    tillroll.copy(here, other_url, keep=True)
    put(here, "default", "another")
    put(here, "other", None)
    put(here, "new", "{}", kind="plan")
    assert tillroll.copy(here, other_url, keep=keep).documents == 3
    assert rows_of(other_url) == rows_of(here)
    assert tillroll.copy(here, other_url, keep=keep).copied == 0
    assert rows_of(other_url) == rows_of(here)


def test_documents_come_back_and_are_no_longer_put_where_they_left(tmp_path: Path, other_url: str):
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 1)
    tillroll.copy(here, other_url)
    with pytest.raises(tillroll.StoreReadOnly, match="moved to"):
        put(here, "late", "{}")
    put(other_url, "default", None)
    with pytest.raises(tillroll.CopyMismatch, match="documents of its own"):
        tillroll.copy(here, other_url)  # it would bring back what was removed
    tillroll.copy(other_url, here)
    assert rows_of(here) == rows_of(other_url)
    put(here, "late", "{}")
    assert rows_of(here) != rows_of(other_url)


@pytest.mark.parametrize("theirs", [1, 9], ids=["fewer", "more"])
def test_documents_of_another_server_are_not_overwritten(
    tmp_path: Path, other_url: str, theirs: int
):
    """Also where no account tells that it is another ledger."""
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 1)
    for number in range(theirs):
        put(other_url, f"key-{number}", "{}")
    before = rows_of(other_url)
    for keep in (True, False):
        with pytest.raises(tillroll.CopyMismatch, match="copy to an empty store"):
            tillroll.copy(here, other_url, keep=keep)
    assert rows_of(other_url) == before
    put(here, "default", "{}")  # stays in use


def test_two_that_went_on_apart_are_not_mixed(tmp_path: Path, other_url: str):
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 1)
    tillroll.copy(here, other_url, keep=True)
    put(here, "a", "here")
    put(other_url, "a", "there")
    with pytest.raises(tillroll.CopyMismatch, match="documents of its own"):
        tillroll.copy(here, other_url)


def test_documents_of_a_copy_that_was_cut_off_are_replaced(
    tmp_path: Path, other_url: str, monkeypatch: pytest.MonkeyPatch
):
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 1)

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(copying, "_compare", cut)
        with pytest.raises(KeyboardInterrupt):
            tillroll.copy(here, other_url)
    put(here, "default", "another")
    tillroll.copy(here, other_url)
    assert rows_of(other_url) == rows_of(here)


def test_documents_put_during_the_copy_are_copied(tmp_path: Path, other_url: str):
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 1)

    def late(what: str, _count: int) -> None:
        if what == "entries" and not written:
            written.append(what)
            put(here, "late", "{}")

    written: list[str] = []
    assert tillroll.copy(here, other_url, progress=late).documents == 4
    assert rows_of(other_url) == rows_of(here)


def test_a_connection_lost_on_the_way_is_opened_anew(
    tmp_path: Path, postgres: Cluster, postgres_database: str
):
    """Where nothing can have been committed, it is tried again at once."""
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 1)
    with Proxy(postgres.port) as proxy:
        there = postgres.url(postgres_database, port=proxy.port)
        tillroll.open(there).close()
        proxy.lose_request(rb"UPDATE tillroll_meta SET value = .* WHERE name = 'secret'")
        tillroll.copy(here, there)
        assert proxy.lost.is_set()
        with closing(open_store(here)) as one, closing(open_store(there)) as other:
            assert one.secret == other.secret
    assert rows_of(postgres.url(postgres_database)) == rows_of(here)


def test_another_ledger_is_not_overwritten(tmp_path: Path, other_url: str):
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 1)
    with tillroll.open(other_url) as ledger:
        ledger.grant("default-0", 1)
    with pytest.raises(tillroll.CopyMismatch, match="another history"):
        tillroll.copy(here, other_url)
    with tillroll.open(here, clock=lambda: NOW) as ledger:
        ledger.grant("default-0", 1)  # stays in use


def test_nothing_is_written_into_another_ledger(tmp_path: Path, other_url: str):
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 1)
    with tillroll.open(other_url) as ledger:
        ledger.grant("theirs", 1)
    before = rows_of(other_url)
    with pytest.raises(tillroll.CopyMismatch, match="another ledger"):
        tillroll.copy(here, other_url)
    assert rows_of(other_url) == before


def test_a_copy_that_comes_too_late_gives_nobody_two_ledgers(tmp_path: Path, other_url: str):
    """The ledger has moved and is in use there; what is left here must not be opened again."""
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 1)
    tillroll.copy(here, other_url)
    with (
        tillroll.open(other_url, clock=lambda: NOW) as ledger,
        pytest.raises(tillroll.BudgetExceeded),
    ):
        ledger.consume("default-0", units=900, request_id="too much")
    with pytest.raises(tillroll.CopyMismatch, match="refusals"):
        tillroll.copy(here, other_url)
    with tillroll.open(here) as ledger, pytest.raises(tillroll.StoreReadOnly, match="moved to"):
        ledger.grant("default-0", 1)


def test_writers_that_do_not_end_leave_the_source_in_use(postgres_url: str, tmp_path: Path):
    with tillroll.open(postgres_url) as ledger:
        ledger.grant("acme", 1)
    with (
        closing(PostgresStore(postgres_url, busy_seconds=0.1)) as source,
        closing(open_store(tmp_path / "there.db")) as target,
        psycopg.connect(postgres_url) as writer,
    ):
        writer.execute("SELECT 1 FROM tillroll_accounts FOR UPDATE")
        with pytest.raises(tillroll.StoreBusy):
            copying.copy(source, target)
    with tillroll.open(postgres_url) as ledger:
        assert ledger.grant("acme", 1).available == 2


def test_a_damaged_source_is_not_copied(tmp_path: Path, other_url: str):
    here = tmp_path / "here.db"
    lived_in(f"sqlite:///{here}", 1)
    with sqlite3.connect(here) as connection:
        connection.execute("DROP TRIGGER tillroll_entries_fixed")
        connection.execute("UPDATE tillroll_entries SET body = replace(body, '100', '101')")
    with pytest.raises(tillroll.CopyMismatch, match="verify"):
        tillroll.copy(here, other_url)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        ("DELETE FROM tillroll_refusals", "refusals"),
        ("DELETE FROM tillroll_replays", "repeats"),
        ("UPDATE tillroll_accounts SET head = repeat('x', 32)::bytea", "differs"),
        ("TRUNCATE tillroll_price_versions", "prices"),
        ("UPDATE tillroll_notes SET document = ''", "notes"),
        ("DELETE FROM tillroll_registry WHERE name = 'other'", "documents"),
        ("UPDATE tillroll_registry SET document = '' WHERE name = 'other'", "documents"),
        ("DELETE FROM tillroll_meta WHERE name = 'registry_version'", "documents"),
    ],
)
def test_what_differs_at_the_end_is_found(tmp_path: Path, postgres_url: str, spoil: str, told: str):
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 1)
    tillroll.copy(here, postgres_url, keep=True)
    with psycopg.connect(postgres_url) as connection:
        connection.execute(spoil.encode())
    with (
        closing(open_store(here)) as one,
        closing(open_store(postgres_url)) as other,
        pytest.raises(tillroll.CopyMismatch, match=told),
    ):
        copying._compare(one, other, 0, keep=False, tell=copying.tell_nobody)


def test_from_the_command_line(tmp_path: Path, other_url: str, capsys: pytest.CaptureFixture[str]):
    here = f"sqlite:///{tmp_path}/here.db"
    lived_in(here, 1)
    assert cli(["copy", here, other_url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["entries"] == 10
    assert cli(["copy", here, other_url]) == 0
    assert "read-only now" in capsys.readouterr().out
    assert cli(["copy", f"sqlite:///{tmp_path}/none.db", other_url]) == 1
    assert not (tmp_path / "none.db").exists()
    assert cli(["copy", here, here]) == 2
    assert cli(["grant", "acme", "1", "--db", here]) == 1
    assert "moved to" in capsys.readouterr().err
