"""`Client`: a ledger's verbs over HTTP for threads. The driver that waits by blocking."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

import tillroll
from tillroll.client.asking import Asking
from tillroll.client.conversation import Do, Lost, Reply, Rules, Send, Step, Steps
from tillroll.client.exposure import FailOpen
from tillroll.client.payments import Payments
from tillroll.client.webhooks import Webhooks
from tillroll.embedded import OpenHold, Outcome
from tillroll.embedded.reads import Reads
from tillroll.ledger.commands import Request
from tillroll.ledger.errors import InvalidInput, StoreClosed, TillrollError
from tillroll.ledger.receipts import Receipt
from tillroll.ledger.verbs import Verbs

if TYPE_CHECKING:
    import httpx2

    from tillroll.client.journal import Journal, Pending
    from tillroll.client.transport import Wire

P = ParamSpec("P")
R = TypeVar("R")

TIMEOUT_SECONDS = 30.0
CONNECTIONS_MAX = 100
DELIVER_SECONDS = 1.0  # between two rounds of delivering; twice as long after each that failed
DELIVER_SECONDS_MAX = 60.0
TIMEOUT_SECONDS_MAX = 1_000_000
LEAVE_SECONDS = 2.0  # what close() waits for a delivery under way; what is not done stays


def _sync(
    build: Callable[Concatenate[Verbs, P], Request],
) -> Callable[Concatenate[Client, P], Receipt]:
    """Make a verb of `Client` that blocks until the service has answered."""
    name = build.__name__

    @functools.wraps(build)
    def verb(self: Client, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        return self._run(self._asking.write(name, args, kwargs))

    verb.__annotations__ = {**build.__annotations__, "return": "Receipt"}
    return verb  # type: ignore[return-value]  # functools.wraps hides it


def _sync_hold(
    build: Callable[Concatenate[Verbs, P], Request],
) -> Callable[Concatenate[Client, P], OpenHold]:
    """Make `Client.hold`, whose receipt is also a context manager."""

    @functools.wraps(build)
    def verb(self: Client, *args: P.args, **kwargs: P.kwargs) -> OpenHold:
        return OpenHold(self, self._run(self._asking.write("hold", args, kwargs)))

    verb.__annotations__ = {**build.__annotations__, "return": "OpenHold"}
    return verb  # type: ignore[return-value]  # functools.wraps hides it


def _preview(
    build: Callable[Concatenate[Verbs, P], Request],
) -> Callable[Concatenate[ClientPreview, P], Receipt]:
    """Make a verb of `ClientPreview`, of which nothing is written."""
    name = build.__name__

    @functools.wraps(build)
    def verb(self: ClientPreview, *args: P.args, **kwargs: P.kwargs) -> Receipt:
        client = self._client
        return client._run(client._asking.preview(name, args, kwargs))  # noqa: SLF001 - its part

    verb.__annotations__ = {**build.__annotations__, "return": "Receipt"}
    return verb  # type: ignore[return-value]  # functools.wraps hides it


def _read(
    look: Callable[Concatenate[Reads, P], R],
) -> Callable[Concatenate[Client, P], R]:
    """Make a read of `Client` with the arguments and the answer of a ledger's."""
    name = look.__name__

    @functools.wraps(look)
    def read(self: Client, *args: P.args, **kwargs: P.kwargs) -> R:
        found: R = self._run(getattr(self._asking, name)(*args, **kwargs))
        return found

    return read  # type: ignore[return-value]  # functools.wraps hides it


