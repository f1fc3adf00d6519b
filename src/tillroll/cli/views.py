"""What people see: tables and stories on a terminal."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.measure import Measurement
from rich.panel import Panel
from rich.segment import Segments
from rich.table import Table

from tillroll.cli.terminal import counted, out, say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tillroll.ledger.access import Access
    from tillroll.ledger.receipts import Receipt
    from tillroll.queries import Balance, Page, Verification


# Columns that are never broken; ids are, where they are too long.
_WHOLE = {"time (UTC)", "kind", "state", "category", "expires", "ends", "resets"}
WIDEST = 1_000  # more than all columns of a table have together, but for an id
_SHORT = 16  # an operation up to this length is not broken either
_FRACTION = re.compile(r"(?<=:\d\d)\.\d+(?=Z)")


def table(
    *columns: str,
    title: str | None = None,
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> Table:
    """Return an empty table; columns in `right` hold numbers, those in `whole` are not broken."""
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        if column in right:
            made.add_column(column, justify="right", no_wrap=True)
        else:
            made.add_column(column, overflow="fold", no_wrap=column in _WHOLE or column in whole)
    return made


def when(text: str | None) -> str:
    """Return an instant cut to seconds, as people read it."""
    return "" if text is None else text[:19].replace("T", " ")


def until(text: str | None) -> str:
    """Return an instant cut to minutes: enough to know when a grant ends."""
    return when(text)[:16]


def grouped(units: str) -> str:
    """Return a decimal string with thousands set apart."""
    whole, point, part = units.partition(".")
    return f"{int(whole):,}{point}{part}" if whole != "-0" else units


def show_access(found: Access) -> None:
    """Show an answer about access, and what would help where it is no."""
    label = "[bold green]allowed[/]" if found.allowed else "[bold red]not allowed[/]"
    said = f"{label}: {escape(found.message)}"
    if not found.allowed:
        said += f" ({found.reason.replace('_', ' ')})"
    if found.value is not None and not isinstance(found.value, bool):
        said += f", {escape(str(found.feature))} is {escape(str(found.value))}"
    if found.ends_at is not None:
        said += f", until {until(found.ends_at)}"
    say(said)
    if found.by:
        say(f"  by {', '.join(found.by)}", style="dim", markup=False)
    if found.left is not None:
        say(f"  tightest: {found.tightest}, {grouped(found.left)} left", style="dim", markup=False)
    for way in found.ways_out:
        say(f"  - {way['text']}", markup=False)


def show_entitlements(found: Sequence[Mapping[str, Any]]) -> None:
    """Show what an account may use, a line a right."""
    if not found:
        say("nothing", style="dim")
        return
    lines = table("kind", "name", "product", "state", "brings", "ends")
    for one in found:
        if one["kind"] == "usage_pack":
            brings = f"{grouped(one['available'])} of {grouped(one['units'])} {one['wallet']}"
        else:
            rights = [
                name if value is True else f"{name} {value}"
                for name, value in one["features"].items()
            ]
            rights += [f"{grouped(g['units'])} {g['wallet']}" for g in one["grants"]]
            brings = ", ".join(rights)
        product = f"{one['product'] or ''}"
        if one["version"]:
            product += f" (version {one['version']})"
        cells = (one["kind"], one["name"], product, one["status"], brings, until(one["ends_at"]))
        lines.add_row(*(escape(str(cell)) for cell in cells))
    out.print(lines)


def show_balance(balance: Balance) -> None:
    """Show a balance, its grants, holds and budgets."""
    state = "" if balance.status == "open" else f" [bold red]{balance.status}[/]"
    out.print(
        f"[bold]{escape(balance.account)}[/]{state}  "
        f"[bold green]{balance.available:,f}[/] {balance.wallet} available"
    )
    rows = [
        ("held", balance.held),
        ("used", balance.used),
        ("expired", balance.expired),
        ("issued", balance.issued),
    ]
    if balance.overdraft_limit:
        rows.append(("overdraft limit", balance.overdraft_limit))
    out.print("  " + "   ".join(f"{name} {value:,f}" for name, value in rows), style="dim")
    if not balance.seq:
        say(f"  no entry of this account up to {when(balance.as_of)}", style="dim")
    if balance.grants:
        grants = table(
            "grant",
            "category",
            "remaining",
            "on hold",
            "of",
            "expires",
            "for",
            right=("remaining", "on hold", "of"),
        )
        for grant in balance.grants:
            grants.add_row(
                escape(grant["id"]),
                "scheduled" if grant["scheduled"] else grant["category"],
                grouped(grant["remaining"]),
                grouped(grant["on_hold"]),
                grouped(grant["units"]),
                until(grant["expires_at"]) or "never",
                ", ".join(grant["applies_to"]) or "everything",
            )
        out.print(grants)
    if balance.holds:
        holds = table("hold", "state", "held", "operation", "ends", right=("held",))
        for hold in balance.holds:
            holds.add_row(
                escape(hold["id"]),
                hold["state"],
                grouped(hold["held"]),
                escape(hold["operation"] or ""),
                when(hold["expires_at"]),
            )
        out.print(holds)
    if balance.budgets:
        budgets = table("budget", "node", "spent", "cap", "resets", right=("spent", "cap"))
        for budget in balance.budgets:
            budgets.add_row(
                escape(budget["name"]),
                escape(budget["node"]),
                grouped(budget["spent"]),
                grouped(budget["cap"]),
                when(budget["resets_at"]) or "never",
            )
        out.print(budgets)


_SIGNS = {
    "grant": "+",
    "grant_activated": "+",
    "grant_renewed": "+",
    "consume": "-",
    "settle": "-",
    "refund": "+",
    "grant_expired": "-",
    "void": "-",
}


def show_statement(account: str, page: Page) -> None:
    """Show a page of a statement."""
    shown = (*page.due, *page.receipts)
    if not shown:
        out.print(f"{account} has no entries here", markup=False)
        return
    longest = max(len(receipt.operation or "") for receipt in shown)
    lines = table(
        "seq",
        "time (UTC)",
        "kind",
        "units",
        "available",
        "operation",
        "id",
        right=("seq", "units", "available"),
        whole=("operation",) if longest <= _SHORT else (),
    )
    for receipt in shown:
        sign = _SIGNS.get(receipt.kind, "")
        color = {"+": "green", "-": "red"}.get(sign, "")
        units = f"{sign}{receipt.units:,f}" if receipt.units else ""
        lines.add_row(
            str(receipt.seq),
            f"{receipt.effective_at if receipt.due else receipt.recorded_at:%y-%m-%d %H:%M:%S}",
            f"{receipt.kind} (due)" if receipt.due else receipt.kind,
            f"[{color}]{units}[/]" if color else units,
            f"{receipt.available:,f}",
            escape(receipt.operation or ""),
            escape(receipt.ref or receipt.request_id or ""),  # what `explain` tells the story of
        )
    if _width(lines) <= out.width:
        out.print(lines)
    else:
        _show_wide(lines)
    if page.next is not None:
        out.print(f"more: --before {page.next}", style="dim")


def _show_wide(lines: Table) -> None:
    """Show a table whose last column is too long for the line: below the others, and whole.

    An id is there to be copied, and one broken over several lines cannot be.
    """
    last = lines.columns.pop()
    head, *rows = out.render_lines(lines, out.options.update_width(_width(lines)), pad=False)
    for row, cell in zip([head, *rows], ["", *last.cells], strict=True):
        out.print(Segments(row), soft_wrap=True, end="")
        out.print(f"\n     {cell}" if cell else "", style="dim", soft_wrap=True)


def _width(lines: Table) -> int:
    """Return how wide a table would be of itself."""
    return Measurement.get(out, out.options.update_width(WIDEST), lines).maximum


def show_usage(groups: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Show usage by group."""
    if not rows:
        out.print("nothing was used")
        return
    lines = table(*groups, "units", "refunded", "count", right=("units", "refunded", "count"))
    for row in rows:
        lines.add_row(
            *(escape(row[group]) for group in groups),
            grouped(row["units"]),
            grouped(row["refunded"]),
            f"{row['count']:,}",
        )
    out.print(lines)


