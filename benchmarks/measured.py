"""Where results are kept: a folder for each kind of processor, so that none hides another."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Report = dict[str, Any]


def keep(kind: str, report: Report) -> None:
    """Write a report, in place of the last one of its kind on this kind of processor."""
    folder = HERE / "measured" / slug(report["machine"]["cpu"])
    folder.mkdir(parents=True, exist_ok=True)
    facts = {**report["machine"], "measured on": f"{datetime.now(UTC):%Y-%m-%d}"}
    text = json.dumps({**report, "machine": facts}, indent=2) + "\n"
    (folder / f"{kind}.json").write_text(text, encoding="utf-8")


def kept(kind: str) -> list[Report]:
    """Return the reports of a kind, one for each kind of processor."""
    paths = sorted((HERE / "measured").glob(f"*/{kind}.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def slug(cpu: str) -> str:
    """Return a processor's name as a folder's: `intel-xeon`."""
    words = re.sub(r"\(R\)|\(TM\)|\bProcessor\b|\bCPU\b|@.*", " ", cpu)
    return "-".join(re.findall(r"[a-z0-9.]+", words.lower())) or "unknown"


def heading(report: Report) -> list[str]:
    """Return the title of one machine's section."""
    return ["", f"## {report['machine']['cpu']}", ""]


def facts(report: Report) -> list[str]:
    """Return what the figures were measured on, as a table."""
    rows = (f"| {name} | {value} |" for name, value in report["machine"].items())
    return ["", "| machine | |", "|---|---|", *rows]
