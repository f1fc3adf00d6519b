"""The loop: named jobs, each done by one process at a time, a round every so often.

Who does a job holds its lease, a row in the store that he prolongs with each turn; where he ends
without a word, others find the lease over and go on. A lease that would last for longer
than anybody takes one is over, too: his clock was ahead. Leases save work and nothing more: every
job is right when several do it at once, since two clocks may disagree about when one is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from tillroll.ledger.types import SECOND
from tillroll.stores.outbox import SPANS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tillroll.engine import Engine
    from tillroll.stores.base import Writer

LEASE_SECONDS = 30.0  # at the least: a round takes much less
LEASE_ROUNDS = 3  # a job is another's after so many rounds that did not come
ROUNDS_MAX = 10_000  # of one job, by whoever runs all jobs once


def nothing() -> None:
    """Have nothing to close."""


class Job(NamedTuple):
    """Something to be done again and again.

    Attributes:
        name: What it is called; the same in every process.
        every: Seconds between two rounds.
        run: Does one round, bounded; returns what it did, and under `more` whether to go on at
            once.
        close: Called once, at the end.
        vital: Whether a process that cannot do it is not ready to serve.
        woken: Whether a balance that falls to where it is topped up begins a round at once.
    """

    name: str
    every: float
    run: Callable[[], Mapping[str, Any]]
    close: Callable[[], None] = nothing
    vital: bool = True
    woken: bool = False


class Turn(NamedTuple):
    """What came of one turn of a job.

    Attributes:
        ours: Whether this process does the job; where not, another one does.
        told: What the round did.
        problem: Why it failed.
    """

    job: str
    ours: bool
    told: Mapping[str, Any] | None = None
    problem: Exception | None = None


def tell_nobody(turn: Turn) -> None:
    """Take no note of a turn."""


class Worker:
    """Does jobs, each in turns of its own, until it is told to stop.

    Attributes:
        holder: What this process is called in leases.
    """

    def __init__(
        self,
        engine: Engine,
        jobs: Sequence[Job],
        *,
        holder: str | None = None,
        lease_seconds: float = LEASE_SECONDS,
        tell: Callable[[Turn], None] = tell_nobody,
    ) -> None:
        """Do these jobs on this engine's store; `tell` is told of every turn."""
        self._engine = engine
        self._jobs = jobs
        self._lease = lease_seconds
        self._tell = tell
        self._stopping = threading.Event()
        # Of their own: a job that waits for somebody else must not take a thread that calls need.
        self._threads = ThreadPoolExecutor(len(jobs) or 1, thread_name_prefix="tillroll-job")
        self._beats: dict[str, float] = {}
        self._failed: set[str] = set()
        self.holder = holder or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"

    def is_alive(self) -> bool:
        """Return whether vital jobs have turns, here or elsewhere; the first may be under way."""
        now = time.monotonic()
        return all(
            now - self._beats[job.name] < 3 * job.every + 10
            if job.name in self._beats
            else job.name not in self._failed
            for job in self._jobs
            if job.vital
        )

    def turn(self, job: Job) -> Turn:
        """Do one round of a job, if it is ours; what fails is told and tried again."""
        try:
            turn = self._turn(job)
        except Exception as problem:  # noqa: BLE001 - a loop that ends would be the greater harm
            turn = Turn(job.name, ours=True, problem=problem)
            self._failed.add(job.name)
        else:
            self._beats[job.name] = time.monotonic()
            self._failed.discard(job.name)
        self._tell(turn)
        return turn

    def _turn(self, job: Job) -> Turn:
        clock, perform = self._engine.clock, self._engine.perform
        span = int(max(self._lease, LEASE_ROUNDS * job.every) * SECOND)
        at = clock()
        with (
            self._engine.store.read_primary() as reader
        ):  # most turns end here where others do the job
            held = {lease.name: lease for lease in reader.leases()}.get(job.name)
        ours = held is not None and held.holder == self.holder
        if held is not None and not ours and at < held.ends_at <= at + SPANS_MAX * span:
            return Turn(job.name, ours=False)
        if ours and held is not None and span * 2 // 3 < held.ends_at - at <= span:
            return Turn(job.name, ours=True, told=job.run())  # not each turn writes
        if not perform(lambda tx: tx.take_lease(job.name, self.holder, at, at + span)):
            return Turn(job.name, ours=False)
        told = job.run()
        text = msgspec.json.encode(dict(told)).decode()
        ended = clock()
        perform(lambda tx: tx.end_lease(job.name, self.holder, ended, ended + span, text))
        return Turn(job.name, ours=True, told=told)

    # ------------------------------------------------------------ for as long as it runs

    async def run(self) -> None:
        """Do all jobs until `stop`, each in turns of its own."""
        loop = asyncio.get_running_loop()
        calls = [(job, asyncio.Event()) for job in self._jobs]

        def wake(*, everybody: bool) -> None:
            for job, call in calls:
                if everybody or job.woken:
                    call.set()

        self._wake = lambda everybody: _soon(loop, partial(wake, everybody=everybody))
        self._engine.wake = self.wake
        if self._stopping.is_set():
            return
        await asyncio.gather(*(self._keep(job, call) for job, call in calls))

    _wake: Callable[[bool], object] = staticmethod(lambda _: None)

    def wake(self) -> None:
        """Have the jobs that are `woken` do a round now, or after the one under way."""
        self._wake(False)  # noqa: FBT003 - not everybody

    async def _keep(self, job: Job, call: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            call.clear()
            turn = await loop.run_in_executor(self._threads, self.turn, job)
            more = turn.told is not None and bool(turn.told.get("more"))
            if not more and not self._stopping.is_set():
                await _either(call, job.every)

    def stop(self) -> None:
        """Have `run` return after the turns under way."""
        self._stopping.set()
        self._wake(True)  # noqa: FBT003 - everybody

    def close(self) -> None:
        """Close the jobs, and leave them to others at once."""
        self._threads.shutdown(wait=True)
        for job in self._jobs:
            job.close()
        at = self._engine.clock()
        for job in self._jobs:
            if job.name in self._beats:
                name = job.name
                self._engine.perform(partial(_leave, name=name, holder=self.holder, at=at))

    def run_once(self) -> list[Turn]:
        """Do every job until it has no more to do; return the last turn of each."""
        last = []
        for job in self._jobs:
            turn = self.turn(job)
            for _ in range(ROUNDS_MAX):
                if turn.told is None or not turn.told.get("more"):
                    break
                turn = self.turn(job)
            last.append(turn)
        return last


def _leave(tx: Writer, *, name: str, holder: str, at: int) -> None:
    """Leave a job to others; what was told of it stays."""
    held = [lease for lease in tx.leases() if (lease.name, lease.holder) == (name, holder)]
    for lease in held:
        tx.end_lease(name, holder, at, at, lease.told)


def _soon(loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> None:
    """Have a loop do something, if it is there still."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(act)


async def _either(wake: asyncio.Event, seconds: float) -> None:
    """Wait for so long, or until woken."""
    try:
        async with asyncio.timeout(seconds):
            await wake.wait()
    except TimeoutError:
        return


__all__ = ["Job", "Turn", "Worker"]
