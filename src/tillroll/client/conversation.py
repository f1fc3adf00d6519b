"""One request and all its attempts, without I/O: what to send, how long to wait, when to give up.

A conversation is a generator. It yields steps (`Send`, `Sleep`, `Do`) and is sent what became of
each; `blocking` and `awaiting` carry steps out, and decide nothing.

The rules: all attempts carry one request id, so that whatever the network does there is one
effect at the most. What may be over soon is asked again, with full jitter (AWS Architecture Blog,
"Exponential Backoff And Jitter") or after what `Retry-After` says, until the deadline; every other
answer is final. An attempt whose answer was lost may have been carried out: unless a later answer
settles it, the end is `OutcomeUnknown`, never "nothing was written".
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from tillroll.client.answers import error_of, problem_of
from tillroll.ledger.errors import (
    IdempotencyConflict,
    InvalidInput,
    NotFound,
    OutcomeUnknown,
    ProviderRefused,
    ProviderUnavailable,
    Refused,
    StoreClosed,
    StoreUnavailable,
    TillrollError,
)

T = TypeVar("T")

# Answers that may be another in a moment. Everything else is final.
ASKED_AGAIN = frozenset({408, 429, 502, 503, 504})
# What settles a request whose earlier attempts were lost: the ledger itself has looked at the id.
# A 401, a 413 or some other server's 404 has not, and says nothing of the attempt before it.
SETTLING = (Refused, IdempotencyConflict, NotFound, InvalidInput)
SETTLING_STATUS = frozenset({402, 403, 404, 409, 410, 422})
PAUSE_SECONDS = 0.1  # the first pause is up to this long, each later one up to twice the one before
PAUSE_SECONDS_MAX = 5.0
ATTEMPTS_IN_TIME = 3  # a write that is not answered leaves time to be asked again


class Call(Struct, frozen=True, kw_only=True):
    """What is asked of the service; equal in every attempt.

    Attributes:
        verb: The method of the client that asks it.
        path: With all parts encoded, and the query.
        request_id: None for what only looks.
        writes: Whether it changes anything.
        account: The balance owner, where there is one.
        queue: The id whose requests must arrive in order: the hold's, else the request's own.
        units: What it is about, as a decimal text; None where the price book or the hold says.
        wallet: The kind of credits; None where the price book names it.
        operation: What was done.
        fingerprint: Equal for equal requests, however their values were written.
    """

    verb: str
    method: str
    path: str
    body: bytes | None = None
    request_id: str | None = None
    writes: bool = False
    account: str = ""
    queue: str = ""
    units: str | None = None
    wallet: str | None = None
    operation: str | None = None
    fingerprint: str = ""


class Send(NamedTuple):
    """Send this and give the `Reply`, or `Lost` where none came within so many seconds."""

    call: Call
    seconds: float


class Sleep(NamedTuple):
    """Let so many seconds pass."""

    seconds: float


class Do(NamedTuple):
    """Do something that may wait for a disk, and give what it returns or raise what it raises."""

    work: Callable[[], object]


class Reply(NamedTuple):
    """What the service, or something before it, answered."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


class Lost(NamedTuple):
    """No answer came.

    Attributes:
        sent: Whether any of the request may have left.
        why: What the transport said.
    """

    sent: bool
    why: str


Step = Send | Sleep | Do
Steps = Generator[Step, Any, T]


class Rules(Struct):
    """How long, how often; and where time and chance come from, so that tests can give them.

    Attributes:
        timeout: Seconds for everything that one verb does, pauses included.
    """

    timeout: float = 30.0
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random

    def ends(self, seconds: float | None = None) -> float:
        """Return when what begins now has to be over."""
        return self.clock() + (self.timeout if seconds is None else seconds)

    def pause(self, tries: int) -> float:
        """Return how long to wait after so many attempts: any time up to a growing bound."""
        return self.chance() * min(PAUSE_SECONDS_MAX, PAUSE_SECONDS * 2.0 ** min(tries - 1, 16))


