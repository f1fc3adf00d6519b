"""Forks, ends of interpreters and loops, Ctrl-C, poison and crowds: nobody hangs, nothing is lost.

Whatever might hang runs in a process of its own with a deadline.
"""

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

import tillroll
from tests.faults.rig import Gate, Wrapped, all_at_once, join, ledger_on, until
from tillroll.embedded import AsyncLedger, Ledger
from tillroll.engine import Engine
from tillroll.ledger.receipts import Receipt
from tillroll.stores.memory import MemoryStore
from tillroll.stores.sqlite import SqliteStore

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "credits.db"
    with tillroll.open(path) as ledger:
        ledger.grant("acme", 1_000_000, request_id="g")
    return path


def run(code: str, *arguments: object, expect: int = 0) -> str:
    """Run a program that must end by itself within a minute; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == expect, done.stderr
    return done.stdout


def spendable(path: Path) -> int:
    with tillroll.open(path) as ledger:
        assert ledger.verify().ok
        assert ledger.store.check() == []
        return int(ledger.balance("acme").spendable)


# --- forks --------------------------------------------------------------------------------------


def forked(act: Callable[[], object]) -> int:
    """Do something in a forked child; return its exit status, 14 if it hung."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are threads: that is the test
        pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        try:
            act()
        except BaseException:  # noqa: BLE001 - the child ends here, whatever it was
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def under_load(ledger: Ledger) -> Iterator[Callable[[], int]]:
    """Consume and read in several threads; yield how many were consumed so far."""
    stop = threading.Event()
    done = [0] * 3

    def write(thread: int) -> None:
        while not stop.is_set():
            ledger.consume("acme", units=1)
            done[thread] += 1

    def read() -> None:
        while not stop.is_set():
            assert ledger.balance("acme").spendable > 0

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    threads.append(threading.Thread(target=read))
    for thread in threads:
        thread.start()
    try:
        yield lambda: sum(done)
    finally:
        stop.set()
        for thread in threads:
            join(thread)


@needs_fork
def test_children_of_a_busy_parent_can_write(path: Path):
    children = 12
    with tillroll.open(path) as ledger:
        with under_load(ledger) as consumed:
            for number in range(children):
                so_far = consumed()
                until(lambda so_far=so_far: consumed() > so_far)

                def act(name: str = f"child{number}") -> None:
                    ledger.consume("acme", units=1, request_id=name)
                    assert ledger.balance("acme").spendable > 0
                    ledger.close()

                assert forked(act) == 0
            assert forked(lambda: os._exit(0)) == 0
        total = consumed()
        assert ledger.consume("acme", units=1, request_id="child0").replayed
    assert spendable(path) == 1_000_000 - total - children


@needs_fork
def test_a_child_outlives_its_parent_and_loses_nothing(path: Path):
    """As a daemon does: the parent is gone, others open and close the file, the child goes on.

    SQLite keeps the locks of a process in the memory of the process. A child that inherited an
    open file took itself to hold its parent's locks: whoever closed the file then took himself to
    be the last one, and deleted the log that the child wrote to.
    """
    code = """
        import os, sys, tillroll
        ledger = tillroll.open(sys.argv[1])
        ledger.consume("acme", units=1)
        if os.fork():
            os._exit(0)
        for number in range(5):
            ledger.consume("acme", units=1)
            with tillroll.open(sys.argv[1]) as same:
                same.balance("acme")
            pid = os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c",
                "import sys, tillroll; tillroll.open(sys.argv[1]).close()", sys.argv[1]])
        os._exit(0)  # no tidy end
    """
    run(code, path)
    assert spendable(path) == 1_000_000 - 6


@needs_fork
def test_a_child_forked_while_its_own_thread_reads_is_refused(path: Path):
    """The read cannot be waited for, nor its locks be shared: no guess, an error."""
    with tillroll.open(path) as ledger:
        with ledger.store.read():

            def act() -> None:
                with pytest.raises(tillroll.StoreUnavailable, match="nothing was written"):
                    ledger.consume("acme", units=1)
                with pytest.raises(tillroll.StoreUnavailable, match="forked"):
                    tillroll.open(path)

            assert forked(act) == 0
        ledger.consume("acme", units=1)
    assert spendable(path) == 999_999


@needs_fork
def test_a_parent_sees_what_its_child_wrote(path: Path):
    """Refused from a state remembered since before the fork, it would be refused for ever."""
    with tillroll.open(path) as ledger:
        ledger.grant("beta", 10, request_id="g")
        assert forked(lambda: ledger.grant("beta", 90, request_id="from the child")) == 0
        assert ledger.consume("beta", units=50, request_id="c").available == 50
        assert ledger.verify().ok