def show_story(story: dict[str, Any]) -> None:
    """Show why something was charged or refused."""
    refused = story["outcome"] == "refused"
    color = "red" if refused else "green"
    head = f"[bold]{escape(story['request_id'])}[/] of [bold]{escape(story['account'])}[/]"
    words = "\n".join(escape(_FRACTION.sub("", sentence)) for sentence in story["sentences"])
    out.print(Panel(words, title=f"{head}: [{color}]{story['outcome']}[/]", title_align="left"))
    if refused:
        return
    price = story["price"]
    if price:
        by = f" by {price['author']}" if price["author"] else ""
        out.print(f"[bold]Price[/] version {price['version']}{by}, rule {escape(price['rule'])}")
        for line in price["arithmetic"][1:]:  # the first names version and rule again
            out.print(f"  {line}", markup=False)
    if story["paid_by"]:
        grants = table("paid by grant", "units", "category", "expires", "source", right=("units",))
        for row in story["paid_by"]:
            grants.add_row(
                escape(row["grant"]),
                grouped(row["units"]),
                row.get("category") or "",
                until(row.get("expires_at")) or "never",
                escape(row.get("source") or ""),
            )
        out.print(grants)
    who = [line["actor"] or "" for line in story["timeline"]]
    lines = table(
        "seq",
        "time (UTC)",
        "kind",
        "units",
        "available after",
        "held after",
        *(["by"] if any(who) else []),
        right=("seq", "units", "available after", "held after"),
    )
    for line, actor in zip(story["timeline"], who, strict=True):
        lines.add_row(
            str(line["seq"]),
            when(line["recorded_at"]),
            line["kind"],
            grouped(line["units"]),
            grouped(line["available"]),
            grouped(line["held"]),
            *([escape(actor)] if any(who) else []),
        )
    out.print(lines)
    out.print(
        f"available before {grouped(story['available_before'])}, "
        f"after {grouped(story['available_after'])}",
        style="dim",
    )


