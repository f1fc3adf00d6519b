"""`tillroll webhooks` and `tillroll jobs`: endpoints, deliveries, sending again, the loop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Any

import msgspec

from tillroll import webhooks
from tillroll.cli import terminal as c
from tillroll.cli.serving import with_engine
from tillroll.cli.views import table
from tillroll.ledger import calendar, events
from tillroll.ledger.calendar import show_instant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tillroll.engine import Engine
    from tillroll.jobs import Turn
    from tillroll.ledger.webhooks import Format, Place
    from tillroll.stores.base import Reader, Writer
    from tillroll.stores.outbox import State


def _look(common: c.Common, read: Callable[[Reader], Any]) -> Any:
    with common.known() as ledger, ledger.store.read() as reader:
        return read(reader)


def create(
    common: c.Common,
    url: str,
    chosen: list[str] | None,
    format_: Format,
    description: str | None,
    *,
    private: bool,
) -> int:
    """Make an endpoint and show its secret, once."""

    def act(tx: Writer, engine: Engine) -> tuple[Place, str | None]:
        return webhooks.make(
            tx,
            common.project,
            url,
            at=engine.clock(),
            events=chosen or ["*"],
            format_=format_,
            description=description,
            private=private,
        )

    return _show_made(common, *with_engine(common, act))


def rotate(common: c.Common, endpoint_id: str, overlap: str) -> int:
    """Give an endpoint a new secret and show it, once."""
    span = calendar.span(overlap, "overlap")

    def act(tx: Writer, engine: Engine) -> tuple[Place, str | None]:
        at = engine.clock()
        return webhooks.rotate(tx, common.project, endpoint_id, at=at, overlap=span)

    return _show_made(common, *with_engine(common, act))


def _show_made(common: c.Common, place: Place, secret: str | None) -> int:
    if common.json:
        c.print_json(webhooks.shown(place, secret))
        return c.OK
    c.say(f"[bold green]ok[/] {place.endpoint.id}; the secret to verify with, shown once:")
    c.out.print(f"  {secret}", style="bold green", soft_wrap=True)
    return c.OK


def change(common: c.Common, endpoint_id: str, *, private: bool, wanted: dict[str, Any]) -> int:
    """Change an endpoint."""

    def act(tx: Writer, _: Engine) -> Place:
        return webhooks.change(tx, common.project, endpoint_id, private=private, **wanted)

    return _show_places(common, [with_engine(common, act)], alone=True)


def remove(common: c.Common, endpoint_id: str) -> int:
    """Remove an endpoint."""

    def act(tx: Writer, _: Engine) -> Place:
        return webhooks.remove(tx, common.project, endpoint_id)

    place = with_engine(common, act)
    if common.json:
        c.print_json(webhooks.shown(place))
    else:
        c.say(f"[bold green]ok[/] nothing is sent to {place.endpoint.url} any more")
    return c.OK


def list_endpoints(common: c.Common) -> int:
    """Print the endpoints."""
    found = _look(common, lambda reader: webhooks.places_of(reader, common.project))
    return _show_places(common, found)


def _show_places(common: c.Common, found: list[Place], *, alone: bool = False) -> int:
    rows = [webhooks.shown(place) for place in found]
    if common.json:
        c.print_json(rows[0] if alone else {"endpoints": rows})
        return c.OK
    lines = table("id", "url", "events", "format", "state")
    for row in rows:
        state = "open"
        if row["disabled"]:
            state = f"disabled: {row['disabled_reason'] or 'by hand'}"
        elif row["failing_since"]:
            state = f"failing since {row['failing_since']}"
        lines.add_row(row["id"], row["url"], ", ".join(row["events"]), row["format"], state)
    c.out.print(lines)
    return c.OK


def deliveries(
    common: c.Common,
    *,
    endpoint: str | None,
    state: State | None,
    event: str | None,
    after: str | None,
    limit: int,
) -> int:
    """Print what became of events, the newest first."""
    found, going_on = _look(
        common,
        lambda reader: webhooks.page(
            reader,
            common.project,
            endpoint=endpoint,
            state=state,
            event=event,
            after=after,
            limit=limit,
        ),
    )
    rows = [webhooks.shown_delivery(one) for one in found]
    if common.json:
        c.print_json({"deliveries": rows, "next": going_on})
        return c.OK
    lines = table("event", "type", "endpoint", "state", "attempts", "next", "last answer")
    for row in rows:
        last = row["log"][-1] if row["log"] else {}
        said = last.get("error") or last.get("status")
        lines.add_row(
            *(row["event"], row["type"], row["endpoint"], row["state"], str(row["attempts"])),
            *(row["next_at"] or "", "" if said is None else str(said)),
        )
    c.out.print(lines)
    if going_on:
        c.say(f"more: --after {going_on}", markup=False)
    return c.OK


def send_again(common: c.Common, endpoint: str | None, event: str | None) -> int:
    """Have deliveries tried again."""

    def act(tx: Writer, engine: Engine) -> webhooks.Queued:
        return webhooks.send_again(tx, common.project, engine.clock(), endpoint, event)

    queued, more = 0, True
    while more:
        some, more = with_engine(common, act)
        queued += some
    if common.json:
        c.print_json({"queued": queued})
    else:
        c.say(f"[bold green]ok[/] {queued} to be sent again")
    return c.OK


def types(common: c.Common) -> int:
    """Print the catalog of events; with --json, the JSON Schema of each."""
    if common.json:
        c.print_json({kind.topic: schema for kind, schema in events.schemas()})
        return c.OK
    lines = table("type", "when")
    for kind in events.TYPES:
        lines.add_row(kind.topic, kind.summary)
    c.out.print(lines)
    return c.OK


# ---------------------------------------------------------------- jobs


def status(common: c.Common) -> int:
    """Print who does which job, when he last did, and what waits."""
    leases, backlog = _look(common, lambda reader: (reader.leases(), reader.backlog()))
    rows = [
        {
            "job": lease.name,
            "holder": lease.holder,
            "last_at": show_instant(lease.beat_at),
            "until": show_instant(lease.ends_at),
            "told": msgspec.json.decode(lease.told or "{}"),
        }
        for lease in leases
    ]
    outbox = {
        "waiting": backlog.waiting,
        "dead": backlog.dead,
        "oldest_at": None if backlog.oldest_at is None else show_instant(backlog.oldest_at),
        "next_at": None if backlog.next_at is None else show_instant(backlog.next_at),
    }
    if common.json:
        c.print_json({"jobs": rows, "outbox": outbox})
        return c.OK
    lines = table("job", "done by", "last", "what it did")
    for row in rows:
        lines.add_row(str(row["job"]), str(row["holder"]), str(row["last_at"]), _told(row["told"]))
    c.out.print(lines)
    oldest = f", the oldest since {outbox['oldest_at']}" if outbox["oldest_at"] else ""
    c.say(f"outbox: {backlog.waiting} waiting{oldest}; {backlog.dead} dead")
    return c.OK


def _told(told: object) -> str:
    assert isinstance(told, dict)
    return ", ".join(f"{name} {value}" for name, value in told.items() if name != "more")


def run(common: c.Common, *, once: bool, private: bool, event_days: float) -> int:
    """Do the jobs until told to stop, or once."""
    from tillroll import jobs  # noqa: PLC0415 - for this command only
    from tillroll.embedded import open_engine  # noqa: PLC0415
    from tillroll.server import paying, settings  # noqa: PLC0415

    known = settings.load(given={"database_url": common.db})
    engine = open_engine(common.db)
    failed: list[Turn] = []

    def tell(turn: Turn) -> None:
        if turn.problem is not None:
            failed.append(turn)
            c.say(f"{turn.job} failed: {turn.problem}", console=c.err, markup=False)

    chosen = jobs.standard(engine, private=private, event_days=event_days)
    chosen += paying.jobs(paying.desks(known, engine))
    worker = jobs.Worker(engine, chosen, tell=tell)
    try:
        if once:
            _show_turns(common, worker.run_once())
            return c.FAILED if failed else c.OK
        asyncio.run(_run(worker))
        return c.OK
    finally:
        try:
            worker.close()
        finally:
            engine.close()


async def _run(worker: Any) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):  # where signals do not reach a loop
            loop.add_signal_handler(number, worker.stop)
    await worker.run()


def _show_turns(common: c.Common, turns: list[Turn]) -> None:
    shown: Mapping[str, Any] = {turn.job: dict(turn.told or {}) for turn in turns}
    if common.json:
        c.print_json({"jobs": shown})
        return
    for turn in turns:
        what = _told(shown[turn.job]) if turn.ours else "done by another process"
        c.say(f"{turn.job}: {what}", markup=False)
