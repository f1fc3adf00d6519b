"""Is this installation sound? The library, the database and every history in it."""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import tillroll
from tillroll.cli import terminal as c
from tillroll.cli.views import table


def run(common: c.Common, *, conformance: bool) -> int:
    """Run the checks, print them and return the exit code."""
    checks: list[dict[str, Any]] = [
        {"check": "tillroll", "found": tillroll.__version__, "ok": True},
        {"check": "Python", "found": sys.version.split()[0], "ok": sys.version_info >= (3, 11)},
    ]
    with common.known() as ledger, c.progress(quiet=common.json) as bar:
        checks += [
            {"check": name, "found": found, "ok": ok} for name, found, ok in ledger.store.facts()
        ]
        task = bar.add_task("refolding entries", total=None)
        found = ledger.verify(progress=lambda done: bar.update(task, completed=done))
        checks.append(
            {
                "check": "histories",
                "found": ", ".join(
                    (c.counted(found.accounts, "account"), c.counted(found.entries, "entry"))
                )
                if found.ok
                else str(found.problems[0]["problem"]),
                "ok": found.ok,
            }
        )
    if conformance:
        checks += _conformance()
    good = all(check["ok"] for check in checks)
    if common.json:
        c.print_json({"ok": good, "checks": checks})
    else:
        lines = table("", "check", "found")
        for check in checks:
            mark = "[bold green]ok[/]" if check["ok"] else "[bold red]WRONG[/]"
            lines.add_row(mark, check["check"], check["found"])
        c.out.print(lines)
    return c.OK if good else c.FAILED


def _conformance() -> list[dict[str, Any]]:
    """Run the conformance suite on a store of its own."""
    from tillroll.testing import conformance  # noqa: PLC0415 - only when asked for

    with tempfile.TemporaryDirectory(prefix="tillroll-") as folder:
        url = f"sqlite:///{folder}/conformance.db"
        report = conformance.run(lambda clock: tillroll.open(url, clock=clock))
    return [
        {
            "check": f"promise: {result.name.replace('_', ' ')}",
            "found": "holds" if result.ok else result.message,
            "ok": result.ok,
        }
        for result in report.results
    ]
