"""The verbs over HTTP: one handler for every write, since the verbs differ only in their bodies."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from tillroll.api.calls import REPLAYED, Answer, Call, answered
from tillroll.embedded.answers import exception_of
from tillroll.ledger.errors import InvalidInput, TillrollError
from tillroll.ledger.types import Entry
from tillroll.wire import answers, bodies, problems

if TYPE_CHECKING:
    from collections.abc import Callable

    from tillroll.api.calls import Handler
    from tillroll.embedded import Outcome
    from tillroll.ledger.commands import Request


def writing(verb: Callable[..., Request], shape: type[msgspec.Struct]) -> Handler:
    """Return the handler of a verb: the address names the account and what it acts on."""

    async def write(call: Call) -> Answer:
        given = call.arguments(shape)
        given["actor"] = call.actor(given.get("actor"))
        tenant = call.tenant
        request = verb(tenant.verbs, *call.params, request_id=call.request_id(), **given)
        engine = tenant.engine
        answer = (await engine.submit((request,), asyncio.get_running_loop()))[0]
        entry = answer.outcome
        if not isinstance(entry, Entry):
            raise exception_of(answer, request, engine.store.scale)
        replayed = answer.replayed
        shown = answers.receipt(entry, engine.store.scale, request.account, replayed=replayed)
        return Answer(answers.render(shown), 200, REPLAYED if replayed else ())

    return write


def previewing(verb: str, shape: type[msgspec.Struct]) -> Handler:
    """Return the handler that says what a verb would do now, and writes nothing."""

    async def preview(call: Call) -> Answer:
        given = bodies.arguments(call.parse(shape))
        given["actor"] = call.actor(given.get("actor"))
        if b"idempotency-key" in call.headers:  # a preview of a repeat is that repeat's answer
            given["request_id"] = call.request_id()
        decide = getattr(call.tenant.reads.preview, verb)
        receipt = await asyncio.to_thread(decide, *call.params, **given)
        return answered(receipt.to_dict())

    return preview


async def batch(call: Call) -> Answer:
    """Consume many, each on its own merits; a malformed one is its own trouble only."""
    items: list[dict[str, Any] | TillrollError] = []
    for raw in call.parse(bodies.Batch).items:
        try:
            item = bodies.parse_arguments(bodies.Item, bytes(raw))
        except InvalidInput as problem:
            items.append(problem)
            continue
        call.check_open(item["account"])
        item["actor"] = call.actor(item.get("actor"))
        items.append(item)
    good = [item for item in items if isinstance(item, dict)]
    done = iter(await call.tenant.ledger.consume_many(good))
    outcomes = [
        _outcome(next(done)) if isinstance(item, dict) else _invalid(item) for item in items
    ]
    return answered({"outcomes": outcomes})


def _outcome(outcome: Outcome) -> dict[str, object]:
    receipt, error = outcome.receipt, outcome.error
    return {
        "status": outcome.status,
        "receipt": None if receipt is None else receipt.to_dict(),
        "problem": None if error is None else problems.document(error),
    }


def _invalid(problem: TillrollError) -> dict[str, object]:
    return {"status": "invalid", "receipt": None, "problem": problems.document(problem)}
