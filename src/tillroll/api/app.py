"""The service as an ASGI application: from the head of a request to the last byte of its answer.

The walk of one call: `__call__ -> _answer (find the route, the key, the body) -> the route's
handler -> _send`. Whatever is raised on the way becomes a problem document.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol

from tillroll.api import licenzy
from tillroll.api.calls import JSON, Answer, Call, Stream, Tenant
from tillroll.api.followers import Followers
from tillroll.api.keys import Keyring
from tillroll.api.openapi import description
from tillroll.api.paying import TOLD_MAX, Paying
from tillroll.api.routes import routes
from tillroll.api.routing import Routes, decoded
from tillroll.ledger.errors import (
    Forbidden,
    InvalidInput,
    NotFound,
    Overloaded,
    TillrollError,
    TooManyRequests,
)
from tillroll.wire import problems
from tillroll.wire.answers import render

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence

    from tillroll.api.keys import ApiKey
    from tillroll.engine import Batch, Engine
    from tillroll.payments.desk import Desk

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

PER_KEY_MAX = 1_000
PROBLEMS = "/problems/"
TENANTS_MAX = 10_000
_ONCE = frozenset({b"authorization", b"idempotency-key", b"content-type", b"last-event-id"})


class Done(Protocol):
    """What is told of every call that was answered: logs, metrics, traces."""

    def __call__(
        self, call: Call | None, status: int, seconds: float, problem: Exception | None
    ) -> None:
        """Take note; `problem` is what was answered instead, `call` None where no route is."""


def tell_nobody(call: Call | None, status: int, seconds: float, problem: Exception | None) -> None:
    """Take no note of a call."""


class Disconnected(Exception):
    """The caller hung up before the request was whole."""


class Service:
    """The API over one engine. `public` are addresses that need no key, such as /livez.

    Attributes:
        engine: What carries every verb.
        followers: Who follows a balance.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        public: Mapping[str, Callable[[], Awaitable[Answer]]] | None = None,
        topup_url: str | None = None,
        per_key_max: int = PER_KEY_MAX,
        webhooks_private: bool = False,
        desks: Sequence[Desk] = (),
        done: Done = tell_nobody,
    ) -> None:
        """Serve this engine's ledgers.

        Args:
            engine: What carries every verb.
            public: Addresses that anybody may GET, and what answers.
            topup_url: Where an account's owner buys units; `{project}`, `{mode}` and `{account}`
                are filled in.
            per_key_max: How many calls of one key may be under way.
            webhooks_private: Take endpoints of plain HTTP, too.
            desks: Where ledgers meet their payment providers.
            done: Told of every call that was answered.
        """
        self.engine = engine
        self.followers = Followers()
        self._routes = Routes(routes())
        self._public = {"/openapi.json": _openapi, **(public or {})}
        self._keyring = Keyring(engine.store)
        self._tenants: dict[tuple[str, str], Tenant] = {}
        self._under_way: dict[str, int] = {}
        self._paying = Paying(desks)
        self._signed = 0
        self._per_key_max = per_key_max
        self._topup_url = topup_url
        self._webhooks_private = webhooks_private
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        began = time.perf_counter()
        call: Call | None = None
        failure: Exception | None = None
        try:
            try:
                if scope["path"] in self._public or scope["path"].startswith(PROBLEMS):
                    answer: Answer | Stream = await self._public_answer(scope)
                else:
                    call = self._route(scope)
                    answer = await self._answer(call, receive)
            except TillrollError as problem:
                failure = problem
                answer = self._problem(scope, call, problem)
            except Disconnected:
                return
            except Exception as problem:  # noqa: BLE001 - told to whoever takes note
                failure = problem
                answer = self._problem(
                    scope, call, problems.InternalError("it failed; see the logs")
                )
            if isinstance(answer, Stream):
                await _send_stream(answer, send, receive)
            else:
                await _send(answer, send, head_only=scope["method"] == "HEAD")
        finally:
            if call is not None and call.key is not None:
                self._leave(call.key)
        status = 200 if isinstance(answer, Stream) else answer.status
        self._done(call, status, time.perf_counter() - began, failure)

    # ------------------------------------------------------------ from the head to the handler

    async def _public_answer(self, scope: Scope) -> Answer:
        """Return the answer of an address that needs no key."""
        path: str = scope["path"]
        page = self._public.get(path)
        if scope["method"] not in ("GET", "HEAD"):
            raise problems.MethodNotAllowed(f"this address has GET, not {scope['method']}", "GET")
        if page is not None:
            return await page()
        text = problems.explain(path.removeprefix(PROBLEMS))
        if text is None:
            raise NotFound("there is no problem of that code")
        return Answer(text.encode(), media_type=b"text/plain; charset=utf-8")

    def _route(self, scope: Scope) -> Call:
        route, params = self._routes.find(scope["method"], scope["raw_path"])
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if len(headers) != len(scope["headers"]):
            _refuse_doubled(scope["headers"])
        return Call(self.followers, self._paying, route, params, headers, scope["query_string"])

    async def _answer(self, call: Call, receive: Receive) -> Answer | Stream:
        route = call.route
        call.params = list(map(decoded, call.params))
        if route.signed:
            return await self._signed_answer(call, receive)
        token = _token(call.headers.get(b"authorization", b""))
        key = self._keyring.known(token) or await self._keyring.find(token)
        self._enter(call, key)
        call.tenant = self._tenant(call.key)
        if route.body is not None:
            call.body = await _body(call, receive)
        return await route.handler(call)

    async def _signed_answer(self, call: Call, receive: Receive) -> Answer | Stream:
        """Answer a call without a key: nobody knows yet who calls, so few are at work at once.

        Raises:
            Overloaded: They are.
        """
        if self._signed >= TOLD_MAX:
            raise Overloaded(f"{TOLD_MAX} webhooks are being taken in, as many as may be")
        self._signed += 1
        try:
            call.body = await _body(call, receive)
            return await call.route.handler(call)
        finally:
            self._signed -= 1

    def _enter(self, call: Call, key: ApiKey | None) -> None:
        """Count a call in whose key may do what it asks for.

        Raises:
            InvalidApiKey, Forbidden, TooManyRequests: It may not.
        """
        if key is None or not key.is_good(self.engine.clock()):
            raise problems.InvalidApiKey("the API key is not known, has expired or was revoked")
        under_way = self._under_way.get(key.id, 0)
        if under_way >= self._per_key_max:
            raise TooManyRequests(
                f"{under_way} calls of this key are under way, which is as many as may be"
            )
        self._under_way[key.id] = under_way + 1
        call.key = key
        route = call.route
        if not key.may(route.scopes):
            raise Forbidden(
                f"this key has the scopes {', '.join(key.scopes)}; this needs "
                f"{' or '.join(sorted(route.scopes))}"
            )
        if key.accounts and (route.whole_project or route.has_account):
            call.check_open(None if route.whole_project else call.account)

    def _leave(self, key: ApiKey) -> None:
        left = self._under_way[key.id] - 1
        if left:
            self._under_way[key.id] = left
        else:
            del self._under_way[key.id]

    def _tenant(self, key: ApiKey) -> Tenant:
        tenant = self._tenants.get((key.project, key.mode))
        if tenant is None:
            if len(self._tenants) >= TENANTS_MAX:
                self._tenants.clear()  # they hold nothing that is not made again
            private = self._webhooks_private
            tenant = Tenant(self.engine, key.ledger, webhooks_private=private)
            self._tenants[key.project, key.mode] = tenant
        return tenant

    # ------------------------------------------------------------ what is answered instead

    def _problem(self, scope: Scope, call: Call | None, problem: TillrollError) -> Answer:
        """Return the answer to a call that came to nothing, or to a no."""
        if call is not None and call.route.licenzy:
            return licenzy.problem(problem, scope["path"])
        shown = problems.document(problem, scope["path"], self._topup(call, problem))
        headers = problems.headers_of(problem).items()
        return Answer(
            render(shown),
            shown["status"],
            tuple((name.encode(), value.encode()) for name, value in headers),
            problems.MEDIA_TYPE,
        )

    def _topup(self, call: Call | None, problem: TillrollError) -> str | None:
        account = getattr(problem, "account", None)
        if self._topup_url is None or call is None or call.key is None or account is None:
            return None
        return fill(self._topup_url, project=call.key.project, mode=call.key.mode, account=account)

    # ------------------------------------------------------------ beside the calls

    def notice(self, batch: Batch) -> None:
        """Take note of a batch that was written; called by the thread that wrote it."""
        self.followers.notice(batch)

    def stop(self) -> None:
        """End what would not end by itself."""
        self.followers.stop()

    def close(self) -> None:
        """Wait for what payment providers are being asked, and for what they tell."""
        self._paying.close()


