"""What becomes of a question for a price: an amount, or why there is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal

import msgspec

KNOWN_MAX = 50  # names listed in a refusal


class Priced(msgspec.Struct, frozen=True, gc=False):
    """The price of one request.

    Attributes:
        units: The amount to charge, in whole 10^-scale units.
        exact: The amount before rounding, in units; to 60 digits where it does not come out even.
        residual_after: What to pass as `residual` next time; unchanged unless rounding is `carry`.
        wallet: The wallet that pays.
        version: The number of the price version.
        rule: The rule, e.g. `image.generate`, `llm.chat/gpt-5*`, `image.generate@acme` (override).
    """

    units: int
    exact: Decimal
    residual_after: Decimal
    wallet: str
    version: int
    rule: str


class Unpriced(msgspec.Struct, frozen=True):
    """No price: the book does not know this request.

    Attributes:
        reason: A sentence that says what is unknown.
        known: What would have been known in its place, at most 50 names.
    """

    reason: str
    known: tuple[str, ...] = ()


def listed(names: Iterator[str] | Mapping[str, object] | Sequence[str]) -> tuple[str, ...]:
    """Return the first names, each once."""
    return tuple(dict.fromkeys(names))[:KNOWN_MAX]
