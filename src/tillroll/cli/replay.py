"""The main job on real input: a usage trace through the whole path, with faults, and proven.

Each request is held for its worst case, "done" by a provider that may time out, and settled with
its real figures, by many callers at once. Some requests are sent twice, some again much later,
some callers crash between hold and settle and are restarted. At the end the charges must equal a
computation straight from the file, and every account must refold.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tillroll
from tillroll import catalog
from tillroll.cli import proof, traces
from tillroll.cli import terminal as c
from tillroll.cli.scenario import Fate, Options, Run
from tillroll.cli.views import table
from tillroll.ledger.units import parse_decimal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.progress import Progress, TaskID

    from tillroll.cli.traces import Row

PRICES = """\
# What the sample trace is priced with: credits for tokens of a code model.
[[price]]
operation = "llm.chat"
rates.input_tokens = { units = "0.50", per = 1_000 }
rates.output_tokens = { units = "1.50", per = 1_000 }
maximum_meters = { output_tokens = 1_024 }
"""
HOLD_LIFE = "15m"
AT_ONCE = timedelta(minutes=5)  # requests further apart in the trace never overlap
_DONE_AFTER_TIMEOUT = 0.5  # half of what times out had been done by the provider


class ProviderTimeoutError(TimeoutError):
    """The provider did not answer in time; it may or may not have done the work."""


class Crash(BaseException):
    """The caller's process is gone: nothing that it would have done happens."""


def run(path: Path, options: Options, common: c.Common, *, temporary: bool) -> int:
    """Replay a file, print what happened, prove it, and return the exit code."""
    with tempfile.TemporaryDirectory(prefix="tillroll-") as folder:
        url = f"sqlite:///{folder}/replay.db" if temporary else common.db
        report = replay(path, options, url, common.project, own=temporary, quiet=common.json)
    if common.json:
        c.print_json(report)
    else:
        show(report)
    return c.OK if report["proof"]["ok"] else c.FAILED


def replay(
    path: Path, options: Options, url: str, project: str, *, own: bool, quiet: bool
) -> dict[str, Any]:
    """Replay a file into a ledger and return the report.

    Args:
        path: The trace.
        options: What the command line set.
        url: The ledger's store.
        project: The isolation boundary.
        own: The ledger is the replay's own, so that its clock may follow the trace.
        quiet: Show no progress.
    """
    _check_shares(options)
    columns = traces.Columns(
        options.time_column,
        options.account_column,
        options.id_column,
        options.model_column,
        options.meters or {},
    )
    rows = traces.read(path, columns, accounts=options.accounts, limit=options.limit)
    draw = random.Random(options.seed)  # noqa: S311 - a simulation, not a secret
    fates = [_fate(draw, options, row) for row in rows]
    state = Run(latest=min(row.at for row in rows))
    clock = (lambda: state.latest) if own else None
    text = PRICES if options.prices is None else catalog.read(options.prices)
    book = catalog.parse(text, name=str(options.prices or "the sample's prices"))
    with ExitStack() as stack:
        bar = stack.enter_context(c.progress(quiet=quiet))
        ledger = stack.enter_context(tillroll.open(url, project=project, clock=clock))
        ledger.apply_prices(
            book.prices, overrides=book.overrides, author="replay", reason=f"to replay {path.name}"
        )
        names = sorted({row.account for row in rows})
        for name in names:
            ledger.grant(name, options.credits, request_id=f"replay-{path.stem}", source="replay")
        began = time.perf_counter()
        asyncio.run(_drive(ledger, rows, fates, options, state, bar))
        took = time.perf_counter() - began
        task = bar.add_task("proving", total=None)
        report = proof.report(
            ledger,
            path,
            rows,
            fates,
            state,
            options,
            text,
            lambda done: bar.update(task, completed=done),
        )
    report["seconds"] = round(took, 3)
    report["requests_per_second"] = round(len(rows) / took)
    report["commits_answered_per_second"] = round(state.counts["writes"] / took)
    return report


def _check_shares(options: Options) -> None:
    for name in ("retries", "late", "timeouts", "crashes"):
        if not 0 <= getattr(options, name) <= 1:
            raise tillroll.InvalidInput(f"--{name} must be a share from 0 to 1")
    if options.callers < 1 or options.accounts < 1:
        raise tillroll.InvalidInput("--callers and --accounts must be at least 1")


def _fate(draw: random.Random, options: Options, row: Row) -> Fate:
    """Draw what happens to a request; one that the file has again is delivered late for sure."""
    return Fate(
        retried=draw.random() < options.retries,
        late=draw.random() < options.late or row.repeats > 0,
        timeout=draw.random() < options.timeouts,
        done_after_timeout=draw.random() < _DONE_AFTER_TIMEOUT,
        crash=draw.random() < options.crashes,
    )


