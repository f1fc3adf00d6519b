"""Upkeep beside the calls: what fell due is booked, so that nothing waits for a next request.

No decision and no balance needs it: each brings its account to the moment by itself. Several
processes may do it at once, each under the account's lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tillroll.embedded import Ledger
from tillroll.ledger.commands import account_id
from tillroll.ledger.types import DAY, NEVER, SECOND

if TYPE_CHECKING:
    from tillroll.engine import Engine

LOOKED_AT_MAX = 1_000  # accounts of a project, those first that something falls due on first
BOOKED_MAX = 1_000  # accounts of a project in one round
PRUNED_MAX = 1_000  # events in one transaction


def book(engine: Engine) -> dict[str, Any]:
    """Book what fell due in every project, and measure what is there.

    Returns:
        `booked`: on how many accounts something was; `in_doubt`: how many holds nobody knows the
        outcome of, on the accounts looked at; `oldest_due_seconds`: for how long the account that
        waits longest has been due; `outbox_lag_seconds`, `outbox_waiting` and `outbox_dead`: how
        long the oldest event has waited, how many wait, how many deliveries were given up.
    """
    store = engine.store
    with store.read_primary() as reader:
        projects = reader.projects()
        backlog = reader.backlog()
    booked = in_doubt = most = 0
    oldest = 0.0
    for project in projects:
        at = engine.clock()
        with store.read_primary() as reader:
            names = reader.due(project, NEVER - 1, LOOKED_AT_MAX)
            accounts = reader.accounts([(account_id(project, name), name) for name in names])
        for account in accounts.values():
            oldest = max(oldest, (at - account.next_due_at) / SECOND)
            in_doubt += sum(hold.in_doubt for hold in account.holds.values())
        done = Ledger(engine, project).book_due(BOOKED_MAX)
        booked, most = booked + done, max(most, done)
    at = engine.clock()
    since = at if backlog.oldest_at is None else backlog.oldest_at
    return {
        "booked": booked,
        "in_doubt": in_doubt,
        "oldest_due_seconds": max(oldest, 0.0),
        "outbox_lag_seconds": max((at - since) / SECOND, 0.0),
        "outbox_waiting": backlog.waiting,
        "outbox_dead": backlog.dead,
        "more": most == BOOKED_MAX,
    }


def prune(engine: Engine, days: float) -> dict[str, Any]:
    """Delete events that are older than so many days and not waiting; return how many."""
    before = engine.clock() - int(days * DAY)
    gone = engine.perform(lambda tx: tx.prune_events(before, PRUNED_MAX))
    return {"pruned": gone, "more": gone == PRUNED_MAX}


__all__ = ["book", "prune"]
