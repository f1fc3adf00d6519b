"""The proof after a replay: the file itself, computed another way, against the ledger.

Nothing here uses the ledger's pricing: amounts come from the price file's decimals and the
trace's own numbers in exact fractions.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any

import tillroll

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tillroll.cli.scenario import Fate, Options, Run
    from tillroll.cli.traces import Row


def amount(row: Row, prices: dict[str, Any], scale: int) -> Decimal | None:
    """Return what a row must cost, rounded up once, from the price file's own numbers.

    Returns:
        The units; None where the price is of a kind that this computation does not know, such as
        tiers, so that the proof says so instead of guessing.
    """
    rates = prices.get("rates", {})
    simple = {"operation", "rates", "maximum_meters", "per_request"}
    if set(prices) - simple or any(set(rate) - {"units", "per"} for rate in rates.values()):
        return None
    if set(row.meters) - set(rates):
        return None
    exact = Fraction(str(prices.get("per_request", 0)))
    for meter, quantity in row.meters.items():
        rate = rates[meter]
        exact += Fraction(quantity) * Fraction(str(rate["units"])) / rate.get("per", 1)
    return Decimal(ceil(exact * 10**scale)).scaleb(-scale)


def report(
    ledger: tillroll.Ledger,
    path: Path,
    rows: Sequence[Row],
    fates: Sequence[Fate],
    state: Run,
    options: Options,
    prices: str,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Return what happened and what was proven, as plain values."""
    charges = _charges(ledger, rows, path)
    tables = [t for t in tomllib.loads(prices)["price"] if t["operation"] == options.operation]
    rule = tables[0] if len(tables) == 1 else {"unknown": True}
    expected = {
        row.number: amount(row, rule, ledger.scale)
        for row in rows
        if state.outcomes.get(row.number) == "charged"
    }
    checks, wrong = compare(charges, expected, state)
    found = ledger.verify(progress=progress)
    accounts = {row.account for row in rows}
    open_holds = sum(len(ledger.balance(name).holds) for name in accounts)
    below = [name for name in accounts if ledger.balance(name).available < 0]
    checks += [
        _check(
            f"every one of {found.accounts} accounts refolds: {found.entries:,} entries, "
            f"every hash matches",
            found.ok,
        ),
        _check("no hold is left open", open_holds == 0),
        _check("no account is below zero", not below),
        _check(f"all {state.counts['replayed']:,} repeats got the first answer", not state.wrong),
    ]
    wrong += state.wrong + [str(problem) for problem in found.problems]
    return {
        "file": path.name,
        "requests": len(rows),
        "repeated_rows": sum(row.repeats for row in rows),
        "accounts": len(accounts),
        "callers": options.callers,
        "outcomes": _outcomes(state, charges),
        "faults": _faults(fates, state),
        "charged": format(sum(charges.values(), Decimal(0)), "f"),
        "example": _example(rows, state),
        "proof": {
            "ok": not wrong and all(check["ok"] for check in checks),
            "checks": checks,
            "wrong": wrong,
        },
    }


def _charges(ledger: tillroll.Ledger, rows: Sequence[Row], path: Path) -> dict[int, Decimal]:
    """Return what the ledger's entries say was charged for each row of the file."""
    numbers = {(row.account, row.request_id): row.number for row in rows}
    numbers |= {(row.account, f"{row.request_id}/late"): row.number for row in rows}
    charged: dict[int, Decimal] = {}
    for receipt in ledger.entries():
        if receipt.kind not in ("consume", "settle"):
            continue
        name = receipt.ref if receipt.kind == "settle" else receipt.request_id
        number = numbers.get((receipt.account, name or ""))
        if number is not None:
            charged[number] = charged.get(number, Decimal(0)) + receipt.units + receipt.shortfall
    assert path.name, "the file has a name"
    return charged


def compare(
    charges: dict[int, Decimal], expected: dict[int, Decimal | None], state: Run
) -> tuple[list[dict[str, Any]], list[str]]:
    """Compare what was charged with what the file says, row by row and in sum."""
    known = {number: units for number, units in expected.items() if units is not None}
    total = sum(charges.values(), Decimal(0))
    wanted = sum(known.values(), Decimal(0))
    wrong = [
        f"row {number}: charged {charges.get(number)}, the file says {units}"
        for number, units in known.items()
        if charges.get(number) != units
    ]
    wrong += [
        f"row {number}: charged {charges[number]} though it was {state.outcomes.get(number)}"
        for number in sorted(set(charges) - set(expected))
    ]
    if len(known) < len(expected):
        check = _check("these prices are beyond the independent computation", ok=False)
        return [check], ["use plain rates to prove the sum"]
    check = _check(
        f"the sum of charges, {_shown(total)}, equals the sum computed from the file, "
        f"{_shown(wanted)}, "
        f"row by row",
        ok=not wrong and total == wanted,
    )
    return [check], wrong


def _shown(units: Decimal) -> str:
    """Return units with thousands set apart and no zeros at the end, so that equal looks equal."""
    text = f"{units:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _check(text: str, ok: bool) -> dict[str, Any]:  # noqa: FBT001 - a check and how it went
    return {"check": text, "ok": ok}


def _outcomes(state: Run, charges: dict[int, Decimal]) -> list[dict[str, Any]]:
    count = Counter(state.outcomes.values())
    total = _shown(sum(charges.values(), Decimal(0)))
    order = (
        "charged",
        "refused",
        "not done",
        "in_doubt",
        "expired in doubt",
        "uncollected",
        "crashed",
    )
    return [
        {"outcome": name, "requests": count[name], "units": total if name == "charged" else "0"}
        for name in order
        if count[name] or name in ("charged", "refused")
    ]


def _faults(fates: Sequence[Fate], state: Run) -> list[dict[str, Any]]:
    counts = state.counts
    rows = [
        ("repeats sent at once or much later", counts["replayed"], "replayed, charged nothing"),
        (
            "provider time-outs",
            sum(1 for i in set(state.doubtful) if fates[i].timeout),
            "in doubt, then resolved",
        ),
        ("  of which had been done", counts["resolved as done"], "settled with the real figures"),
        ("  of which had not", counts["resolved as not done"], "released"),
        ("callers that crashed after the hold", len(state.crashed), "held until restarted"),
        ("  of which settled after a restart", counts["restarted"], "charged once"),
        (
            "settled too late, restarted or not",
            counts["came too late"],
            (
                f"the hold had expired; {counts['recovered by consume']} consumed instead, "
                f"{list(state.outcomes.values()).count('uncollected')} uncollected"
            ),
        ),
    ]
    return [{"fault": fault, "times": times, "effect": effect} for fault, times, effect in rows]


def _example(rows: Sequence[Row], state: Run) -> str | None:
    """Return the id of a charge worth explaining: one that had a time-out, if there is one."""
    doubtful = [i for i in state.doubtful if state.outcomes.get(i + 1) == "charged"]
    index = (
        doubtful[0]
        if doubtful
        else next(
            (row.number - 1 for row in rows if state.outcomes.get(row.number) == "charged"), None
        )
    )
    return None if index is None else rows[index].request_id
