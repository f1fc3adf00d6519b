"""`AsyncClient`: a ledger's verbs over HTTP for event loops. The driver that waits by awaiting."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

from tillroll.client import blocking
from tillroll.client.asking import Asking
from tillroll.client.blocking import CONNECTIONS_MAX, TIMEOUT_SECONDS, Client
from tillroll.client.calls import write_call
from tillroll.client.conversation import Do, Lost, Reply, Rules, Send, Step, Steps
from tillroll.client.exposure import FailOpen
from tillroll.client.payments import Payments
from tillroll.client.webhooks import Webhooks
from tillroll.embedded import Outcome, PendingHold
from tillroll.embedded.answers import new_id
from tillroll.embedded.reads import Reads
from tillroll.ledger.commands import Request
from tillroll.ledger.errors import InvalidInput, StoreClosed, TillrollError
from tillroll.ledger.receipts import Receipt
from tillroll.ledger.verbs import Verbs

if TYPE_CHECKING:
    import httpx2

    from tillroll.client.journal import Pending

P = ParamSpec("P")
R = TypeVar("R")


def _async(
    build: Callable[Concatenate[Verbs, P], Request],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, Receipt]]:
    """Make a verb of `AsyncClient` that awaits the answer."""
    name = build.__name__

    @functools.wraps(build)
    async def verb(self: AsyncClient, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        return await self._run(self._asking.write(name, args, kwargs))

    verb.__annotations__ = {**build.__annotations__, "return": "Receipt"}
    return verb  # type: ignore[return-value]  # functools.wraps hides it


def _async_hold(
    build: Callable[Concatenate[Verbs, P], Request],
) -> Callable[Concatenate[AsyncClient, P], PendingHold]:
    """Make `AsyncClient.hold`, to be awaited or entered with `async with`."""

    @functools.wraps(build)
    def verb(self: AsyncClient, *args: P.args, **kwargs: P.kwargs) -> PendingHold:
        if kwargs.get("request_id") is None:
            kwargs["request_id"] = new_id()  # now: awaiting it twice is one hold
        verbs = self._asking.verbs()
        if verbs is not None:
            write_call(verbs, "hold", args, kwargs)  # what is malformed is told at once

        async def ask() -> Receipt:
            return await self._run(self._asking.write("hold", args, kwargs))

        return PendingHold(self, ask)

    verb.__annotations__ = {**build.__annotations__, "return": "PendingHold"}
    return verb  # type: ignore[return-value]  # functools.wraps hides it


def _read(
    look: Callable[Concatenate[Reads, P], R],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, R]]:
    """Make a read of `AsyncClient` with the arguments and the answer of a ledger's."""
    name = look.__name__

    @functools.wraps(look)
    async def read(self: AsyncClient, *args: P.args, **kwargs: P.kwargs) -> R:
        found: R = await self._run(getattr(self._asking, name)(*args, **kwargs))
        return found

    return read  # type: ignore[return-value]  # functools.wraps hides it


