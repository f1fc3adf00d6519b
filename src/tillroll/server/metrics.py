"""Figures for Prometheus. Several workers write to files of one folder and are added up."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client import multiprocess as several

from tillroll.jobs import DELIVERY, PRUNING, UPKEEP
from tillroll.ledger.errors import TillrollError
from tillroll.ledger.types import Refusal
from tillroll.wire import problems

if TYPE_CHECKING:
    from tillroll.engine import Batch
    from tillroll.jobs import Turn

MEDIA_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # the library's own name for it
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)


class Metrics:
    """What is measured, under the names that the dashboard and the alerts use."""

    def __init__(self, waiting_max: int) -> None:
        """Begin at zero, in a registry of its own.

        Args:
            waiting_max: How many writes may wait in this process.
        """
        self._registry = registry = CollectorRegistry()
        self._calls = Histogram(
            "tillroll_call_seconds",
            "Seconds from the head of a request to the end of its answer.",
            ["route", "status"],
            buckets=_SECONDS,
            registry=registry,
        )
        # Finding a child by its labels takes longer than counting.
        self._by_route: dict[tuple[str, int], Histogram] = {}
        self._commits = Histogram(
            "tillroll_commit_seconds",
            "Seconds that a batch took, from its load to its commit.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            "tillroll_batch_requests",
            "Requests committed together.",
            buckets=_SIZES,
            registry=registry,
        )
        self._answers = Counter(
            "tillroll_answers",
            "Writes by what was answered: entry, replayed, or a refusal's or an error's code.",
            ["answer"],
            registry=registry,
        )
        # A counter that is not there before it is first raised has never increased, to whoever
        # looks at what came in between: a first outcome_unknown would alert nobody.
        names = ("entry", "replayed", *problems.REFUSALS, *problems.ERRORS)
        self._by_answer = {name: self._answers.labels(name) for name in names}
        self._waiting = Gauge(
            "tillroll_waiting_requests",
            "Writes that wait.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        Gauge(
            "tillroll_waiting_requests_max",
            "Writes that may wait before new ones are turned away.",
            registry=registry,
            multiprocess_mode="livesum",
        ).set(waiting_max)
        self._in_doubt, self._oldest_due, self._upkept_at, *outbox = (
            Gauge(name, meaning, registry=registry, multiprocess_mode="livemax")
            for name, meaning in (
                ("tillroll_holds_in_doubt", "Holds whose outcome nobody knows."),
                ("tillroll_oldest_due_seconds", "How long the account due first has waited."),
                ("tillroll_upkeep_ended_timestamp_seconds", "When a round last ended well."),
                ("tillroll_outbox_lag_seconds", "Age of the oldest event not delivered."),
                ("tillroll_outbox_waiting", "Events and deliveries that wait."),
                ("tillroll_outbox_dead", "Deliveries that were given up."),
            )
        )
        self._outbox_lag, self._outbox_waiting, self._outbox_dead = outbox
        self._upkeep_failed = Counter(
            "tillroll_upkeep_failures", "Rounds of upkeep that failed.", registry=registry
        )
        self._sent = Counter(
            "tillroll_webhooks_sent", "Attempts to deliver a webhook.", registry=registry
        )
        self._failed = Counter(
            "tillroll_job_failures", "Turns of a job that failed.", ["task"], registry=registry
        )
        for job in (UPKEEP, DELIVERY, PRUNING):
            self._failed.labels(job)
        self._booked = Counter(
            "tillroll_due_accounts_booked", "Accounts that upkeep booked.", registry=registry
        )

    def called(self, route: str, status: int, seconds: float) -> None:
        """Count a call."""
        seen = self._by_route.get((route, status))
        if seen is None:
            seen = self._by_route[route, status] = self._calls.labels(route, str(status))
        seen.observe(seconds)

    def batch(self, batch: Batch) -> None:
        """Count a batch and what it answered."""
        self._commits.observe((batch.ended_ns - batch.began_ns) / 1e9)
        self._batches.observe(len(batch.requests))
        self._waiting.set(batch.waiting)
        counts: dict[str, int] = {}
        for answer in batch.answers:
            outcome = answer.outcome
            if answer.replayed:
                name = "replayed"
            else:
                name = outcome.code if isinstance(outcome, (Refusal, TillrollError)) else "entry"
            counts[name] = counts.get(name, 0) + 1
        for name, count in counts.items():
            seen = self._by_answer.get(name)
            if seen is None:
                seen = self._by_answer[name] = self._answers.labels(name)
            seen.inc(count)

    def turned(self, turn: Turn) -> None:
        """Take note of a turn of a job; what another process measures is not measured here."""
        if turn.problem is not None:
            self._failed.labels(turn.job).inc()
        told = turn.told or {}
        self._sent.inc(told.get("sent", 0))
        if turn.job != UPKEEP:
            return
        if turn.problem is not None:
            self._upkeep_failed.inc()
            return
        self._in_doubt.set(told.get("in_doubt", 0))
        self._oldest_due.set(told.get("oldest_due_seconds", 0))
        self._outbox_lag.set(told.get("outbox_lag_seconds", 0))
        self._outbox_waiting.set(told.get("outbox_waiting", 0))
        self._outbox_dead.set(told.get("outbox_dead", 0))
        self._booked.inc(told.get("booked", 0))
        if turn.ours:
            self._upkept_at.set(time.time())

    def page(self) -> bytes:
        """Return the figures as Prometheus reads them, of all workers where there are several."""
        if FOLDER not in os.environ:
            return generate_latest(self._registry)
        forget_the_dead(Path(os.environ[FOLDER]))
        registry = CollectorRegistry()
        several.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def forget_the_dead(folder: Path) -> None:
    """Leave out what workers said that live no more; what they counted stays counted."""
    for pid in {int(file.stem.rpartition("_")[2]) for file in folder.glob("gauge_live*_*.db")}:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            with suppress(FileNotFoundError):  # another worker was faster
                several.mark_process_dead(pid)  # type: ignore[no-untyped-call]
        except PermissionError:
            continue  # it lives