@needs_fork
def test_multiprocessing_with_fork(path: Path):
    context = multiprocessing.get_context("fork")
    with tillroll.open(path) as ledger, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        ledger.consume("acme", units=1)
        processes = [
            context.Process(target=ledger.consume, args=("acme",), kwargs={"units": 1})
            for _ in range(4)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0] * 4
        ledger.consume("acme", units=1)
    assert spendable(path) == 1_000_000 - 6


@needs_fork
def test_a_fork_in_memory_is_a_copy(path: Path):
    with ledger_on(MemoryStore()) as ledger:  # type: ignore[arg-type]
        ledger.grant("acme", 10)

        def act() -> None:
            ledger.consume("acme", units=4)
            assert ledger.balance("acme").spendable == 6

        assert forked(act) == 0
        assert ledger.balance("acme").spendable == 10


# --- ends ---------------------------------------------------------------------------------------


def test_the_interpreter_ends_with_open_ledgers_and_waiting_callers(path: Path):
    """An event loop in a thread is left in the middle; every answer that was given is true."""
    code = """
        import asyncio, sys, threading, time, tillroll
        threading.excepthook = lambda _: None  # threads that print while Python ends may abort it
        path = sys.argv[1]
        ledger = tillroll.open_async(path)
        blocking = tillroll.open(path)
        started = threading.Event()
        async def caller(number):
            while True:
                await ledger.consume("acme", units=1)
                started.set()
        async def main():
            await asyncio.gather(*(caller(number) for number in range(20)))
        def block():
            while True:
                blocking.consume("acme", units=1)
        threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
        for _ in range(3):
            threading.Thread(target=block, daemon=True).start()
        started.wait()
        time.sleep(0.05)
    """
    for _ in range(3):
        run(code, path)
    assert 0 < spendable(path) < 1_000_000


def test_blocking_and_awaiting_callers_of_one_engine_at_the_end(path: Path):
    """The worker thread takes nothing any more; the baton must not stay with it."""
    code = """
        import asyncio, contextlib, sys, threading, time, tillroll
        from tillroll.embedded import AsyncLedger
        ledger = tillroll.open(sys.argv[1])
        both = AsyncLedger(ledger._engine)
        started = threading.Event()
        async def caller():
            while True:
                await both.consume("acme", units=1)
                started.set()
        async def main():
            await asyncio.gather(*(caller() for _ in range(5)), return_exceptions=True)
        def block():
            # A daemon that writes to stderr while the interpreter ends makes Python abort.
            with contextlib.suppress(Exception):
                while True:
                    ledger.consume("acme", units=1)
        def loop():
            with contextlib.suppress(Exception):
                asyncio.run(main())
        threading.Thread(target=loop, daemon=True).start()
        threading.Thread(target=block, daemon=True).start()
        threading.Thread(target=block, daemon=True).start()
        started.wait()
        time.sleep(0.02)
    """
    for _ in range(5):
        run(code, path)
    assert 0 < spendable(path) < 1_000_000


def test_an_event_loop_may_ask_for_the_first_time_as_the_interpreter_ends(path: Path):
    """It is too late to make the worker thread, so whoever asks leads; nobody keeps the baton."""
    code = """
        import asyncio, atexit, sys, tillroll
        ledger = tillroll.open_async(sys.argv[1])
        async def last():
            receipts = await asyncio.gather(*(ledger.consume("acme", units=2) for _ in range(3)))
            print(*(receipt.units for receipt in receipts))
        atexit.register(lambda: asyncio.run(last()))
    """
    assert run(code, path) == "2 2 2\n"
    assert spendable(path) == 999_994


def test_close_answers_all_who_wait(path: Path):
    gate = Gate(SqliteStore(path))
    ledger = Ledger(Engine(gate))
    closing = threading.Thread(target=ledger.close)

    def close_meanwhile() -> None:
        closing.start()
        until(lambda: ledger._engine._closed)

    acts = [partial(ledger.consume, "acme", units=1, request_id=f"c{n}") for n in range(8)]
    receipts = all_at_once(ledger, gate, acts, close_meanwhile)
    join(closing)
    assert all(isinstance(receipt, Receipt) for receipt in receipts)
    with pytest.raises(tillroll.StoreClosed, match="nothing was written"):
        ledger.consume("acme", units=1)
    with pytest.raises(tillroll.StoreClosed, match="nothing was written"):
        ledger.balance("acme")
    ledger.close()
    assert spendable(path) == 1_000_000 - 8