def _service(
    asked: Callable[Concatenate[Asking, P], Steps[R]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, R]]:
    """Make a method of `AsyncClient` that is about the service."""

    @functools.wraps(asked)
    async def ask(self: AsyncClient, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._run(asked(self._asking, *args, **kwargs))

    answer = asked.__annotations__["return"].removeprefix("Steps[").removesuffix("]")
    ask.__annotations__ = {**asked.__annotations__, "return": answer}
    return ask  # type: ignore[return-value]  # functools.wraps hides it


class AsyncClient:
    """The same verbs to be awaited; see `Client`. It has the methods of `AsyncLedger`."""

    is_joined = False

    def __init__(
        self,
        url: str,
        *,
        api_key: str,
        timeout: float = TIMEOUT_SECONDS,
        journal: str | os.PathLike[str] | None = None,
        fail_open: FailOpen | None = None,
        connections_max: int = CONNECTIONS_MAX,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Speak with the service at this address; arguments as for `Client`.

        What is left in the journal is delivered in the background from the first thing awaited.
        """
        self._wire = blocking.wire(url, api_key, connections_max)
        self._transport = transport
        self._asking = Asking(
            Rules(blocking.seconds_of(timeout)), blocking.opened(journal), fail_open
        )
        self._asking.left = self._deliver_behind
        self._http: httpx2.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._courier: asyncio.Task[None] | None = None
        self._more = False  # something was left in the journal since the courier last looked
        self._closed = False
        self._made_sync = functools.partial(
            Client,
            url,
            api_key=api_key,
            timeout=timeout,
            journal=journal,
            fail_open=fail_open,
            connections_max=connections_max,
        )
        self._sync: Client | None = None

    def __repr__(self) -> str:
        """Show where the service is, never the key."""
        return f"<{type(self).__name__} {self._wire.base}>"

    @property
    def sync(self) -> Client:
        """A client for threads: for iterating entries and accounts, and for previews."""
        if self._sync is None:
            self._sync = self._made_sync()
        return self._sync

    # ------------------------------------------------------------ the driver

    async def _run(self, steps: Steps[R]) -> R:
        """Carry out a conversation."""
        try:
            self._arrive()
            step = next(steps)
            while True:
                try:
                    heard = await self._carry_out(step)
                except Exception as problem:  # noqa: BLE001 - the conversation decides
                    step = steps.throw(problem)
                else:
                    step = steps.send(heard)
        except StopIteration as end:
            result: R = end.value
            return result
        finally:
            steps.close()

    async def _carry_out(self, step: Step) -> object:
        if isinstance(step, Do):
            return await asyncio.to_thread(step.work)
        if isinstance(step, Send):
            return await self._send(step)
        await asyncio.sleep(step.seconds)
        return None

    async def _send(self, step: Send) -> Reply | Lost:
        http = self._connected()
        request = self._wire.request(http, step.call, step.seconds)
        answer = self._wire.answer(step.seconds)
        try:
            async with asyncio.timeout(step.seconds):
                response = await http.send(request, stream=True)
                async with contextlib.aclosing(response):
                    async for part in response.aiter_bytes():
                        cut = answer.add(part)
                        if cut is not None:
                            return cut
                    return answer.reply(response)
        except self._wire.RequestError as problem:
            return self._wire.lost(problem)
        except TimeoutError:
            return Lost(sent=True, why="no answer in time")
        except RuntimeError as problem:  # closed meanwhile
            if not self._closed:
                raise
            return Lost(sent=True, why=str(problem))

    def _arrive(self) -> None:
        """Notice the event loop that runs here; what waits in the journal is delivered on it."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self._http = None  # connections belong to the loop that opened them
            self._courier = None
            if self._asking.journal is not None:
                self._deliver_behind()

    def _connected(self) -> httpx2.AsyncClient:
        if self._closed:
            raise StoreClosed("the client is closed; nothing was written")
        if self._http is None:
            self._http = self._wire.async_client(self._transport)
        return self._http

    # ------------------------------------------------------------ the journal

    async def pending(self) -> list[Pending]:
        """Return what is in the journal; see `Client.pending`."""
        return await self._run(self._asking.pending())

    async def deliver(self) -> list[Pending]:
        """Deliver now what waits in the journal, and return what is left."""
        return await self._run(self._asking.deliver())

    async def dismiss(self, pending: Pending) -> bool:
        """Forget a request that was refused late; return whether it was there."""
        return await self._run(self._asking.dismiss(pending))

    def _deliver_behind(self) -> None:
        """Have what waits delivered in the background, by one task at the most."""
        self._more = True
        if self._closed or (self._courier is not None and not self._courier.done()):
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # a conversation that is collected when its loop is gone
            return
        self._courier = loop.create_task(self._deliver_all(), name="tillroll-deliver")

    async def _deliver_all(self) -> None:
        """Deliver until nothing waits, or the client is closed."""
        pause = blocking.DELIVER_SECONDS
        while not self._closed:
            self._more = False
            done = await self._deliver_some()
            if done and not self._more:
                self._courier = None
                return
            if not done:
                await asyncio.sleep(pause)
                pause = min(2 * pause, blocking.DELIVER_SECONDS_MAX)

    async def _deliver_some(self) -> bool:
        """Deliver what waits now; return whether there is nothing more to do."""
        try:
            left = await self._run(self._asking.deliver())
        except InvalidInput:  # another project's journal: who asks next is told
            return True
        except (TillrollError, OSError, RuntimeError):
            return False
        return not any(one.state == "waiting" for one in left)

    # ------------------------------------------------------------ the verbs

    grant = _async(Verbs.grant)
    void = _async(Verbs.void)
    adjust = _async(Verbs.adjust)
    consume = _async(Verbs.consume)
    hold = _async_hold(Verbs.hold)
    extend = _async(Verbs.extend)
    settle = _async(Verbs.settle)
    release = _async(Verbs.release)
    mark_in_doubt = _async(Verbs.mark_in_doubt)
    resolve = _async(Verbs.resolve)
    refund = _async(Verbs.refund)
    freeze = _async(Verbs.freeze)
    unfreeze = _async(Verbs.unfreeze)
    close_account = _async(Verbs.close_account)
    set_overdraft = _async(Verbs.set_overdraft)
    set_budget = _async(Verbs.set_budget)
    remove_budget = _async(Verbs.remove_budget)
    set_alert = _async(Verbs.set_alert)
    remove_alert = _async(Verbs.remove_alert)
    set_recurring = _async(Verbs.set_recurring)
    stop_recurring = _async(Verbs.stop_recurring)
    configure = _async(Verbs.configure)
    buy = _async(Verbs.buy)
    redeem = _async(Verbs.redeem)
    subscribe = _async(Verbs.subscribe)
    entitle = _async(Verbs.entitle)
    change_entitlement = _async(Verbs.change_entitlement)
    end_entitlement = _async(Verbs.end_entitlement)

    balance = _read(Reads.balance)
    statement = _read(Reads.statement)
    usage = _read(Reads.usage)
    explain = _read(Reads.explain)
    hold_state = _read(Reads.hold_state)
    verify = _read(Reads.verify)
    overview = _read(Reads.overview)
    knows = _read(Reads.knows)
    access = _read(Reads.access)
    entitlements = _read(Reads.entitlements)
    holdings = _read(Reads.holdings)
    history = _read(Reads.history)
    receipt = _read(Reads.receipt)
    prices = _read(Reads.prices)
    apply_prices = _read(Reads.apply_prices)
    quote = _read(Reads.quote)
    erase_metadata = _read(Reads.erase_metadata)

    checkout = _service(Payments.checkout)
    payments = _service(Payments.payments)
    unplaced_payments = _service(Payments.unplaced_payments)
    top_up = _service(Payments.top_up)
    set_top_up = _service(Payments.set_top_up)
    pause_top_up = _service(Payments.pause_top_up)
    resume_top_up = _service(Payments.resume_top_up)
    overage = _service(Payments.overage)
    set_overage = _service(Payments.set_overage)
    stop_overage = _service(Payments.stop_overage)
    resolve_overage = _service(Payments.resolve_overage)
    list_endpoints = _service(Webhooks.list_endpoints)
    get_endpoint = _service(Webhooks.get_endpoint)
    make_endpoint = _service(Webhooks.make_endpoint)
    change_endpoint = _service(Webhooks.change_endpoint)
    remove_endpoint = _service(Webhooks.remove_endpoint)
    rotate_endpoint = _service(Webhooks.rotate_endpoint)
    list_deliveries = _service(Webhooks.list_deliveries)
    get_event = _service(Webhooks.get_event)
    send_again = _service(Webhooks.send_again)

    async def consume_many(self, items: Iterable[Mapping[str, object]]) -> list[Outcome]:
        """Consume many in one request; see `Client.consume_many`."""
        return await self._run(self._asking.consume_many(items))

    async def whoami(self) -> dict[str, Any]:
        """Return what the service knows of the key: project, mode, scopes, accounts, scale."""
        return await self._run(self._asking.whoami())

    # ------------------------------------------------------------ ending

    async def close(self) -> None:
        """Close connections and journal; what waits in it stays. May be called twice."""
        self._closed = True
        here = asyncio.get_running_loop() is self._loop
        courier, self._courier = self._courier, None
        if here and courier is not None:
            courier.cancel()
            await asyncio.gather(courier, return_exceptions=True)
        http, self._http = self._http, None
        if here and http is not None:
            await http.aclose()
        if self._asking.journal is not None:
            await asyncio.to_thread(self._asking.journal.close)
        if self._sync is not None:
            await asyncio.to_thread(self._sync.close)

    async def __aenter__(self) -> Self:
        """Use the client as a context manager that closes it."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the client."""
        await self.close()
