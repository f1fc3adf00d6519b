"""Caps per period at the nodes of an account: members, keys, sessions, operations.

A budget matches a request when every tag it names is there with that value; `*` stands for each
value apart, so `{"member": "*"}` caps every member on their own. The operation and the model are
matched like tags; `{"operation": "image.*"}` caps all that is below `image` together. What is spent
is counted at the moment the units are reserved; what comes back is taken off the window in which it
was counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from tillroll.ledger import calendar
from tillroll.ledger.burn import covers
from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.types import DAY

if TYPE_CHECKING:
    from tillroll.ledger.types import Account, Budget, BudgetTerms

EACH = "*"
# Nodes of one budget in its windows at hand: about 100 bytes each in the account's state.
NODES_MAX = 10_000


class Spend(Struct, frozen=True, gc=False):
    """What a request counts as: its wallet and the names that budgets match."""

    wallet: str
    operation: str | None
    model: str | None
    tags: dict[str, str] | None


class Room(Struct, frozen=True, gc=False):
    """How much of a budget is left for a request, and when it resets."""

    budget: str
    node: str
    cap: int
    spent: int
    resets_at: int

    @property
    def left(self) -> int:
        """Units that may still be counted in this window."""
        return max(self.cap - self.spent, 0)


def node(terms: BudgetTerms, spend: Spend) -> str | None:
    """Return the node of this budget that the request falls on, or None where it does not.

    Names and values are joined with their lengths, so that no two nodes share a text.
    """
    if terms.wallet != spend.wallet:
        return None
    parts = []
    for name, wanted in terms.match.items():
        value = _value(name, spend)
        if value is None:
            return None
        if name == "operation" and wanted != EACH and covers(wanted, value):
            value = wanted
        elif wanted not in (EACH, value):
            return None
        parts.append(f"{name}={len(value)}:{value}")
    return ",".join(parts)


def tightest(account: Account, spend: Spend, at: int) -> Room | None:
    """Return the matching budget with the least room, or None where none matches.

    Raises:
        InvalidInput: One would have to count at more nodes than it may.
    """
    rooms = [room(account, budget, spend, at) for budget in account.budgets.values()]
    for budget, found in zip(account.budgets.values(), rooms, strict=True):
        if found is not None and len(budget.counted) >= NODES_MAX:
            _check_nodes(account, budget, found.node, at)
    return min((found for found in rooms if found), key=lambda found: found.left, default=None)


def _check_nodes(account: Account, budget: Budget, where: str, at: int) -> None:
    """Refuse one node too many, such as a session each for a budget that never resets."""
    live = sum(
        not all(_is_past(account, budget, start, at) for start in windows)
        for windows in budget.counted.values()
    )
    if where not in budget.counted and live >= NODES_MAX:
        raise InvalidInput(
            f"budget {budget.terms.name!r} counts {NODES_MAX:,} values apart, as many as it may: "
            f"match fewer of them, or have it reset sooner"
        )


def room(account: Account, budget: Budget, spend: Spend, at: int) -> Room | None:
    """Return the room in one budget for this request, or None where it does not match."""
    where = node(budget.terms, spend)
    return None if where is None else _room(account, budget, where, at)


def rooms(account: Account, budget: Budget, at: int) -> list[Room]:
    """Return the room at every node of a budget that something was counted on."""
    nodes = list(budget.counted)
    if not nodes and EACH not in budget.terms.match.values():
        nodes = [",".join(f"{name}={len(v)}:{v}" for name, v in budget.terms.match.items())]
    return [_room(account, budget, where, at) for where in nodes]


def _room(account: Account, budget: Budget, where: str, at: int) -> Room:
    terms = budget.terms
    assert terms.cap is not None, "a budget without a cap is a removal, never kept"
    counted = budget.counted.get(where, {})
    start, resets_at = _window(account, terms, at)
    if terms.period == "rolling":
        size = calendar.slice_size(terms.window)
        oldest = at - terms.window - size
        live = {first: units for first, units in counted.items() if first > oldest}
        resets_at = min(live, default=start) + terms.window + size
        spent = sum(live.values())
    else:
        spent = counted.get(start, 0)
    return Room(budget=terms.name, node=where, cap=terms.cap, spent=spent, resets_at=resets_at)


def count(account: Account, spend: Spend, at: int, units: int, seq: int) -> None:
    """Count units (negative: take them off) in every matching budget's window at `at`.

    `at` and `seq` are those of the entry that reserved the units. What happened before a budget was
    set was never counted by it, so its return is not either. The first count in a
    new window drops those that reset more than a day ago, at all nodes at once; what comes back to
    a dropped window no longer matters.
    """
    if not units:
        return
    for budget in account.budgets.values():
        where = node(budget.terms, spend)
        if where is None or seq < budget.since:
            continue
        start, _ = _window(account, budget.terms, at)
        windows = budget.counted.get(where, {})
        if start in windows:
            windows[start] = max(windows[start] + units, 0)
        elif units > 0:
            if start > budget.swept:
                _forget(account, budget, at)
                budget.swept = start
            budget.counted.setdefault(where, {})[start] = units


def move(account: Account, at: int, zone: str) -> None:
    """Have what was counted in a window at hand count on, now that the account left that zone.

    Its days, weeks and months begin at other instants from here on. Without this a budget would be
    empty after each move.
    """
    for budget in account.budgets.values():
        terms = budget.terms
        before, _ = calendar.window(terms.period, at, terms.window, zone)
        after, _ = _window(account, terms, at)
        for windows in budget.counted.values():
            if before in windows:
                units = windows.pop(before)
                windows[after] = windows.get(after, 0) + units


def _forget(account: Account, budget: Budget, at: int) -> None:
    """Drop windows long past, so that the account's state does not grow for ever."""
    for where, windows in list(budget.counted.items()):
        for start in [start for start in windows if _is_past(account, budget, start, at)]:
            del windows[start]
        if not windows:
            del budget.counted[where]


def _is_past(account: Account, budget: Budget, start: int, at: int) -> bool:
    return _window(account, budget.terms, start)[1] + DAY <= at


def _window(account: Account, terms: BudgetTerms, at: int) -> tuple[int, int]:
    return calendar.window(terms.period, at, terms.window, account.settings.time_zone)


def _value(name: str, spend: Spend) -> str | None:
    if name == "operation":
        return spend.operation
    if name == "model":
        return spend.model
    return spend.tags.get(name) if spend.tags else None
