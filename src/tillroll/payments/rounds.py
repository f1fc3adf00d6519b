"""What a desk does beside the calls, round after round: pull, top up, report, try again.

Each round is right when several processes do it at once: what it asks carries a key that was noted
before, and what it notes carries the version that it saw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from tillroll.payments import overage, topups

if TYPE_CHECKING:
    from tillroll.payments.desk import Desk

PULL_SECONDS = 60.0
TOPUP_SECONDS = 2.0  # for processes that do not see a balance fall; who does is woken at once
OVERAGE_SECONDS = 60.0
AGAIN_SECONDS = 300.0


class Round(NamedTuple):
    """Something to be done every so many seconds; `run` does it once and says what it did.

    What is `woken` is to be done as well when a balance falls to where it is topped up.
    """

    name: str
    every: float
    run: Callable[[], Mapping[str, Any]]
    woken: bool = False


def rounds(desk: Desk) -> list[Round]:
    """Return the rounds of a desk; of a provider that only tells, none asks."""
    desk.heard_charge = lambda told: topups.resolved(desk, told)
    name = f"payments-{desk.provider.name}-{desk.ledger}"  # each ledger has its own
    if not hasattr(desk.provider, "pull"):
        return []
    return [
        Round(f"{name}-pull", PULL_SECONDS, lambda: _pulled(desk)),
        Round(f"{name}-topups", TOPUP_SECONDS, lambda: _topped_up(desk), woken=True),
        Round(f"{name}-overage", OVERAGE_SECONDS, lambda: {"batches": overage.round_of(desk)}),
        Round(f"{name}-again", AGAIN_SECONDS, lambda: {"again": desk.again()}),
    ]


def _topped_up(desk: Desk) -> Mapping[str, Any]:
    return {"charges": topups.round_of(desk)}


def _pulled(desk: Desk) -> Mapping[str, Any]:
    found = desk.pull()
    return {"heard": found.heard, "kept": found.kept, "more": found.more}


__all__ = ["Round", "rounds"]
