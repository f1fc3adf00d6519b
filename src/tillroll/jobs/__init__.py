"""What is done beside the calls: booking what fell due, delivering the outbox, pruning.

`Worker` does jobs in a loop, under leases, so any number of processes may run one. `standard` is
the jobs that every installation has; whoever has more adds a `Job` to the list.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tillroll.jobs.delivery import Deliverer
from tillroll.jobs.loop import Job, Turn, Worker
from tillroll.jobs.sending import Sender
from tillroll.jobs.upkeep import book, prune

if TYPE_CHECKING:
    from tillroll.engine import Engine

UPKEEP, DELIVERY, PRUNING = "upkeep", "webhooks", "prune"
UPKEEP_SECONDS = 15.0
DELIVERY_SECONDS = 1.0
PRUNING_SECONDS = 600.0
EVENT_DAYS = 30.0


def standard(
    engine: Engine,
    *,
    upkeep_seconds: float = UPKEEP_SECONDS,
    event_days: float = EVENT_DAYS,
    private: bool = False,
) -> list[Job]:
    """Return the jobs that every installation has.

    Args:
        engine: Whose store they are about.
        upkeep_seconds: How often what fell due is booked.
        event_days: How long events are kept that do not wait any more.
        private: Send webhooks to private addresses and over plain HTTP, too.
    """
    deliverer = Deliverer(engine, Sender(private=private))
    return [
        Job(UPKEEP, upkeep_seconds, partial(book, engine)),
        Job(DELIVERY, DELIVERY_SECONDS, deliverer.round, deliverer.close),
        Job(PRUNING, PRUNING_SECONDS, partial(prune, engine, event_days)),
    ]


__all__ = ["Deliverer", "Job", "Sender", "Turn", "Worker", "book", "prune", "standard"]