def test_projects_on_one_engine_take_turns_and_share_no_batch(path: Path):
    gate = Gate(SqliteStore(path))
    one, other = (Ledger(engine, name) for engine in [Engine(gate)] for name in ("one", "other"))
    one.grant("acme", 100)
    other.grant("acme", 50)
    acts = [partial(side.consume, "acme", units=10) for _ in range(4) for side in (one, other)]
    before = gate.batches
    receipts = all_at_once(one, gate, acts)
    assert all(isinstance(receipt, Receipt) for receipt in receipts)
    assert gate.batches - before == 3  # what stood at the gate, then a batch for each project
    assert (one.balance("acme").available, other.balance("acme").available) == (60, 10)
    assert [other.balance("acme").seq, one.verify().ok, other.verify().ok] == [5, True, True]
    one.close()


def test_a_loop_that_was_closed_is_nobodys_trouble(path: Path):
    """Its callers are gone; what they asked for is done, and others are answered."""
    gate = Gate(SqliteStore(path))
    ledger = Ledger(Engine(gate))
    loop = asyncio.new_event_loop()
    build = ledger._verbs.consume

    async def ask() -> None:
        ledger._engine.submit((build("acme", units=1, request_id="gone"),), loop)

    def leave() -> None:
        loop.run_until_complete(ask())
        loop.close()

    entered = threading.Event()
    gate.before.append(lambda: (leave(), entered.set()))
    ledger.consume("acme", units=1, request_id="first")
    assert entered.is_set()
    assert ledger.consume("acme", units=1, request_id="after").units == 1
    assert ledger.consume("acme", units=1, request_id="gone").replayed
    ledger.close()
    assert spendable(path) == 1_000_000 - 3


# --- Ctrl-C -------------------------------------------------------------------------------------


def test_ctrl_c_in_the_leader_leaves_nobody_waiting(path: Path):
    """The leader is interrupted before its commit: the others are told, and may ask again."""
    gate = Gate(SqliteStore(path))
    ledger = Ledger(Engine(gate))

    def interrupt() -> None:
        raise KeyboardInterrupt

    interrupted: list[bool] = []

    def do(number: int) -> object:
        try:
            return ledger.consume("acme", units=1, request_id=f"c{number}")
        except KeyboardInterrupt:
            interrupted.append(True)
            return None

    told = all_at_once(ledger, gate, [partial(do, number) for number in range(6)], interrupt)
    assert interrupted == [True]
    errors = [error for error in told if error is not None]
    assert [type(error) for error in errors] == [tillroll.OutcomeUnknown] * 5
    for number in range(6):
        assert not ledger.consume("acme", units=1, request_id=f"c{number}").replayed
    ledger.close()
    assert spendable(path) == 1_000_000 - 6


def test_ctrl_c_within_the_transaction_rolls_back(path: Path):
    class Interrupting(Wrapped):
        armed = False

        @contextmanager
        def write(self) -> Iterator[object]:
            with self.inner.write() as tx:
                yield tx
                if self.armed:
                    self.armed = False
                    raise KeyboardInterrupt

    store = Interrupting(SqliteStore(path))
    ledger = Ledger(Engine(store))
    store.armed = True
    with pytest.raises(KeyboardInterrupt):
        ledger.consume("acme", units=1, request_id="c")
    assert ledger.balance("acme").spendable == 1_000_000
    assert not ledger.consume("acme", units=1, request_id="c").replayed
    ledger.close()
    assert spendable(path) == 999_999


