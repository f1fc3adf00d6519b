"""Real threads against one SQLite file: every recorded answer fits one serial history."""

import os
import random
import threading
import time
from pathlib import Path

import pytest

from tillroll.embedded.opening import open_store
from tillroll.engine import Engine
from tillroll.ledger.book import Answer
from tillroll.ledger.commands import account_id
from tillroll.ledger.types import Entry, Refusal
from tillroll.ledger.verbs import Verbs
from tillroll.queries import histories
from tillroll.stores.base import Remembered
from tillroll.stores.sqlite_rows import SqliteReader, SqliteWriter
from tillroll.testing.linearizability import Seen, problems

ACCOUNTS = ("acme", "zoe")


class Recorder:
    """Threads that write and read, and what each answer saw."""

    def __init__(self, url: Path | str, *, threads: int, rounds: int) -> None:
        self.stores = [open_store(url) for _ in range(2)]
        self.engines = [Engine(store) for store in self.stores]
        self.verbs = Verbs("default", self.stores[0].scale, lambda: "", lambda _: None)
        self.rounds = rounds
        self.seen: list[Seen] = []
        self.lock = threading.Lock()
        for account in ACCOUNTS:
            grant = self.verbs.grant(account, 5, request_id="g")
            assert isinstance(self.engines[0].execute([grant])[0].outcome, Entry)
        self.threads = [threading.Thread(target=self.work, args=(n,)) for n in range(threads)]

    def run(self) -> list[str]:
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join()
        history = {
            account: [receipt.entry for receipt in histories(self.stores[0], "default", account)]
            for account in ACCOUNTS
        }
        for engine in self.engines:
            engine.close()
        return problems(self.seen, history)

    def work(self, nth: int) -> None:
        rng = random.Random(nth)  # noqa: S311 - a workload, not a secret
        engine = self.engines[nth % 2]
        for turn in range(self.rounds):
            account = rng.choice(ACCOUNTS)
            invoked = time.monotonic()
            if rng.random() < 0.5:
                fact = self.read(account, invoked)
            else:
                fact = self.write(engine, account, f"{nth}-{turn}", rng.randint(1, 4), invoked)
            with self.lock:
                self.seen.append(fact)

    def write(self, engine: Engine, account: str, name: str, units: int, invoked: float) -> Seen:
        call = self.verbs.consume if units < 4 else self.verbs.grant
        answer: Answer = engine.execute([call(account, units=units, request_id=name)])[0]
        completed = time.monotonic()
        found = answer.outcome
        if isinstance(found, Refusal):
            facts = ("refusal", found.seq, found.available, found.needed)
        else:
            assert isinstance(found, Entry), found
            facts = ("write", found.seq, found.available, None)
        return Seen(account, *facts, invoked, completed)

    def read(self, account: str, invoked: float) -> Seen:
        owner = account_id("default", account)
        with self.stores[0].read() as reader:
            state = reader.accounts([(owner, account)])[owner]
        seen = state.seq, state.wallet("credits").available
        return Seen(account, "read", *seen, None, invoked, time.monotonic())


def test_threads_see_one_history(tmp_path: Path):
    recorder = Recorder(tmp_path / "a.db", threads=8, rounds=60)
    assert recorder.run() == []
    kinds = {item.kind for item in recorder.seen}
    assert kinds == {"write", "refusal", "read"}, "the workload is too tame"
    assert len(recorder.seen) == 8 * 60


@pytest.mark.parametrize("url", ["postgres_url", "appending_url"])
def test_threads_see_one_history_on_postgresql(url: str, request: pytest.FixtureRequest):
    recorder = Recorder(request.getfixturevalue(url), threads=8, rounds=60)
    assert recorder.run() == []
    assert {item.kind for item in recorder.seen} == {"write", "refusal", "read"}
    assert len(recorder.seen) == 8 * 60


@pytest.mark.soak
@pytest.mark.parametrize("url", ["postgres_url", "appending_url"])
def test_threads_see_one_history_on_postgresql_for_long(url: str, request: pytest.FixtureRequest):
    recorder = Recorder(request.getfixturevalue(url), threads=16, rounds=2_000)
    assert recorder.run() == []


@pytest.mark.soak
def test_threads_see_one_history_for_long(tmp_path: Path):
    rounds = int(os.environ.get("TILLROLL_ROUNDS", "5000"))
    recorder = Recorder(tmp_path / "a.db", threads=16, rounds=rounds)
    assert recorder.run() == []


# --- positive controls --------------------------------------------------------------------------


def test_a_stale_read_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept: dict[bytes, Remembered] = {}
    fresh = SqliteReader._remember

    def stale(self: SqliteReader, owner: bytes, name: str) -> Remembered:
        found = fresh(self, owner, name)
        if isinstance(self, SqliteWriter) or found.account.seq % 5 == 0:
            kept[owner] = found
            return found
        return kept.get(owner, found)

    monkeypatch.setattr(SqliteReader, "_remember", stale)
    found = Recorder(tmp_path / "a.db", threads=4, rounds=60).run()
    assert any("though a newer one was known" in text for text in found)


def entry(seq: int, available: int) -> Entry:
    return Entry(seq=seq, kind="consume", at=seq, effective_at=seq, available=available)


HISTORY = {"a": [entry(1, 10), entry(2, 4), entry(3, 1)]}


@pytest.mark.parametrize(
    ("seen", "history", "told"),
    [
        ([Seen("a", "write", 2, 5, None, 0, 1)], HISTORY, "says 5 are free"),
        ([Seen("a", "write", 4, 1, None, 0, 1)], HISTORY, "not in the history"),
        ([Seen("a", "read", -1, 1, None, 0, 1)], HISTORY, "not in the history"),
        ([Seen("b", "write", 1, 1, None, 0, 1)], HISTORY, "not in the history"),
        ([Seen("a", "refusal", 2, 4, 3, 0, 1)], HISTORY, "was not short"),
        ([Seen("a", "write", 2, 4, None, 0, n) for n in (1, 2)], HISTORY, "two writes at seq 2"),
        (
            [Seen("a", "read", 3, 1, None, 0, 1), Seen("a", "read", 2, 4, None, 2, 3)],
            HISTORY,
            "though a newer one was known at 1",
        ),
        ([], {"a": [entry(1, 10), entry(3, 1)]}, "entry 2 has seq 3"),
        ([], {"a": [entry(1, 10), Entry(seq=2, kind="consume", at=0, effective_at=0)]}, "older"),
    ],
)
def test_the_checker_finds(seen: list[Seen], history: dict[str, list[Entry]], told: str):
    found = problems(seen, history)
    assert any(told in text for text in found), found


def test_the_checker_lets_overlapping_answers_be():
    seen = [
        Seen("a", "write", 3, 1, None, 0, 5),
        Seen("a", "read", 2, 4, None, 4, 6),
        Seen("a", "read", 3, 1, None, 2, 4.5),
        Seen("a", "refusal", 0, 0, 1, 0, 1),
        Seen("a", "refusal", 2, None, None, 1, 2),
    ]
    assert problems(seen, HISTORY) == []
