"""API keys over HTTP: make, list, rotate, revoke. A secret is answered once and never stored."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from tillroll.api import keys
from tillroll.api.calls import Answer, Call, answered
from tillroll.api.reads import Query
from tillroll.ledger import calendar
from tillroll.ledger.calendar import show_instant
from tillroll.ledger.errors import Forbidden, InvalidInput, NotFound
from tillroll.ledger.types import DAY
from tillroll.wire import bodies

if TYPE_CHECKING:
    from tillroll.stores.base import Writer

OVERLAP = DAY


async def list_keys(call: Call) -> Answer:
    """Return the keys of this project and mode, those that have ended too."""
    call.query(Query)
    found = await asyncio.to_thread(_keys_of, call)
    return answered({"keys": [shown(key) for key in found]})


async def get_key(call: Call) -> Answer:
    """Return one key."""
    call.query(Query)
    for key in await asyncio.to_thread(_keys_of, call):
        if key.id == call.params[0]:
            return answered(shown(key))
    raise NotFound(f"there is no key {call.params[0]!r} here")


async def make_key(call: Call) -> Answer:
    """Make a key; a repeat is answered with the key, but not with its secret again."""
    asked = call.parse(bodies.NewKey)
    mode = call.key.mode if isinstance(asked.mode, msgspec.UnsetType) else asked.mode
    if mode != call.key.mode:
        raise Forbidden(f"a {call.key.mode} key makes {call.key.mode} keys only")
    at = call.tenant.engine.clock()
    life = None
    if not isinstance(asked.expires_in, msgspec.UnsetType) and asked.expires_in is not None:
        life = at + calendar.span(asked.expires_in, "expires_in")
    key, secret = keys.new_key(
        call.key.project,
        call.key.mode,
        key_id=_id_of(call),
        name=asked.name,
        scopes=asked.scopes,
        accounts=() if isinstance(asked.accounts, msgspec.UnsetType) else asked.accounts,
        at=at,
        created_by=call.key.id,
        expires_at=life,
    )
    return await _put(call, key, secret)


async def rotate_key(call: Call) -> Answer:
    """Make a key like this one, which ends itself after an overlap; it lives as long from now."""
    asked = call.parse(bodies.Rotate)
    overlap = OVERLAP
    if not isinstance(asked.overlap, msgspec.UnsetType):
        overlap = calendar.span(asked.overlap, "overlap")
    at = call.tenant.engine.clock()
    new_id = _id_of(call)

    def act(tx: Writer) -> tuple[keys.ApiKey, str | None]:
        old = keys.end_key(tx, call.params[0], at, ledger=call.tenant.name, later=overlap)
        if not old.is_good(at) and tx.document("key", new_id) is None:
            raise InvalidInput(f"key {old.id} has ended, so nothing can take its place: make one")
        key, secret = keys.new_key(
            old.project,
            old.mode,
            key_id=new_id,
            name=old.name,
            scopes=old.scopes,
            accounts=old.accounts,
            at=at,
            created_by=call.key.id,
            expires_at=None if old.life is None else at + old.life,
        )
        key = replace(key, asked=keys.asked_of(old.id, overlap))
        kept = keys.put_key(tx, key)
        return kept, secret if kept == key else None

    key, secret = await asyncio.to_thread(call.tenant.engine.perform, act)
    return _made(key, secret)


async def revoke_key(call: Call) -> Answer:
    """End a key at once: when this is answered, no process takes it any more."""
    call.query(Query)
    at, name = call.tenant.engine.clock(), call.tenant.name

    def act(tx: Writer) -> keys.ApiKey:
        return keys.end_key(tx, call.params[0], at, ledger=name)

    key = await asyncio.to_thread(call.tenant.engine.perform, act)
    await keys.settled()
    return answered(shown(key))


def shown(key: keys.ApiKey, secret: str | None = None) -> dict[str, object]:
    """Return a key as it may be shown."""
    return {
        "id": key.id,
        "name": key.name,
        "project": key.project,
        "mode": key.mode,
        "scopes": key.scopes,
        "accounts": key.accounts,
        "shown": key.shown,
        "created_at": show_instant(key.created_at),
        "created_by": key.created_by,
        "expires_at": None if key.expires_at is None else show_instant(key.expires_at),
        "revoked_at": None if key.revoked_at is None else show_instant(key.revoked_at),
        "secret": secret,
    }


def _keys_of(call: Call) -> list[keys.ApiKey]:
    with call.tenant.reads.store.read() as reader:
        return [key for key in keys.keys_in(reader) if key.ledger == call.tenant.name]


def _id_of(call: Call) -> str:
    """Return the id of a new key, made from the caller's id of the event: a repeat finds it."""
    event = f"{call.tenant.name}\n{call.request_id()}"
    return f"key_{sha256(event.encode()).hexdigest()[:16]}"


async def _put(call: Call, key: keys.ApiKey, secret: str) -> Answer:
    def act(tx: Writer) -> keys.ApiKey:
        return keys.put_key(tx, key)

    kept = await asyncio.to_thread(call.tenant.engine.perform, act)
    return _made(kept, secret if kept == key else None)


def _made(key: keys.ApiKey, secret: str | None) -> Answer:
    return answered(shown(key, secret), replayed=secret is None)
