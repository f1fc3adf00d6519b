"""`tillroll copy`: a ledger from one store to another, drawn as it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tillroll
from tillroll.cli import terminal as c
from tillroll.cli.views import table

if TYPE_CHECKING:
    from rich.progress import TaskID


def run(source: str, target: str, common: c.Common, *, keep: bool) -> int:
    """Copy, show progress, print what was found equal; return the exit code."""
    with c.progress(quiet=common.json) as bar:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=None)
            bar.update(tasks[what], completed=done)

        found = tillroll.copy(source, target, keep=keep, progress=show)
    if common.json:
        c.print_json(found.to_dict())
        return c.OK
    lines = table("compared and found equal", "count", right=("count",))
    for what in (
        "projects",
        "accounts",
        "entries",
        "refusals",
        "repeats",
        "price_versions",
        "documents",
        "events",
        "notes",
    ):
        lines.add_row(what.replace("_", " "), f"{getattr(found, what):,}")
    c.out.print(lines)
    c.say(f"[bold green]ok[/] {c.counted(found.copied, 'entry')} copied to {found.target}")
    if not found.kept:
        c.say(f"   {found.source} is read-only now; open the ledger at {found.target}")
    return c.OK
