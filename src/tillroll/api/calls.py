"""One call of the service: what it says, who makes it, and whose ledger it is about."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import msgspec

from tillroll.embedded import AsyncLedger, Ledger
from tillroll.embedded.ledger import verbs_of
from tillroll.ledger.errors import Forbidden, InvalidInput
from tillroll.ledger.values import ID_MAX
from tillroll.wire import bodies
from tillroll.wire.answers import render
from tillroll.wire.problems import IdempotencyKeyMissing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tillroll.api.followers import Followers
    from tillroll.api.keys import ApiKey
    from tillroll.api.paying import Paying
    from tillroll.engine import Engine

Q = TypeVar("Q", bound=msgspec.Struct)
B = TypeVar("B", bound=msgspec.Struct)

JSON = b"application/json"
KIB = 1024
BODY_MAX = 64 * KIB
Headers = tuple[tuple[bytes, bytes], ...]
REPLAYED: Headers = ((b"idempotent-replayed", b"true"),)


class Answer(NamedTuple):
    """What is sent back, whole."""

    body: bytes
    status: int = 200
    headers: Headers = ()
    media_type: bytes = JSON


class Stream(NamedTuple):
    """What is sent back bit by bit, for as long as somebody listens; then `ended` is called."""

    parts: AsyncIterator[bytes]
    media_type: bytes
    ended: Callable[[], None]


Handler = Callable[["Call"], Awaitable["Answer | Stream"]]


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one address.

    Attributes:
        path: As in the description of the API: `{account}` is the account where there is one.
        handler: What answers; its first sentence is the summary.
        scopes: Any one of these; none where every key may.
        body: The shape of the body, None where there is none.
        query: The shape of the query.
        answer: The shape of the answer.
        refusals: What may be refused, by code.
        keyed: Whether Idempotency-Key must be there.
        licenzy: Whether errors are in Licenzy's words.
        group: What it belongs to, for readers.
        name: Its operation id.
        summary: What it does, in a sentence.
        body_max: The bytes that the body may have.
        signed: Whether no key is needed: the body is signed, and its handler checks that.
    """

    method: str
    path: str
    handler: Handler
    answer: type[msgspec.Struct]
    name: str
    summary: str
    group: str
    scopes: frozenset[str] = frozenset()
    body: type[msgspec.Struct] | None = None
    query: type[msgspec.Struct] | None = None
    refusals: tuple[str, ...] = ()
    keyed: bool = False
    licenzy: bool = False
    whole_project: bool = False
    body_max: int = BODY_MAX
    signed: bool = False

    @property
    def has_account(self) -> bool:
        """Whether the address names an account, and that first."""
        return "{account}" in self.path


class Tenant:
    """The ledger of one project and mode, and the engine that carries its verbs."""

    __slots__ = ("engine", "ledger", "name", "reads", "verbs", "webhooks_private")

    def __init__(self, engine: Engine, name: str, *, webhooks_private: bool = False) -> None:
        """Serve the ledger of this name; its webhooks may go to private addresses, if so."""
        self.engine = engine
        self.webhooks_private = webhooks_private
        self.name = name
        self.ledger = AsyncLedger(engine, name)
        self.reads = Ledger(engine, name)
        self.verbs = verbs_of(engine, name)


class Call:
    """What a handler is given."""

    __slots__ = (
        *("body", "followers", "headers", "key", "params", "paying", "query_string", "route"),
        "tenant",
    )

    def __init__(
        self,
        followers: Followers,
        paying: Paying,
        route: Route,
        params: list[str],
        headers: Mapping[bytes, bytes],
        query_string: bytes,
    ) -> None:
        """Begin with what the head of a request says; who calls and the body come later."""
        self.followers = followers
        self.paying = paying
        self.route = route
        self.params = params
        self.headers = headers
        self.query_string = query_string
        self.body = b""
        self.key: ApiKey = None  # type: ignore[assignment]  # until it is known who calls
        self.tenant: Tenant

    @property
    def account(self) -> str:
        """The account that the address names."""
        return self.params[0]

    def check_open(self, account: str | None) -> None:
        """Make sure that the key is open to an account; None means all of them.

        Raises:
            Forbidden: It is not.
        """
        if self.key.accounts and (account is None or not self.key.is_open_to(account)):
            whom = "all accounts" if account is None else f"account {account!r}"
            raise Forbidden(f"this key is not open to {whom}")

    def actor(self, on_behalf: object = None) -> str:
        """Return who acts, as an entry names it: the key, and whom the caller names."""
        return self.key.id if not on_behalf else f"{self.key.id}/{on_behalf}"[:ID_MAX]

    def request_id(self) -> str:
        """Return the caller's id of this event.

        Raises:
            IdempotencyKeyMissing: There is no such header.
            InvalidInput: It is not well encoded.
        """
        value = self.headers.get(b"idempotency-key", b"")
        if not value:
            raise IdempotencyKeyMissing(
                "a write needs the header Idempotency-Key: your id of this event, the same at "
                "every retry"
            )
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise InvalidInput("Idempotency-Key must be UTF-8") from None

    def parse(self, shape: type[B]) -> B:
        """Return the body."""
        return bodies.parse(shape, self.body)

    def arguments(self, shape: type[msgspec.Struct]) -> dict[str, Any]:
        """Return what the body gives, as arguments of a verb."""
        return bodies.parse_arguments(shape, self.body)

    def query(self, shape: type[Q]) -> Q:
        """Return the query.

        Raises:
            InvalidInput: A name is unknown or comes twice, or a value is none.
        """
        try:
            pairs = parse_qsl(
                self.query_string.decode("ascii"),
                keep_blank_values=True,
                errors="strict",
                max_num_fields=20,
            )
        except ValueError:
            raise InvalidInput("the query is not well encoded") from None
        if b"%00" in self.query_string:
            raise InvalidInput("no value has the character U+0000")
        given: dict[str, Any] = dict(pairs)
        if len(given) != len(pairs):
            raise InvalidInput("a name comes twice in the query")
        try:
            asked = msgspec.convert(given, shape, strict=False)
        except msgspec.ValidationError as problem:
            raise InvalidInput(str(problem).replace("Object", "The query")) from None
        for name, text in given.items():
            if getattr(asked, name) is None:  # where text is read leniently, "null" becomes None
                raise InvalidInput(f"{name} must not be {text!r}; leave it out")
        return asked


def answered(value: object, *, replayed: bool = False) -> Answer:
    """Return an answer of plain values or structs; `replayed` where it was given before."""
    return Answer(render(value), 200, REPLAYED if replayed else ())