def fill(template: str, **values: str) -> str:
    """Return a link with `{project}`, `{mode}` and `{account}` filled in, percent-encoded."""
    from urllib.parse import quote  # noqa: PLC0415 - refusals only

    for name, value in values.items():
        template = template.replace("{" + name + "}", quote(value, safe=""))
    return template


def _token(authorization: bytes) -> str:
    """Return the API key that a request says it has.

    Raises:
        MissingBearerToken: It says none.
    """
    scheme, _, token = authorization.partition(b" ")
    if scheme.lower() != b"bearer" or not token:
        raise problems.MissingBearerToken("send the header Authorization: Bearer tr_...")
    return token.decode("latin-1")


def _refuse_doubled(headers: list[tuple[bytes, bytes]]) -> None:
    """Refuse a request that says twice who calls or what for: proxies disagree about which counts.

    Raises:
        InvalidInput: It does.
    """
    names = [name for name, _ in headers if name in _ONCE]
    if len(names) != len(set(names)):
        raise InvalidInput("a header that may come once comes twice")


async def _openapi() -> Answer:
    return Answer(description(), media_type=b"application/json")


async def _body(call: Call, receive: Receive) -> bytes:
    """Return the whole body.

    Raises:
        UnsupportedMediaType, BodyTooLarge: It is not read.
        Disconnected: It did not come whole.
    """
    media_type = call.headers.get(b"content-type", JSON)
    if media_type != JSON and media_type.split(b";")[0].strip().lower() != JSON:
        raise problems.UnsupportedMediaType("the body must be application/json")
    most = call.route.body_max
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Disconnected
        body += message.get("body", b"")
        if len(body) > most:
            raise problems.BodyTooLarge(f"the body may have {most} bytes at the most")
        if not message.get("more_body", False):
            return bytes(body)


async def _send(answer: Answer, send: Send, *, head_only: bool = False) -> None:
    body, status, headers, media_type = answer
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", media_type),
                (b"content-length", b"%d" % len(body)),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": b"" if head_only else body})


async def _send_stream(answer: Stream, send: Send, receive: Receive) -> None:
    """Send parts as they come, until there are no more or the caller hangs up."""
    headers = [(b"content-type", answer.media_type), (b"cache-control", b"no-store")]
    sending = asyncio.ensure_future(_send_parts(answer, send, headers))
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        sending.cancel()
        await asyncio.gather(sending, gone, return_exceptions=True)
        answer.ended()


async def _send_parts(answer: Stream, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async for part in answer.parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