def converse(call: Call, rules: Rules, ends: float, read: Callable[[Any], T]) -> Steps[T]:
    """Ask until there is an answer that is final, or no time is left.

    Args:
        call: What to ask.
        rules: How.
        ends: When to give up, by the clock of the rules.
        read: Makes the result of a decoded answer. What it cannot read is no answer of ours.

    Raises:
        Refused, InvalidInput, IdempotencyConflict, NotFound: The answer; nothing written.
        StoreUnavailable, Unauthorized, Forbidden: Nothing written.
        OutcomeUnknown: An attempt may have been carried out; the same request_id settles it.
    """
    tries, doubtful = 0, False  # doubtful: an attempt may have been carried out
    while True:
        tries += 1
        left = max(ends - rules.clock(), 0.001)
        within = min(left, rules.timeout / ATTEMPTS_IN_TIME) if call.writes else left
        try:
            heard = yield Send(call, within)
        except StoreClosed as closed:
            if not doubtful:
                raise
            raise _unknown(call, closed) from closed
        if isinstance(heard, Lost):
            error, again, settled, after = _lost(heard), True, False, 0.0
        else:
            answer = _answer(heard, read)
            if not isinstance(answer, _Unread):
                return answer
            problem = problem_of(heard.body)
            error = error_of(heard.status, problem, call.request_id) or _unread(heard, answer)
            again = heard.status in ASKED_AGAIN or heard.status < 300  # noqa: PLR2004 - unread
            again = again and not isinstance(error, ProviderRefused)  # a 502, and an answer
            settled = bool(problem) and _settles(call, heard.status, error)
            after = _retry_after(heard.headers)
        doubtful = doubtful or error.written == "unknown"
        if not again:
            raise error if settled or not doubtful else _unknown(call, error)
        pause = max(rules.pause(tries), after)
        if rules.clock() + pause >= ends:
            if doubtful and call.writes:
                raise _unknown(call, error)
            raise _told(error, call, tries)
        yield Sleep(pause)


def ask(rules: Rules, call: Call, read: Callable[[Any], T]) -> Steps[T]:
    """Ask as `converse` does, within the time of one verb."""
    return (yield from converse(call, rules, rules.ends(), read))


def _settles(call: Call, status: int, error: TillrollError) -> bool:
    """Return whether an answer says what became of the attempts before it, too.

    Without an id of its own a call may be refused for what its first attempt did.
    """
    if call.request_id is None:
        return False
    return isinstance(error, ProviderRefused) or (
        status in SETTLING_STATUS and isinstance(error, SETTLING)
    )


class _Unread(NamedTuple):
    """Why an answer is none."""

    why: str


def _answer(reply: Reply, read: Callable[[Any], T]) -> T | _Unread:
    """Return what an answer says; a success that cannot be read is as good as lost."""
    if not 200 <= reply.status < 300:  # noqa: PLR2004 - HTTP's own numbers
        return _Unread("")
    try:
        return read(msgspec.json.decode(reply.body))
    except (ArithmeticError, KeyError, TypeError, ValueError, AttributeError) as problem:
        return _Unread(f"{type(problem).__name__}: {problem}")


def _unread(reply: Reply, answer: _Unread) -> TillrollError:
    start = reply.body[:80].decode(errors="replace")
    return OutcomeUnknown(
        f"the answer ({reply.status}) is not one of a tillroll service: {start!r} ({answer.why})"
    )


def _lost(lost: Lost) -> TillrollError:
    if lost.sent:
        return OutcomeUnknown(f"no answer came: {lost.why}")
    return StoreUnavailable(f"the service cannot be reached; nothing was written: {lost.why}")


def _unknown(call: Call, cause: TillrollError) -> TillrollError:
    """Return the error of a write whose outcome no answer has settled."""
    if not call.writes or isinstance(cause, ProviderUnavailable):  # which says the same itself
        return _told(cause, call, 0)
    error = OutcomeUnknown(
        f"whether this was done is not known: {cause}; ask again with the same request_id"
    )
    if isinstance(cause, OutcomeUnknown):
        error.code = cause.code
    error.request_id = call.request_id
    error.__cause__ = cause
    return error


def _told(error: TillrollError, call: Call, tries: int) -> TillrollError:
    """Return the error that a call ends with, where nothing was written."""
    if isinstance(error, OutcomeUnknown) and not call.writes:  # who only looks writes nothing
        cause, error = error, StoreUnavailable(f"the service could not be asked: {error}")
        error.__cause__ = cause
    error.request_id = error.request_id or call.request_id
    if tries > 1:
        error.add_note(f"asked {tries} times")
    return error


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return how long an answer asks to wait: seconds or a date (RFC 9110, section 10.2.3)."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        return max((when - datetime.now(UTC)).total_seconds(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return 0.0
