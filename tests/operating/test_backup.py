"""Backups are restored here: to now, and to a moment of the past."""

import shutil
import threading
from contextlib import closing
from pathlib import Path

import apsw
import pytest

import tillroll
from tests.faults.rig import join, until
from tests.servers.cluster import START_SECONDS, Cluster, hand_over, new_folder, wait_for
from tillroll.embedded.opening import open_store
from tillroll.ledger.commands import account_id


def history(url: str) -> list[tuple[object, ...]]:
    """Return all entries of the account as they are stored."""
    with closing(open_store(url)) as store, store.read() as reader:
        return list(reader.entries(account_id("default", "acme")))


@pytest.fixture
def archived():
    """A server that keeps its log in a folder beside it."""
    archive = new_folder("tillroll-archive-")
    command = f"test ! -f {archive}/%f && cp %p {archive}/%f"
    settings = {"archive_mode": "on", "archive_command": command}
    with Cluster(settings=settings) as cluster:
        yield cluster, archive
    shutil.rmtree(archive)


def test_restored_to_a_moment_of_the_past(archived: tuple[Cluster, Path]):
    cluster, archive = archived
    with tillroll.open(cluster.url()) as ledger:
        ledger.grant("acme", 1_000, request_id="g")
        for number in range(20):
            ledger.consume("acme", units=1, request_id=f"before-{number}")
        restored = Cluster(
            settings={
                "restore_command": f"cp {archive}/%f %p",
                "recovery_target_name": "the moment",
                "recovery_target_action": "promote",
            }
        )
        try:
            cluster.call(
                "pg_basebackup",
                f"--dbname={cluster.url()}",
                f"--pgdata={restored.data}",
                "--wal-method=none",
                "--checkpoint=fast",
                "--no-sync",
            )
            for number in range(20):
                ledger.consume("acme", units=1, request_id=f"between-{number}")
            ledger.hold("acme", units=50, request_id="h", expires_in="9h")
            wanted = history(cluster.url())
            cluster.run("SELECT pg_create_restore_point('the moment')")
            for number in range(20):
                ledger.consume("acme", units=1, request_id=f"after-{number}")
            [(last,)] = cluster.run("SELECT pg_walfile_name(pg_current_wal_lsn())")
            cluster.run("SELECT pg_switch_wal()")
            wait_for((archive / str(last)).exists, START_SECONDS, "the archive")
            assert len(history(cluster.url())) == len(wanted) + 20

            signal = restored.data / "recovery.signal"
            signal.touch()
            hand_over(signal)
            restored.start()
            promoted = "SELECT NOT pg_is_in_recovery()"
            wait_for(lambda: restored.run(promoted) == [(True,)], START_SECONDS, "the promotion")
            assert history(restored.url()) == wanted
            with tillroll.open(restored.url()) as other:
                assert other.verify().ok
                assert other.store.check() == []
                assert other.balance("acme").used == 40
                assert other.consume("acme", units=1, request_id="between-3").replayed
                # Forgotten, as is its id: in this history it is charged for the first time.
                assert not other.consume("acme", units=1, request_id="after-3").replayed
                assert other.settle("acme", "h", units=5).available == 954
        finally:
            restored.remove()


def test_a_dump_is_of_one_moment(own_postgres: Cluster, tmp_path: Path):
    """While charges go on, the dump holds a whole history up to some entry."""
    if not (own_postgres.bin / "pg_dump").exists():
        pytest.skip("needs pg_dump, as a distribution's PostgreSQL has")
    url = own_postgres.url()
    done = threading.Event()
    with tillroll.open(url) as ledger:
        ledger.grant("acme", 1_000_000)

        def charge() -> None:
            while not done.is_set():
                ledger.consume("acme", units=1)

        thread = threading.Thread(target=charge)
        thread.start()
        try:
            until(lambda: ledger.balance("acme").seq > 20)
            dump = new_folder("tillroll-dump-") / "credits.dump"
            own_postgres.call("pg_dump", "--format=custom", f"--file={dump}", f"--dbname={url}")
        finally:
            done.set()
            join(thread)
    name = own_postgres.create_database()
    own_postgres.call("pg_restore", f"--dbname={own_postgres.url(name)}", str(dump))
    shutil.rmtree(dump.parent)
    restored = history(own_postgres.url(name))
    assert len(restored) > 20
    assert history(url)[: len(restored)] == restored
    with tillroll.open(own_postgres.url(name)) as other:
        assert other.verify().ok
        assert other.store.check() == []


@pytest.mark.parametrize("how", ["vacuum into", "online backup"])
def test_a_copy_of_a_file_in_use(tmp_path: Path, how: str):
    live, copy = tmp_path / "credits.db", tmp_path / "backup.db"
    with tillroll.open(live) as ledger:
        ledger.grant("acme", 1_000)
        for number in range(50):
            ledger.consume("acme", units=1, request_id=f"c{number}")
        if how == "vacuum into":
            with closing(apsw.Connection(str(live))) as connection:
                connection.execute("VACUUM INTO ?", (str(copy),))
        else:
            with (
                closing(apsw.Connection(str(live))) as source,
                closing(apsw.Connection(str(copy))) as target,
                target.backup("main", source, "main") as backup,
            ):
                while not backup.done:
                    backup.step(10)
        ledger.consume("acme", units=1)
    assert history(str(live))[:-1] == history(str(copy))
    with tillroll.open(copy) as other:
        assert other.verify().ok
        assert other.store.check() == []
        assert other.consume("acme", units=1, request_id="c7").replayed
