"""What a batch of decisions works on: the book of state, one case, and what they lead to."""

from __future__ import annotations

from msgspec import Struct, field

from tillroll.ledger import commands as c
from tillroll.ledger.errors import TillrollError
from tillroll.ledger.pricing import PriceBook
from tillroll.ledger.types import (
    RESERVED,
    Account,
    AlertTerms,
    Entry,
    Refusal,
)


class Rules(Struct, frozen=True):
    """What decisions need beside the account: the prices and the scale of the units.

    Attributes:
        topics: The types of events that somebody wants to hear of; of others none is made.
        alerts: The alerts that every account of the project has, but for its own of that name.
        project: Whose accounts these are; told in events.
    """

    prices: PriceBook
    scale: int = 6
    topics: frozenset[str] = frozenset()
    alerts: tuple[AlertTerms, ...] = ()
    project: str = ""


class Sealed(Struct, frozen=True, gc=False):
    """An entry with its canonical bytes and its place in the account's chain."""

    account_id: bytes
    entry: Entry
    body: bytes
    hash: bytes
    metadata: str | None


class Event(Struct, frozen=True, gc=False):
    """Something to be told to who wants to hear of it: its place, its type, and what is said.

    It is made by the entry `seq` of the account, of which it is the `n`-th.
    """

    account_id: bytes
    seq: int
    n: int
    project: str
    topic: str
    payload: str
    at: int


class Answer(Struct, frozen=True):
    """What became of one request."""

    outcome: Entry | Refusal | TillrollError
    replayed: bool = False


def maker(grant_id: str) -> str:
    """Return the request that made a grant: its own id, but for those that a refund numbered."""
    head, mark, nth = grant_id.rpartition("#")
    return head[1:] if mark and head.startswith(RESERVED) and nth.isdecimal() else grant_id


class Book(Struct):
    """All state that one batch may touch.

    Attributes:
        accounts: By account_id, every account of the batch; new ones are empty.
        answers: By (account_id, request_id): what was answered before, and in this batch.
        stories: By (account_id, id): the entries that acted on that id, oldest first.
        appended: What this batch adds to the histories, in order.
        refused: What this batch adds to the remembered refusals.
        replayed: The requests that were repeats.
        dismissed: Whether a request was found wrong as things stand, which nothing here tells of.
        at: The moment of the batch.
        events: What this batch has to tell, in order.
        watch: By which rules it is told; None where nobody listens.
        low: By (account_id, wallet), the balances that fell to where they are topped up.
    """

    accounts: dict[bytes, Account] = field(default_factory=dict)
    answers: dict[tuple[bytes, str], Entry | Refusal] = field(default_factory=dict)
    stories: dict[tuple[bytes, str], list[Entry]] = field(default_factory=dict)
    appended: list[Sealed] = field(default_factory=list)
    refused: list[tuple[bytes, Refusal]] = field(default_factory=list)
    replayed: list[tuple[bytes, str, int]] = field(default_factory=list)
    dismissed: bool = False
    at: int = 0
    events: list[Event] = field(default_factory=list)
    watch: Rules | None = None
    low: set[tuple[bytes, str]] = field(default_factory=set)

    def story(self, account_id: bytes, name: str) -> list[Entry]:
        """Return the entry that made this id and those that acted on it, oldest first."""
        root = self.answers.get((account_id, maker(name)))
        acts = self.stories.get((account_id, name), [])
        return [root, *acts] if isinstance(root, Entry) else acts


class Case(Struct, frozen=True, gc=False):
    """One request before the account it concerns, at one moment."""

    account: Account
    request: c.Request
    at: int
    rules: Rules
    book: Book

    def story(self, name: str) -> list[Entry]:
        """Return what is known of an id of this account, oldest first."""
        return self.book.story(self.request.account_id, name)
