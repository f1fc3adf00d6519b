"""Simulated faults by seed, and that the simulation catches a ledger with a planted fault."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.conftest import appending
from tests.servers.cluster import Cluster
from tillroll.ledger import core, decide, due, fold, moves
from tillroll.ledger.book import Answer, Book
from tillroll.ledger.types import Entry, Refusal
from tillroll.stores.base import CommitUncertain
from tillroll.stores.memory import MemoryReader, MemoryStore, MemoryWriter
from tillroll.testing import simulation

FIRST = int(os.environ.get("TILLROLL_SEED", "1"))
# Seeds that once failed, with what they found; they are run for ever.
NAMED = {
    12: "the clock steps back between a refusal and the next entry",
}


def assert_clean(seed: int, url: str | None = None) -> None:
    found = simulation.run(seed, url)
    assert not found, f"seed {seed}: " + "\n".join(found[:10])


@pytest.mark.parametrize("block", range(8))
def test_seeds(block: int):
    for seed in range(FIRST + 25 * block, FIRST + 25 * block + 25):
        assert_clean(seed)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + 20))
def test_seeds_on_sqlite(seed: int, tmp_path: Path):
    assert_clean(seed, f"sqlite:///{tmp_path}/a.db")


@pytest.mark.parametrize("seed", range(FIRST, FIRST + 10))
def test_seeds_on_postgresql(seed: int, postgres_url: str):
    assert_clean(seed, postgres_url)


@pytest.mark.parametrize("seed", range(FIRST + 10, FIRST + 20))
def test_seeds_on_postgresql_appending(seed: int, appending_url: str):
    assert_clean(seed, appending_url)


@pytest.mark.parametrize("seed", NAMED, ids=NAMED.get)
def test_named_seed(seed: int):
    assert_clean(seed)


def test_a_seed_is_the_same_run_always():
    runs = []
    for _ in range(2):
        run = simulation.Simulation(7)
        assert run.run() == []
        runs.append([(item.sent.call, item.outcome, item.completed) for item in run.acknowledged])
    assert runs[0] == runs[1]
    assert len(runs[0]) > 20


def test_every_fault_happens():
    seen = set()
    for seed in range(1, 60):
        run = simulation.Simulation(seed)
        if run.fault_rate:
            seen.update(run.faults)
    assert seen == set(simulation.FAULTS)


@pytest.mark.soak
def test_many_seeds_on_postgresql(postgres: Cluster):
    first = int(os.environ.get("TILLROLL_SEED", "200000"))
    for seed in range(first, first + 500):
        name = postgres.create_database()
        url = postgres.url(name)
        assert_clean(seed, appending(url) if seed % 2 else url)
        postgres.drop_database(name)


@pytest.mark.soak
def test_many_seeds():
    first = int(os.environ.get("TILLROLL_SEED", "100000"))
    assert simulation.main(["--seed", str(first), "--count", "20000"]) == 0
    assert simulation.main(["--seed", str(first), "--count", "500", "--sqlite"]) == 0


# --- positive controls: each plants a fault that must be caught ---------------------------------


def forget_answers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryReader, "answers", lambda _self, _keys: {})


def append_twice(patch: pytest.MonkeyPatch) -> None:
    once = core.append

    def twice(book: Book, owner: bytes, entry: Entry, metadata: str | None = None) -> None:
        once(book, owner, entry, metadata)
        if entry.kind == "consume" and entry.units % 5_000_000 == 0:
            seq = book.accounts[owner].seq + 1
            free = book.accounts[owner].wallet(entry.wallet).available
            if all(p.line in book.accounts[owner].grants for p in entry.postings) and free > 0:
                wallet = book.accounts[owner].wallet(entry.wallet)
                after = moves.buckets_after(wallet, entry.postings)
                names = ("issued", "available", "held", "used", "expired")
                buckets = dict(zip(names, after, strict=True))
                again = replace(entry, seq=seq, request_id=None, **buckets)
                once(book, owner, again)

    patch.setattr(core, "append", twice)


def lose_a_commit(patch: pytest.MonkeyPatch) -> None:
    """Answer an uncertain commit as if it had taken place."""
    patch.setattr(
        "tillroll.engine._settled",
        lambda request, found, _problem: Answer(
            found
            or Refusal(
                code="hold_not_found",
                message="",
                request_id=request.request_id,
                fingerprint=request.fingerprint,
            )
        ),
    )


def sweep_leaks(patch: pytest.MonkeyPatch) -> None:
    """Let a hold that expires keep what it held."""
    falls_due = due._fall_due
    patch.setattr(
        due,
        "_fall_due",
        lambda account, item, at: None if item[1] == due._HOLD else falls_due(account, item, at),
    )


def commit_half(patch: pytest.MonkeyPatch) -> None:
    """Write entries, and the account's row only now and then."""
    append = MemoryWriter.append

    def half(self: MemoryWriter, project: str, book: Book) -> None:
        append(self, project, book)
        if book.appended and book.appended[-1].entry.kind == "settle":
            owner = book.appended[-1].account_id
            kept = self._store.states.get(owner)
            if kept is not None:
                self.acts.append(lambda: self._store.states.__setitem__(owner, kept))

    patch.setattr(MemoryWriter, "append", half)


def ignore_the_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fold, "sort_grants", lambda _account: None)


def refund_without_bound(patch: pytest.MonkeyPatch) -> None:
    paid = decide.paid_lines
    patch.setattr(
        decide,
        "paid_lines",
        lambda story: paid(e for e in story if e.kind in ("consume", "settle")),
    )


@pytest.mark.parametrize(
    "plant",
    [
        forget_answers,
        append_twice,
        lose_a_commit,
        sweep_leaks,
        commit_half,
        ignore_the_order,
        refund_without_bound,
    ],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_fault_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
):
    plant(monkeypatch)
    caught = []
    for seed in range(1, 60):
        try:
            caught = simulation.run(seed)
        except Exception as problem:  # noqa: BLE001 - an assertion of the ledger counts as caught
            caught = [repr(problem)]
        if caught:
            break
    assert caught, "nobody noticed"


def test_an_uncertain_commit_is_looked_up():
    store = simulation.FaultyStore(MemoryStore())
    store.fault = "uncertain, lost"
    with pytest.raises(CommitUncertain), store.write() as tx:
        assert tx.replays((b"", "r")) == (0, 0)
