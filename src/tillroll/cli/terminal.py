"""What every command shares: where the ledger is, how to answer, which exit code an error is."""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import tillroll

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from tillroll.ledger.receipts import Receipt

OK, FAILED, USAGE, REFUSED, CONFLICT = range(5)

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


@Parameter(name="*")
@dataclass
class Common:
    """Options of every command."""

    db: Annotated[
        str,
        Parameter(
            env_var=["TILLROLL_DATABASE_URL"],
            help="Where the ledger is: sqlite:///file.db, a path, or postgresql://host/database.",
        ),
    ] = "sqlite:///tillroll.db"
    project: Annotated[str, Parameter(help="The isolation boundary.")] = "default"
    read_db: Annotated[
        str | None,
        Parameter(
            env_var=["TILLROLL_READ_DATABASE_URL"],
            help="PostgreSQL: a standby to read from; it may be behind.",
        ),
    ] = None
    json: Annotated[bool, Parameter(negative=(), help="Print JSON instead of text and tables.")] = (
        False
    )

    def open(self) -> tillroll.Ledger:
        """Open the ledger that the options name, making it where there is none."""
        return tillroll.open(self.db, project=self.project, read_url=self.read_db)

    def known(self) -> tillroll.Ledger:
        """Open the ledger for what can only be about something in it; a wrong place is an error."""
        return tillroll.open(self.db, project=self.project, read_url=self.read_db, create=False)


def say(text: str, *, console: Console = out, style: str = "", markup: bool = True) -> None:
    """Print prose: broken between words on a terminal, left on one line for files and pipes."""
    console.print(text, style=style, markup=markup, soft_wrap=not console.is_terminal)


def counted(number: int, name: str) -> str:
    """Return a number with its noun: 1 account, 2 accounts; 1 entry, 2 entries."""
    if number != 1:
        name = f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"
    return f"{number:,} {name}"


def exit_code(error: tillroll.TillrollError) -> int:
    """Return the exit code that an error is answered with."""
    if isinstance(error, tillroll.Refused):
        return REFUSED
    if isinstance(error, tillroll.IdempotencyConflict):
        return CONFLICT
    return USAGE if isinstance(error, tillroll.InvalidInput) else FAILED


def show_error(error: tillroll.TillrollError, *, as_json: bool) -> None:
    """Say what went wrong, whether anything was written, and what would help."""
    if as_json:
        with suppress(OSError):  # the answer cannot be written; its exit code still says it
            print_json({"error": error.to_dict()})
        return
    label = error.code.replace("_", " ")
    say(f"[bold red]{label}[/]: {escape(str(error))}", console=err)
    if isinstance(error, tillroll.Refused):
        for way in error.ways_out:
            say(f"  - {way['text']}", console=err, markup=False)
    if error.written == "unknown" and error.request_id:
        say(f"  ask again with --request-id {error.request_id}", console=err, markup=False)


def show_failure(code: str, problem: Exception, *, written: str, as_json: bool) -> None:
    """Say what went wrong outside the ledger: at the options, or at a file."""
    if as_json:
        error = {"code": code, "message": str(problem), "written": written, "request_id": None}
        with suppress(OSError):  # it may be the output itself that failed
            print_json({"error": error})
            return
    say(f"[bold red]{code}[/]: {escape(str(problem))}", console=err)


def bear_any_encoding() -> None:
    """Have characters that the terminal's encoding lacks escaped, instead of failing at them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def stop_writing() -> None:
    """Leave quietly where the reader of a pipe has: nothing more reaches it, no error either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(value: object) -> None:
    """Print plain values as JSON, which stays JSON where the output's encoding lacks a sign."""
    plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=plain) + "\n")


_DONE = {
    "grant": "granted",
    "consume": "charged",
    "hold": "held",
    "settle": "charged",
    "release": "released",
    "in_doubt": "in doubt",
    "refund": "refunded",
    "void": "voided",
    "adjust": "adjusted",
}


def show_receipt(receipt: Receipt, common: Common, available: Decimal | None = None) -> None:
    """Print what a write answered; with what is available now, where more follows from it."""
    if common.json:
        print_json(receipt.to_dict())
        return
    done = _DONE.get(receipt.kind, receipt.kind.replace("_", " "))
    parts = [f"[bold green]ok[/] {done}"]
    if receipt.kind in _DONE:
        parts.append(f"[bold]{receipt.units:,f}[/] {receipt.wallet}")
    held = receipt.entry.entitlement
    if held is not None:
        on = f" on {escape(held.product)}" if held.product not in (None, held.name) else ""
        ends = "ended" if receipt.kind == "entitlement_ended" else held.status.replace("_", " ")
        kind = held.kind.replace("_", " ")
        named = kind if held.name == kind else f"{kind} {escape(held.name)}"
        parts = [f"[bold green]ok[/] {named}{on} {ends}"]
    tail = [f"{receipt.available if available is None else available:,f} available"]
    if receipt.held:
        tail.append(f"{receipt.held:,f} held")
    if receipt.shortfall:
        tail.append(f"[yellow]shortfall {receipt.shortfall:,f}[/]")
    if receipt.replayed:
        tail.append("[yellow]replayed[/]")
    out.print(" ".join(parts) + ", " + ", ".join(tail), soft_wrap=True)
    out.print(f"   request_id {receipt.request_id}", style="dim", markup=False, soft_wrap=True)


def pairs(values: Sequence[str], name: str) -> dict[str, str] | None:
    """Return NAME=VALUE texts as a mapping."""
    found = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if not equals or not key or not rest:
            raise tillroll.InvalidInput(f"{name} must be NAME=VALUE, not {value!r}")
        found[key] = rest
    return found or None


def metadata_of(text: str | None) -> Mapping[str, object] | None:
    """Return a JSON object given on the command line."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise tillroll.InvalidInput(f"--metadata is not JSON: {problem}") from None
    if not isinstance(value, dict):
        raise tillroll.InvalidInput("--metadata must be a JSON object")
    return value


def progress(*, quiet: bool) -> Progress:
    """Return a progress bar on standard error; silent for JSON and where nobody looks."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=quiet or not err.is_terminal,
    )
