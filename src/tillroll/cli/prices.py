"""The price book on the command line: what would change, who would pay more, then apply."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

import tillroll
from tillroll import catalog
from tillroll.catalog.plan import UsageRecord
from tillroll.cli.terminal import Common, counted, out, print_json
from tillroll.cli.views import table, when
from tillroll.ledger.calendar import show_instant
from tillroll.ledger.pricing import PriceVersion, new_version
from tillroll.ledger.products import SECTIONS, check_products
from tillroll.ledger.units import parse_decimal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_COLORS = {"+": "green", "-": "red", "~": "yellow", "!": "bold red"}


def _show_lines(lines: Sequence[tuple[str, str]]) -> None:
    for sign, text in lines:
        out.print(f"{sign} {text}", style=_COLORS.get(sign, ""), markup=False, soft_wrap=True)


def plan(common: Common, file: Path, days: int, group: str = "prices") -> None:
    """Show what a price file would change, and what it would have done to real usage."""
    wanted = catalog.load(file)
    with common.known() as ledger:
        book = ledger.prices()
        current = book.versions.get(book.current)
        check_products(wanted.products, ledger.scale)
        changes = catalog.diff(current, wanted.prices, wanted.overrides, wanted.products)
        draft = new_version(book.current + 1, wanted.prices, overrides=wanted.overrides)
        affected: list[catalog.Effect] = []
        if changes.products:
            held = (catalog.Holding(**msgspec.structs.asdict(one)) for one in ledger.holdings())
            affected = catalog.effects(held, book, wanted.products)
        effect = None
        if current is not None and not changes.empty:
            usage = _past_usage(ledger, days)
            effect = catalog.impact(usage, current, draft, scale=ledger.scale)
    if common.json:
        print_json(
            {
                "plan": changes.to_dict(),
                "impact": None if effect is None else effect.to_dict(),
                "affected": msgspec.to_builtins(affected),
                "days": days,
            }
        )
        return
    if changes.empty:
        out.print("[bold green]ok[/] nothing would change")
        return
    _show_lines(changes.lines())
    if affected:
        out.print("\n[bold]Who holds what would change[/]")
    for one in affected:
        _show_lines(one.lines())
    if effect is not None:
        out.print(f"\n[bold]On the usage of the last {days} days[/]")
        _show_lines(effect.lines())
    out.print(
        f"\nnothing was written; to apply: tillroll {group} apply --reason '...'", style="dim"
    )


def _past_usage(ledger: tillroll.Ledger, days: int) -> Iterator[UsageRecord]:
    """Yield the charges of the last days as requests to be priced anew."""
    since = datetime.now(UTC) - timedelta(days=days)
    for receipt in ledger.entries():
        entry = receipt.entry
        if receipt.kind not in ("consume", "settle") or receipt.effective_at < since:
            continue
        if entry.operation is not None:
            yield UsageRecord(
                account=receipt.account,
                operation=entry.operation,
                model=entry.model,
                meters=entry.meters or {},
                attributes=entry.attributes or {},
                units=receipt.units,
                at=entry.effective_at,
            )


def _models_in_force(common: Common) -> Sequence[str]:
    """Return the models that the price book in force names; none where there is no book."""
    with common.known() as ledger:
        book = ledger.prices()
    current = book.versions.get(book.current)
    return catalog.models_in_book(current) if current else ()


def propose(
    common: Common,
    models: Sequence[str] | None,
    markup: str,
    units_per_usd: str,
    operation: str,
) -> None:
    """Print vendors' prices as a price file to be looked at; nothing is applied."""
    named = models or _models_in_force(common)
    if not named:
        raise tillroll.InvalidInput(
            "name models with --model PROVIDER:MODEL; the price book in force names none"
        )
    proposals = catalog.propose(
        named,
        markup=parse_decimal(markup, "markup"),
        units_per_usd=parse_decimal(units_per_usd, "units_per_usd"),
        operation=operation,
    )
    text = catalog.dump(proposals.prices)
    if common.json:
        print_json(
            {
                "toml": text,
                "source": proposals.source,
                "skipped": msgspec.to_builtins(proposals.skipped),
                "notes": msgspec.to_builtins(proposals.notes),
            }
        )
        return
    out.print(
        f"# proposed from {proposals.source}; review, then put into your price file",
        style="dim",
        markup=False,
        soft_wrap=True,
    )
    out.print(text, markup=False, soft_wrap=True)
    for item in proposals.skipped:
        out.print(f"# skipped {item}", style="yellow", markup=False, soft_wrap=True)


def apply(common: Common, file: Path, author: str, reason: str) -> None:
    """Write a price file as a new version."""
    wanted = catalog.load(file)
    with common.open() as ledger:
        before = ledger.prices().current
        version = ledger.apply_prices(
            wanted.prices,
            overrides=wanted.overrides,
            products=wanted.products,
            author=author,
            reason=reason,
        )
    if common.json:
        print_json({**_summary(version), "new": version.number != before})
        return
    if version.number == before:
        out.print(f"[bold green]ok[/] version {before} says this already; nothing was written")
        return
    out.print(
        f"[bold green]ok[/] price version {version.number} is in force: {len(version.prices)} "
        f"prices, {_sold(version)}digest {version.digest[:12]}"
    )


def _sold(version: PriceVersion) -> str:
    """Say how many products a version sells; nothing of none."""
    count = _products(version)
    return f"{counted(count, 'product')}, " if count else ""


def _products(version: PriceVersion) -> int:
    return sum(len(getattr(version.products, field)) for field in SECTIONS)


def _summary(version: PriceVersion) -> dict[str, object]:
    return {
        "version": version.number,
        "digest": version.digest,
        "prices": len(version.prices),
        "overrides": sum(len(rules) for rules in version.overrides.values()),
        "products": _products(version),
        "author": version.author,
        "reason": version.reason,
        "applied_at": show_instant(version.applied_at),
    }


def show_versions(common: Common) -> None:
    """List the versions, newest first."""
    with common.known() as ledger:
        book = ledger.prices()
    versions = [book.versions[number] for number in sorted(book.versions, reverse=True)]
    if common.json:
        print_json([_summary(version) for version in versions])
        return
    if not versions:
        out.print("no price version yet; write tillroll.toml and: tillroll prices apply")
        return
    lines = table(
        "version",
        "applied (UTC)",
        "author",
        "reason",
        "prices",
        "digest",
        right=("version", "prices"),
    )
    for version in versions:
        lines.add_row(
            str(version.number),
            when(show_instant(version.applied_at)),
            version.author,
            version.reason,
            str(len(version.prices)),
            version.digest[:12],
        )
    out.print(lines)


def show_version(common: Common, number: int | None) -> None:
    """Show one version as a price file."""
    with common.known() as ledger:
        book = ledger.prices()
    if not book.current:
        raise tillroll.NotFound("no price version yet")
    version = book.version(book.current if number is None else number)
    text = catalog.dump(version.prices, version.overrides, version.products)
    if common.json:
        print_json({**_summary(version), "toml": text})
        return
    out.print(
        f"# version {version.number} by {version.author}: {version.reason}",
        style="dim",
        markup=False,
        soft_wrap=True,
    )
    out.print(text, markup=False, soft_wrap=True)