def _service(
    asked: Callable[Concatenate[Asking, P], Steps[R]],
) -> Callable[Concatenate[Client, P], R]:
    """Make a method of `Client` that is about the service."""

    @functools.wraps(asked)
    def ask(self: Client, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._run(asked(self._asking, *args, **kwargs))

    answer = asked.__annotations__["return"].removeprefix("Steps[").removesuffix("]")
    ask.__annotations__ = {**asked.__annotations__, "return": answer}
    return ask  # type: ignore[return-value]  # functools.wraps hides it


class ClientPreview:
    """The verbs that move units, decided as they would be decided now; nothing is written."""

    def __init__(self, client: Client) -> None:
        """Preview through this client."""
        self._client = client

    grant = _preview(Verbs.grant)
    void = _preview(Verbs.void)
    adjust = _preview(Verbs.adjust)
    consume = _preview(Verbs.consume)
    hold = _preview(Verbs.hold)
    settle = _preview(Verbs.settle)
    release = _preview(Verbs.release)
    refund = _preview(Verbs.refund)
    buy = _preview(Verbs.buy)
    redeem = _preview(Verbs.redeem)


class Client:
    """A ledger behind a tillroll service, with the verbs of `Ledger`; safe between threads.

    Every verb has one request id in all its attempts, made if you give none, so that whatever the
    network does it has one effect at the most. What could not be asked within `timeout` raises
    `StoreUnavailable` where nothing can have been written, and `OutcomeUnknown` where it can: then
    ask again with the same `request_id`. It may be used across forks. Needs
    `pip install 'tillroll[client]'`.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str,
        timeout: float = TIMEOUT_SECONDS,
        journal: str | os.PathLike[str] | None = None,
        fail_open: FailOpen | None = None,
        connections_max: int = CONNECTIONS_MAX,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Speak with the service at this address. Nothing is sent before the first verb.

        Args:
            url: Where it is, such as "https://credits.example.com".
            api_key: A key of the service, "tr_live_..." or "tr_test_...".
            timeout: Seconds for everything that one verb does, all attempts and pauses included.
            journal: A file that keeps the endings of holds (settle, release, in doubt, resolve)
                until they are answered. What is left in it is delivered in the background, from
                the start. Processes may share it; one journal is one project's.
            fail_open: Let consumes and holds through while the service is away, up to a bound.
            connections_max: How many connections may be open at once.
            transport: What carries requests instead of the network, such as in tests.

        Raises:
            InvalidInput: One of these makes no sense, or httpx2 is not installed.
            StoreUnavailable: The journal cannot be used.
        """
        self._wire = wire(url, api_key, connections_max)
        self._transport = transport
        self._asking = Asking(Rules(seconds_of(timeout)), opened(journal), fail_open)
        self._asking.left = self._deliver_behind
        self._begin()
        self._closed = False
        _ALIVE.add(self)
        if self._asking.journal is not None and self._asking.journal.rows(waiting=True):
            self._deliver_behind()

    def _begin(self) -> None:
        """Begin without a connection and without a thread: at first, and in a forked child."""
        self._lock = threading.Lock()
        self._http: httpx2.Client | None = None
        self._courier: threading.Thread | None = None
        self._more = False  # something was left in the journal since the courier last looked
        self._stop = threading.Event()

    def __repr__(self) -> str:
        """Show where the service is, never the key."""
        return f"<{type(self).__name__} {self._wire.base}>"

    # ------------------------------------------------------------ the driver

    def _run(self, steps: Steps[R], stop: threading.Event | None = None) -> R:
        """Carry out a conversation."""
        try:
            step = next(steps)
            while True:
                try:
                    heard = self._carry_out(step, stop)
                except Exception as problem:  # noqa: BLE001 - the conversation decides
                    step = steps.throw(problem)
                else:
                    step = steps.send(heard)
        except StopIteration as end:
            result: R = end.value
            return result
        finally:
            steps.close()

    def _carry_out(self, step: Step, stop: threading.Event | None) -> object:
        if isinstance(step, Do):
            return step.work()
        if isinstance(step, Send):
            return self._send(step)
        if (stop or self._stop).wait(step.seconds) and stop is not None:
            raise StoreClosed("the client is closed; what waits stays in the journal")
        return None

    def _send(self, step: Send) -> Reply | Lost:
        http = self._connected()
        request = self._wire.request(http, step.call, step.seconds)
        answer = self._wire.answer(step.seconds)
        try:
            with contextlib.closing(http.send(request, stream=True)) as response:
                for part in response.iter_bytes():
                    cut = answer.add(part)
                    if cut is not None:
                        return cut
                return answer.reply(response)
        except self._wire.RequestError as problem:
            return self._wire.lost(problem)
        except RuntimeError as problem:  # closed by another thread meanwhile
            if not self._closed:
                raise
            return Lost(sent=True, why=str(problem))

    def _connected(self) -> httpx2.Client:
        with self._lock:
            if self._closed:
                raise StoreClosed("the client is closed; nothing was written")
            if self._http is None:
                self._http = self._wire.client(self._transport)
            return self._http

    # ------------------------------------------------------------ the journal

    def pending(self) -> list[Pending]:
        """Return what is in the journal: what waits to be delivered, and what was refused late.

        Raises:
            InvalidInput: This client has no journal.
        """
        return self._run(self._asking.pending())

    def deliver(self) -> list[Pending]:
        """Deliver now what waits in the journal, one after another, and return what is left.

        It is done in the background anyway; this is for who wants to wait for it.

        Raises:
            InvalidInput: This client has no journal, or one of another project.
            StoreUnavailable, Unauthorized: The service did not say whose key this is.
        """
        return self._run(self._asking.deliver())

    def dismiss(self, pending: Pending) -> bool:
        """Forget a request that was refused late; return whether it was there.

        What waits cannot be dismissed.
        """
        return self._run(self._asking.dismiss(pending))

    def _deliver_behind(self) -> None:
        """Have what waits delivered in the background, by one thread at the most."""
        with self._lock:
            self._more = True
            if self._closed or self._courier is not None:
                return
            courier = threading.Thread(
                target=self._deliver_all, args=(self._stop,), name="tillroll-deliver", daemon=True
            )
            with contextlib.suppress(RuntimeError):  # the interpreter ends: the next one delivers
                courier.start()
                self._courier = courier

    def _deliver_all(self, stop: threading.Event) -> None:
        """Deliver until nothing waits, or the client is closed."""
        pause = DELIVER_SECONDS
        while not stop.is_set():
            with self._lock:
                self._more = False
            done = self._deliver_some(stop)
            with self._lock:
                if done and not self._more:
                    self._courier = None
                    return
            if not done:
                stop.wait(pause)
                pause = min(2 * pause, DELIVER_SECONDS_MAX)

    def _deliver_some(self, stop: threading.Event) -> bool:
        """Deliver what waits now; return whether there is nothing more to do."""
        try:
            left = self._run(self._asking.deliver(), stop)
        except InvalidInput:  # another project's journal: who asks next is told
            return True
        except (TillrollError, OSError, RuntimeError):
            return False
        return not any(one.state == "waiting" for one in left)

    # ------------------------------------------------------------ the verbs

    grant = _sync(Verbs.grant)
    void = _sync(Verbs.void)
    adjust = _sync(Verbs.adjust)
    consume = _sync(Verbs.consume)
    hold = _sync_hold(Verbs.hold)
    extend = _sync(Verbs.extend)
    settle = _sync(Verbs.settle)
    release = _sync(Verbs.release)
    mark_in_doubt = _sync(Verbs.mark_in_doubt)
    resolve = _sync(Verbs.resolve)
    refund = _sync(Verbs.refund)
    freeze = _sync(Verbs.freeze)
    unfreeze = _sync(Verbs.unfreeze)
    close_account = _sync(Verbs.close_account)
    set_overdraft = _sync(Verbs.set_overdraft)
    set_budget = _sync(Verbs.set_budget)
    remove_budget = _sync(Verbs.remove_budget)
    set_alert = _sync(Verbs.set_alert)
    remove_alert = _sync(Verbs.remove_alert)
    set_recurring = _sync(Verbs.set_recurring)
    stop_recurring = _sync(Verbs.stop_recurring)
    configure = _sync(Verbs.configure)
    buy = _sync(Verbs.buy)
    redeem = _sync(Verbs.redeem)
    subscribe = _sync(Verbs.subscribe)
    entitle = _sync(Verbs.entitle)
    change_entitlement = _sync(Verbs.change_entitlement)
    end_entitlement = _sync(Verbs.end_entitlement)

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

    def consume_many(self, items: Iterable[Mapping[str, object]]) -> list[Outcome]:
        """Consume many in one request; see `Ledger.consume_many`.

        Where the answer to all of them was lost for good, each outcome is "unknown".
        """
        return self._run(self._asking.consume_many(items))

    @property
    def preview(self) -> ClientPreview:
        """The same verbs, decided as they would be now, with nothing written."""
        return ClientPreview(self)

    def entries(self, account: str | None = None, *, due: bool = False) -> Iterator[Receipt]:
        """Yield every entry, account by account, oldest first; for exports.

        With `due`, each account's are followed by what fell due and nobody has booked yet.
        """
        for name in self.accounts() if account is None else [account]:
            after: int | None = 0
            while after is not None:
                page = self._run(self._asking.page(name, after))
                yield from page.receipts
                yield from page.due if due else ()
                after = page.next

    def accounts(self) -> Iterator[str]:
        """Yield the names of all accounts that have a history."""
        after: str | None = ""
        while after is not None:
            names, after = self._run(self._asking.names(after))
            yield from names

    def whoami(self) -> dict[str, Any]:
        """Return what the service knows of the key: project, mode, scopes, accounts, scale."""
        return self._run(self._asking.whoami())

    @property
    def scale(self) -> int:
        """Decimals of the units; the service is asked once."""
        if self._asking.scale is None:
            self.whoami()
        assert self._asking.scale is not None
        return self._asking.scale

    @property
    def project(self) -> str:
        """The isolation boundary of the key; the service is asked once."""
        if self._asking.project is None:
            self.whoami()
        assert self._asking.project is not None
        return self._asking.project

    # ------------------------------------------------------------ ending

    def close(self) -> None:
        """Close connections and journal; what waits in it stays. May be called twice."""
        self._closed = True
        self._stop.set()
        courier = self._courier
        if courier is not None and courier is not threading.current_thread():
            courier.join(LEAVE_SECONDS)
        with self._lock:
            http, self._http = self._http, None
        if http is not None:
            http.close()
        if self._asking.journal is not None:
            self._asking.journal.close()

    def __enter__(self) -> Self:
        """Use the client as a context manager that closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the client."""
        self.close()


def wire(url: str, api_key: str, connections_max: int) -> Wire:
    """Return what puts calls on the wire."""
    try:
        from tillroll.client.transport import Wire  # noqa: PLC0415 - an extra
    except ImportError as problem:
        raise InvalidInput(
            f"a client needs httpx2: pip install 'tillroll[client]' ({problem})"
        ) from None
    return Wire(url, api_key, tillroll.__version__, connections_max)


def opened(path: str | os.PathLike[str] | None) -> Journal | None:
    """Return the journal at this path, None where there is to be none."""
    if path is None:
        return None
    from tillroll.client.journal import Journal  # noqa: PLC0415 - apsw is slow to import

    return Journal(path)


def seconds_of(timeout: float) -> float:
    sound = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not (sound and 0 < timeout <= TIMEOUT_SECONDS_MAX):
        raise InvalidInput("timeout must be a number of seconds greater than zero")
    return float(timeout)


# A forked child must not speak on its parent's connections: both would read one answer. What it
# inherited is kept from being collected, which would tell the service that the parent hangs up.
_ALIVE: weakref.WeakSet[Client] = weakref.WeakSet()
_INHERITED: list[object] = []


def _after_fork() -> None:
    for client in list(_ALIVE):
        _INHERITED.append(client._http)  # noqa: SLF001 - same module
        client._begin()  # noqa: SLF001 - same module


os.register_at_fork(after_in_child=_after_fork)

__all__ = ["Client", "ClientPreview"]