def show_verification(found: Verification) -> None:
    """Show what a check of histories found."""
    if found.ok:
        say(
            f"[bold green]ok[/] {counted(found.accounts, 'account')}, "
            f"{counted(found.entries, 'entry')}: every hash matches, every account refolds"
        )
        return
    lines = table("account", "seq", "problem", title="[bold red]problems[/]", right=("seq",))
    for problem in found.problems:
        lines.add_row(
            escape(problem["account"] or ""), str(problem["seq"] or ""), escape(problem["problem"])
        )
    out.print(lines)


EXPORT_COLUMNS = (
    "account",
    "seq",
    "kind",
    "recorded_at",
    "effective_at",
    "request_id",
    "ref",
    "wallet",
    "units",
    "available",
    "held",
    "used",
    "expired",
    "issued",
    "shortfall",
    "operation",
    "model",
    "price_version",
    "reason",
    "actor",
    "tags",
    "meters",
    "postings",
    "due",
)


def export_row(receipt: Receipt) -> dict[str, Any]:
    """Return an entry as a flat row of texts: what has parts becomes JSON, what is not is empty."""
    row = receipt.to_dict()
    row["price_version"] = receipt.price_version
    row["due"] = "true" if receipt.due else ""
    for name in ("tags", "meters", "postings"):
        row[name] = json.dumps(row[name], ensure_ascii=False) if row[name] else ""
    return row


def export_line(receipt: Receipt) -> str:
    """Return an entry as one line of JSON: as a receipt is shown everywhere, and whether due."""
    row = receipt.to_dict() | {"due": receipt.due}
    return json.dumps(row, ensure_ascii=False) + "\n"