async def _drive(
    ledger: tillroll.Ledger,
    rows: Sequence[Row],
    fates: Sequence[Fate],
    options: Options,
    state: Run,
    bar: Progress,
) -> None:
    """Run all callers, then the restarted ones, the late duplicates, and the probe of doubts."""
    many = tillroll.AsyncLedger(ledger._engine)  # noqa: SLF001 - the same engine, awaited
    worker = _Caller(many, options, state)
    done = bar.add_task("replaying", total=len(rows))
    for begin, end in _stretches(rows):
        await _each(rows[begin:end], fates[begin:end], worker.serve, options.callers, bar, done)
    again = list(state.crashed)
    await _each(
        [rows[i] for i in again],
        [fates[i] for i in again],
        worker.restart,
        options.callers,
        bar,
        bar.add_task("restarting crashed callers", total=len(again)),
    )
    late = [i for i, fate in enumerate(fates) if fate.late]
    await _each(
        [rows[i] for i in late],
        [fates[i] for i in late],
        worker.deliver_late,
        options.callers,
        bar,
        bar.add_task("late duplicates", total=len(late)),
    )
    doubtful = state.doubtful
    await _each(
        [rows[i] for i in doubtful],
        [fates[i] for i in doubtful],
        worker.probe,
        options.callers,
        bar,
        bar.add_task("resolving doubts", total=len(doubtful)),
    )


