"""Webhook endpoints over HTTP, what became of every event, and sending again."""

from __future__ import annotations

import asyncio
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta, Struct

from tillroll import webhooks
from tillroll.api.calls import Answer, Call, answered
from tillroll.api.reads import Query
from tillroll.ledger import calendar
from tillroll.ledger.errors import NotFound
from tillroll.ledger.events import place_of
from tillroll.stores.outbox import State
from tillroll.wire import bodies
from tillroll.wire.answers import render

if TYPE_CHECKING:
    from collections.abc import Callable

    from tillroll.ledger.webhooks import Place
    from tillroll.stores.base import Reader, Writer
    from tillroll.stores.outbox import Delivery

PAGE = 100


class DeliveriesQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Which deliveries, and where to go on."""

    endpoint: str | None = None
    event: str | None = None
    state: State | msgspec.UnsetType = msgspec.UNSET  # null is no state
    after: str | None = None
    limit: Annotated[int, Meta(ge=1, le=webhooks.PAGE_MAX)] = PAGE


async def list_endpoints(call: Call) -> Answer:
    """Return the webhook endpoints of this project and mode."""
    call.query(Query)
    found = await _read(call, lambda reader: webhooks.places_of(reader, call.tenant.name))
    return answered({"endpoints": [webhooks.shown(place) for place in found]})


async def get_endpoint(call: Call) -> Answer:
    """Return one webhook endpoint."""
    call.query(Query)
    name, endpoint_id = call.tenant.name, call.params[0]
    place = await _read(call, lambda reader: webhooks.place_in(reader, name, endpoint_id))
    return answered(webhooks.shown(place))


async def make_endpoint(call: Call) -> Answer:
    """Make a webhook endpoint; its secret is in this answer only."""
    given = bodies.arguments(call.parse(bodies.NewEndpoint))
    if "format" in given:
        given["format_"] = given.pop("format")
    event = f"{call.tenant.name}\n{call.request_id()}"

    def act(tx: Writer) -> tuple[Place, str | None]:
        return webhooks.make(
            tx,
            call.tenant.name,
            at=call.tenant.engine.clock(),
            endpoint_id=f"we_{sha256(event.encode()).hexdigest()[:16]}",
            private=call.tenant.webhooks_private,
            **given,
        )

    place, secret = await _write(call, act)
    return answered(webhooks.shown(place, secret), replayed=secret is None)


async def change_endpoint(call: Call) -> Answer:
    """Change a webhook endpoint; what is left out stays, and enabling it forgets its failures."""
    given = bodies.arguments(call.parse(bodies.ChangedEndpoint))

    def act(tx: Writer) -> Place:
        private = call.tenant.webhooks_private
        return webhooks.change(tx, call.tenant.name, call.params[0], private=private, **given)

    return answered(webhooks.shown(await _write(call, act)))


async def remove_endpoint(call: Call) -> Answer:
    """Remove a webhook endpoint; what it did not get by now is given up."""
    call.query(Query)
    act = partial(webhooks.remove, project=call.tenant.name, endpoint_id=call.params[0])
    return answered(webhooks.shown(await _write(call, act)))


async def rotate_endpoint(call: Call) -> Answer:
    """Give a webhook endpoint a new secret; the one before is signed with too, for a while."""
    asked = call.parse(bodies.Rotate)
    overlap = webhooks.OVERLAP
    if not isinstance(asked.overlap, msgspec.UnsetType):
        overlap = calendar.span(asked.overlap, "overlap")

    def act(tx: Writer) -> tuple[Place, str]:
        at = call.tenant.engine.clock()
        return webhooks.rotate(tx, call.tenant.name, call.params[0], at=at, overlap=overlap)

    return answered(webhooks.shown(*await _write(call, act)))


async def list_deliveries(call: Call) -> Answer:
    """Return what became of events at endpoints, the newest first, each with its attempts."""
    asked = call.query(DeliveriesQuery)
    wanted = bodies.arguments(asked)

    def read(reader: Reader) -> tuple[list[Delivery], str | None]:
        return webhooks.page(reader, call.tenant.name, **wanted)

    found, going_on = await _read(call, read)
    shown = [webhooks.shown_delivery(one) for one in found]
    return answered({"deliveries": shown, "next": going_on})


async def get_event(call: Call) -> Answer:
    """Return an event as it is sent, and what became of it at each endpoint."""
    call.query(Query)
    name, event_id = call.tenant.name, call.params[0]

    def read(reader: Reader) -> dict[str, Any]:
        told = reader.event_at(place_of(event_id))
        if told is None or told.project != name:
            raise NotFound(f"there is no event {event_id!r} here, or no longer")
        found, _ = webhooks.page(reader, name, event=event_id)
        shown = [webhooks.shown_delivery(one) for one in found]
        return {"event": msgspec.Raw(told.payload.encode()), "deliveries": shown}

    return Answer(render(await _read(call, read)))


async def send_again(call: Call) -> Answer:
    """Have events sent again: one to one endpoint, or what was given up, 10,000 of it a call."""
    asked = call.parse(bodies.SendAgain)
    endpoint = None if isinstance(asked.endpoint, msgspec.UnsetType) else asked.endpoint
    event = None if isinstance(asked.event, msgspec.UnsetType) else asked.event

    engine, name = call.tenant.engine, call.tenant.name

    def act() -> webhooks.Queued:
        if event is None:
            return webhooks.send_all_again(engine.perform, name, engine.clock(), endpoint)
        return engine.perform(
            lambda tx: webhooks.send_again(tx, name, engine.clock(), endpoint, event)
        )

    return answered((await asyncio.to_thread(act))._asdict())


async def _read(call: Call, read: Callable[[Reader], Any]) -> Any:
    def look() -> Any:
        with call.tenant.reads.store.read() as reader:
            return read(reader)

    return await asyncio.to_thread(look)


async def _write(call: Call, act: Callable[[Writer], Any]) -> Any:
    return await asyncio.to_thread(call.tenant.engine.perform, act)
