"""Whether recorded answers fit one serial history, and the order in which they were given.

Every answer names the seq of the history that it saw. So this needs no search: each answer is
looked up in the history, and an answer of an older version must not have been asked for after one
of a newer version had been given (real-time order).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from tillroll.ledger.types import Entry


class Seen(NamedTuple):
    """One answer: what it saw of which account, and when it was asked for and given.

    Attributes:
        kind: A write that made an entry, a refusal, or a read.
        seq: The version that it saw: the entry it made, or the last one before it.
        available: What it said was free; None where it does not say.
        needed: What a refusal said was needed; None where it does not say.
        invoked: When it was asked for, on any clock that all answers share.
        completed: When it was given.
    """

    account: str
    kind: Literal["write", "refusal", "read"]
    seq: int
    available: int | None
    needed: int | None
    invoked: float
    completed: float


def problems(seen: Iterable[Seen], histories: Mapping[str, Sequence[Entry]]) -> list[str]:
    """Return what contradicts one serial history an account; empty where nothing does.

    Args:
        seen: The answers; repeats are left out, since they show an older version on purpose.
        histories: Every account's entries, oldest first.
    """
    found: list[str] = []
    by_account: dict[str, list[Seen]] = defaultdict(list)
    for item in seen:
        by_account[item.account].append(item)
    for account, history in histories.items():
        found += _gaps(account, history)
    for account, items in by_account.items():
        history = histories.get(account, ())
        found += [text for item in items for text in _misfits(item, history)]
        found += _written_twice(items)
        found += _out_of_order(items)
    return found


def _gaps(account: str, history: Sequence[Entry]) -> list[str]:
    found = []
    for nth, entry in enumerate(history, 1):
        if entry.seq != nth:
            found.append(f"{account}: entry {nth} has seq {entry.seq}")
        if nth > 1 and entry.at < history[nth - 2].at:
            found.append(f"{account}: entry {nth} is older than the one before")
    return found


def _misfits(item: Seen, history: Sequence[Entry]) -> list[str]:
    """Return where one answer differs from the history at its seq."""
    where = f"{item.account}: a {item.kind} at seq {item.seq}"
    if not 0 <= item.seq <= len(history) or (item.kind == "write" and item.seq == 0):
        return [f"{where} is not in the history of {len(history)} entries"]
    stated = history[item.seq - 1].available if item.seq else 0
    if item.kind == "refusal":
        short = item.needed is None or item.available is None or item.available < item.needed
        return [] if short else [f"{where} was not short: {item.available} of {item.needed}"]
    if item.available is not None and item.available != stated:
        return [f"{where} says {item.available} are free, the history {stated}"]
    return []


def _written_twice(items: Sequence[Seen]) -> list[str]:
    seqs = [item.seq for item in items if item.kind == "write"]
    return [
        f"{items[0].account}: two writes at seq {seq}" for seq in {*seqs} if seqs.count(seq) > 1
    ]


def _out_of_order(items: Sequence[Seen]) -> list[str]:
    """Return answers that were asked for after an answer of a newer version had been given."""
    found = []
    newest_first = sorted(items, key=lambda item: item.seq, reverse=True)
    earliest: float | None = None  # completion of anything strictly newer
    pending: float | None = None  # completion of anything of the version at hand
    version = None
    for item in newest_first:
        if item.seq != version:
            earliest = _least(earliest, pending)
            pending, version = None, item.seq
        if earliest is not None and earliest < item.invoked:
            found.append(
                f"{item.account}: a {item.kind} asked for at {item.invoked} saw seq {item.seq}, "
                f"though a newer one was known at {earliest}"
            )
        pending = _least(pending, item.completed)
    return found


def _least(one: float | None, other: float | None) -> float | None:
    return min((value for value in (one, other) if value is not None), default=None)
