"""The live balance: server-sent events, an entry when it is written and the balance after it.

The id of an event is the account's seq: whoever comes back with `Last-Event-ID` is sent every
entry in between first. Writes of this process are seen at once, those of others and what falls
due within `LOOK_SECONDS`.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from tillroll.api.calls import Call, Stream
from tillroll.api.reads import SEQ_MAX, WalletQuery
from tillroll.ledger.commands import account_id
from tillroll.ledger.errors import InvalidInput, NotFound
from tillroll.wire.answers import render

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tillroll.api.followers import Followers
    from tillroll.embedded import Ledger
    from tillroll.ledger.receipts import Receipt
    from tillroll.queries import Balance

LOOK_SECONDS = 1.0
ALIVE_SECONDS = 15.0  # a comment now and then keeps proxies from closing the connection
AT_ONCE_MAX = 1_000  # entries that are read at once: some 600 KB to be sent


async def follow(call: Call) -> Stream:
    """Stream the balance of one wallet as it changes, and each entry that changes it."""
    wallet = call.query(WalletQuery).wallet
    after = _last_seen(call)
    reads, account = call.tenant.reads, call.account
    if not await asyncio.to_thread(reads.knows, account):
        raise NotFound(f"there is no account {account!r} here")
    owner = account_id(call.tenant.name, account)
    followers = call.followers
    event = followers.join(owner)
    return Stream(
        _events(reads, account, wallet, after, followers, event),
        b"text/event-stream",
        partial(followers.leave, owner, event),
    )


async def _events(
    reads: Ledger,
    account: str,
    wallet: str,
    seen: int | None,
    followers: Followers,
    event: asyncio.Event,
) -> AsyncIterator[bytes]:
    silent = 0.0
    shown: bytes | None = None
    while not followers.stopping:
        event.clear()
        balance, entries = await asyncio.to_thread(_changes, reads, account, wallet, seen)
        if entries:
            seen = entries[-1].seq  # the balance was read a moment later
        elif seen is None or (shown is None and seen > balance.seq):
            seen = balance.seq  # also where what was seen is not there any more
        for entry in entries:
            yield _event("entry", entry.seq, render(entry.to_dict()))
        if len(entries) == AT_ONCE_MAX:
            continue  # the balance follows what else there is
        plain = balance.to_dict()
        plain.pop("as_of")
        now = render(plain)
        if entries or now != shown:
            shown, silent = now, 0.0
            yield _event("balance", seen, render(balance.to_dict()))
        elif silent >= ALIVE_SECONDS:
            silent = 0.0
            yield b": still here\n\n"
        try:
            await asyncio.wait_for(event.wait(), LOOK_SECONDS)
        except TimeoutError:
            silent += LOOK_SECONDS


def _changes(
    reads: Ledger, account: str, wallet: str, seen: int | None
) -> tuple[Balance, list[Receipt]]:
    """Return the balance now, and the entries since the one that was seen last."""
    entries = [] if seen is None else reads.history(account, after=seen, limit=AT_ONCE_MAX)
    return reads.balance(account, wallet), entries


def _event(kind: str, seq: int, data: bytes) -> bytes:
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (seq, kind.encode(), data)


def _last_seen(call: Call) -> int | None:
    given = call.headers.get(b"last-event-id")
    if not given:
        return None
    if not (given.isdigit() and len(given) <= len(str(SEQ_MAX)) and int(given) <= SEQ_MAX):
        raise InvalidInput("Last-Event-ID must be the id of an event that was sent")
    return int(given)