def test_ctrl_c_while_waiting_takes_the_request_back(path: Path):
    """The main thread waits behind a batch; a signal frees it, and the batch goes on."""
    gate = Gate(SqliteStore(path))
    ledger = Ledger(Engine(gate))
    stopped, go_on = threading.Event(), threading.Event()
    gate.before.append(lambda: (stopped.set(), go_on.wait(60)))
    leader = threading.Thread(target=ledger.consume, args=("acme",), kwargs={"units": 1})
    leader.start()
    assert stopped.wait(60)
    main = threading.main_thread().ident
    assert main is not None

    def press() -> None:
        until(lambda: len(ledger._engine._queue) == 1)
        signal.pthread_kill(main, signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(KeyboardInterrupt):
        ledger.consume("acme", units=1, request_id="mine")
    go_on.set()
    join(leader)
    join(presser)
    assert ledger._engine._waiting == 0
    assert not ledger.consume("acme", units=1, request_id="mine").replayed
    ledger.close()
    assert spendable(path) == 999_998


def test_a_hundred_ctrl_cs_under_load_leave_nobody_waiting(path: Path):
    """Signals at any moment, in the leader and in who waits; all others go on to their end."""
    code = """
        import random, signal, sys, threading, tillroll
        ledger = tillroll.open(sys.argv[1])
        ends = []
        def load(thread):
            for number in range(600):
                name = f"t{thread}.{number}"
                while True:
                    try:
                        ledger.consume("acme", units=1, request_id=name)
                        break
                    except tillroll.OutcomeUnknown:
                        continue
            ends.append(thread)
        threads = [threading.Thread(target=load, args=(n,), daemon=True) for n in range(3)]
        for thread in threads:
            thread.start()
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        dice = random.Random(int(sys.argv[2]))
        hits = number = 0
        asked = []
        while hits < 100:
            try:
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.0001, 0.004))
                while True:
                    number += 1
                    ledger.consume("acme", units=1, request_id=f"m{number}")
            except KeyboardInterrupt:
                hits += 1
            except tillroll.OutcomeUnknown:
                pass
        signal.setitimer(signal.ITIMER_REAL, 0)
        for again in range(1, number + 1):
            ledger.consume("acme", units=1, request_id=f"m{again}")
        for thread in threads:
            thread.join(40)
        print(len(ends), number)
        ledger.close()
    """
    ends, number = map(int, run(code, path, 7).split())
    assert ends == 3
    assert spendable(path) == 1_000_000 - 3 * 600 - number


# --- poison and crowds --------------------------------------------------------------------------


def test_one_poison_request_fails_alone(path: Path):
    """The driver breaks on one of a batch: all others are answered as if it were not there."""

    class Poisoned(Gate):
        @contextmanager
        def write(self) -> Iterator[object]:
            with super().write() as tx:
                yield Refusing(tx)

    class Refusing:
        def __init__(self, inner: object) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

        def append(self, project: str, book: object) -> None:
            if any(sealed.entry.request_id == "poison" for sealed in book.appended):
                raise ValueError("the driver cannot take this")
            self.inner.append(project, book)

    assert "the driver cannot take this" in poisoned_batch(path, Poisoned)


def test_one_row_that_the_database_refuses_fails_alone(path: Path):
    """As above, by a constraint of the database itself."""
    with tillroll.open(path) as ledger, ledger.store.write() as tx:
        tx.connection.execute(
            "CREATE TRIGGER poison BEFORE INSERT ON tillroll_entries "
            "WHEN new.request_id = 'poison' BEGIN SELECT raise(ABORT, 'no poison'); END"
        )
    assert "no poison" in poisoned_batch(path, Gate)


def poisoned_batch(path: Path, wrapper: type[Gate]) -> str:
    """Write five in one batch; return what the one with the poison was told."""
    store = wrapper(SqliteStore(path))
    ledger = Ledger(Engine(store))
    names = ["c0", "c1", "poison", "c2", "c3"]
    acts = [partial(ledger.consume, "acme", units=1, request_id=name) for name in names]
    told = all_at_once(ledger, store, acts)
    poison = told.pop(2)
    assert isinstance(poison, tillroll.StoreUnavailable)
    assert poison.request_id == "poison"
    assert all(isinstance(receipt, Receipt) for receipt in told)
    ledger.close()
    assert spendable(path) == 1_000_000 - 4
    return str(poison)


def test_a_full_queue_turns_away_and_says_so(path: Path):
    gate = Gate(SqliteStore(path))
    ledger = Ledger(Engine(gate, waiting_max=3))
    seen: list[BaseException] = []

    def overflow() -> None:
        with pytest.raises(tillroll.Overloaded, match="nothing was written") as caught:
            ledger.consume("acme", units=1, request_id="late")
        seen.append(caught.value)
        with pytest.raises(tillroll.Overloaded):
            asyncio.run(AsyncLedger(ledger._engine).consume("acme", units=1))

    stopped, go_on = threading.Event(), threading.Event()
    gate.before.append(lambda: (stopped.set(), go_on.wait(60)))
    threads = [
        threading.Thread(target=ledger.consume, args=("acme",), kwargs={"units": 1})
        for _ in range(4)
    ]
    threads[0].start()
    assert stopped.wait(60)
    for thread in threads[1:]:
        thread.start()
    until(lambda: ledger._engine._waiting == 3)
    overflow()
    go_on.set()
    for thread in threads:
        join(thread)
    assert len(seen) == 1
    assert not ledger.consume("acme", units=1, request_id="late").replayed
    ledger.close()
    assert spendable(path) == 1_000_000 - 5