def _stretches(rows: Sequence[Row]) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the stretches of a trace whose requests may be at work at once.

    The clock follows the trace. Were requests of different days at work together, the later would
    turn the clock past the deadline of the earlier's hold, which its caller never let pass.
    """
    begin = 0
    for index, row in enumerate(rows):
        if abs(row.at - rows[begin].at) > AT_ONCE:
            yield begin, index
            begin = index
    yield begin, len(rows)


async def _each(
    rows: Sequence[Row],
    fates: Sequence[Fate],
    serve: Any,
    callers: int,
    bar: Progress,
    task: TaskID,
) -> None:
    work: Iterator[tuple[Row, Fate]] = iter(zip(rows, fates, strict=True))

    async def caller() -> None:
        for row, fate in work:
            try:
                await serve(row, fate)
            except tillroll.InvalidInput as problem:
                raise tillroll.InvalidInput(f"row {row.number}: {problem}") from problem
            bar.advance(task)

    await asyncio.gather(*(caller() for _ in range(min(callers, max(len(rows), 1)))))


class _Caller:
    """The code a product would run around each provider call, and the faults that befall it."""

    def __init__(self, ledger: tillroll.AsyncLedger, options: Options, state: Run) -> None:
        self.ledger = ledger
        self.options = options
        self.state = state
        worst = options.worst_case or {}
        self.worst = {meter: parse_decimal(value, meter) for meter, value in worst.items()}

    async def serve(self, row: Row, fate: Fate) -> None:
        """Hold, call the provider, settle; or whatever happens instead."""
        self.state.latest = max(self.state.latest, row.at)
        try:
            await self._work(row, fate)
        except ProviderTimeoutError:
            self.state.outcomes[row.number] = "in_doubt"
            self.state.doubtful.append(row.number - 1)
        except Crash:
            self.state.outcomes[row.number] = "crashed"
            self.state.crashed.append(row.number - 1)
        except tillroll.HoldExpired:  # in a sparse trace the clock leaps while work is under way
            self.state.counts["came too late"] += 1
            await self._recover(row)
        except tillroll.Refused as refusal:
            self.state.outcomes[row.number] = "refused"
            self.state.counts[f"refused {refusal.code}"] += 1
            if fate.retried:
                await self._same_refusal(row, refusal)

    async def _work(self, row: Row, fate: Fate) -> None:
        hold = await self._hold(row)
        if fate.retried:
            self._expect(row, hold.receipt, (await self._hold(row)).receipt)
        if fate.crash:
            raise Crash
        try:
            async with _Guard(hold):
                if fate.timeout:
                    raise ProviderTimeoutError
                receipt = await self._settle(row)
                hold.ended = receipt
        finally:
            self.state.counts["writes"] += 1
        self._charged(row, receipt)
        if fate.retried:
            self._expect(row, receipt, await self._settle(row))

    async def restart(self, row: Row, _: Fate) -> None:
        """Do the whole request again, as a restarted caller does: the hold is a repeat."""
        hold = await self._hold(row)
        if not hold.receipt.replayed:
            self.state.wrong.append(f"row {row.number}: the hold of a crashed caller was lost")
        try:
            self._charged(row, await self._settle(row))
            self.state.counts["restarted"] += 1
        except tillroll.HoldExpired:
            self.state.counts["came too late"] += 1
            await self._recover(row)

    async def _recover(self, row: Row) -> None:
        """Charge work whose hold expired meanwhile, if the account can still pay for it."""
        try:
            self._charged(row, await self._consume(row))
            self.state.counts["recovered by consume"] += 1
        except tillroll.InsufficientUnits:
            self.state.outcomes[row.number] = "uncollected"

    async def deliver_late(self, row: Row, _: Fate) -> None:
        """Deliver a request once more, long after it was answered."""
        outcome = self.state.outcomes[row.number]
        try:
            hold = await self._hold(row)
        except tillroll.Refused as refusal:
            if outcome != "refused" or not refusal.replayed:
                self.state.wrong.append(f"row {row.number}: a late duplicate was decided anew")
            self.state.counts["replayed"] += 1
            return
        if outcome == "refused" or not hold.receipt.replayed:
            self.state.wrong.append(f"row {row.number}: a late duplicate was decided anew")
        self.state.counts["replayed"] += 1

    async def probe(self, row: Row, fate: Fate) -> None:
        """Ask the provider what became of a request that timed out, and end the doubt."""
        done = fate.done_after_timeout
        try:
            receipt = await self.ledger.resolve(
                row.account,
                row.request_id,
                "done" if done else "not_done",
                meters=row.meters if done else None,
                request_id=f"{row.request_id}/probe",
            )
        except tillroll.HoldExpired:
            self.state.outcomes[row.number] = "expired in doubt"
            return
        self.state.counts["writes"] += 1
        if done:
            self._charged(row, receipt)
            self.state.counts["resolved as done"] += 1
        else:
            self.state.outcomes[row.number] = "not done"
            self.state.counts["resolved as not done"] += 1

    async def _hold(self, row: Row) -> tillroll.AsyncOpenHold:
        self.state.counts["writes"] += 1
        return await self.ledger.hold(
            row.account,
            self.options.operation,
            model=row.model,
            meters={
                meter: self.worst.get(meter, quantity)
                for meter, quantity in row.meters.items()
                if meter in self.worst or not meter.startswith("output")
            },
            expires_in=HOLD_LIFE,
            request_id=row.request_id,
            effective_at=None,
        )

    async def _settle(self, row: Row) -> tillroll.Receipt:
        return await self.ledger.settle(
            row.account,
            row.request_id,
            meters=row.meters,
            request_id=f"{row.request_id}/settle",
        )

    async def _consume(self, row: Row) -> tillroll.Receipt:
        return await self.ledger.consume(
            row.account,
            self.options.operation,
            model=row.model,
            meters=row.meters,
            request_id=f"{row.request_id}/late",
        )

    async def _same_refusal(self, row: Row, first: tillroll.Refused) -> None:
        try:
            await self._hold(row)
        except tillroll.Refused as again:
            if not again.replayed or str(again) != str(first):
                self.state.wrong.append(f"row {row.number}: the refusal changed")
            self.state.counts["replayed"] += 1
        else:
            self.state.wrong.append(f"row {row.number}: a refused request was granted later")

    def _charged(self, row: Row, receipt: tillroll.Receipt) -> None:
        self.state.outcomes[row.number] = "charged"
        if receipt.shortfall:
            self.state.counts["shortfall"] += 1

    def _expect(self, row: Row, first: tillroll.Receipt, again: tillroll.Receipt) -> None:
        if not again.replayed or again != first:
            self.state.wrong.append(f"row {row.number}: a repeat got another answer")
        self.state.counts["replayed"] += 1


class _Guard:
    """The hold's own context manager, which a crash does not get to run."""

    def __init__(self, hold: tillroll.AsyncOpenHold) -> None:
        self.hold = hold

    async def __aenter__(self) -> tillroll.AsyncOpenHold:
        return self.hold

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await self.hold.end(error)


def show(report: dict[str, Any]) -> None:
    """Print what happened and what was proven."""
    c.say(
        f"[bold]{report['file']}[/]: {report['requests']:,} requests of {report['accounts']} "
        f"accounts by {report['callers']} callers in {report['seconds']:.1f} s, "
        f"{report['requests_per_second']:,} requests/s"
    )
    if report["repeated_rows"]:
        repeated = c.counted(report["repeated_rows"], "row")
        c.say(f"   {repeated} of the file repeat another's id, and are charged with it, once")
    lines = table("outcome", "requests", "credits", right=("requests", "credits"))
    for row in report["outcomes"]:
        lines.add_row(row["outcome"], f"{row['requests']:,}", row["units"])
    c.out.print(lines)
    faults = table("what went wrong on the way", "times", "", right=("times",))
    for row in report["faults"]:
        faults.add_row(row["fault"], f"{row['times']:,}", row["effect"])
    c.out.print(faults)
    found = report["proof"]
    for check in found["checks"]:
        mark = "[bold green]ok[/]" if check["ok"] else "[bold red]WRONG[/]"
        c.say(f"{mark} {check['check']}")
    for line in found["wrong"][:10]:
        c.say(f"   {line}", style="red", markup=False)
