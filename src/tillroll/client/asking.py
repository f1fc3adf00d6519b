"""What a client does for each of its methods, as conversations: shared by both clients.

The methods have the names and arguments of a ledger's and return steps. Whether they are carried
out by a thread or by an event loop is not known here.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tillroll.client import answers
from tillroll.client.calls import (
    batch_call,
    batch_item,
    look_call,
    named,
    part,
    plain,
    send_call,
    write_call,
)
from tillroll.client.conversation import Call, Do, Rules, Steps, converse
from tillroll.client.exposure import FailOpen, ProvisionalReceipt
from tillroll.client.payments import Payments
from tillroll.client.webhooks import Webhooks
from tillroll.embedded import Outcome
from tillroll.embedded.answers import new_id
from tillroll.ledger import calendar, quotes
from tillroll.ledger.errors import (
    Forbidden,
    HoldNotFound,
    InvalidInput,
    NotFound,
    OutcomeUnknown,
    StoreError,
    StoreUnavailable,
    TillrollError,
    TooManyRequests,
    Unauthorized,
)
from tillroll.ledger.pricing import new_version
from tillroll.ledger.products import NOTHING
from tillroll.ledger.receipts import Receipt
from tillroll.ledger.units import SCALE_DEFAULT
from tillroll.ledger.values import BULK_MAX
from tillroll.ledger.verbs import Verbs, batch_of, item_of, misnamed, question
from tillroll.queries import KINDS, PAGE_MAX, Page, Verification

if TYPE_CHECKING:
    from datetime import datetime

    from tillroll.client.journal import Journal, Pending, Row
    from tillroll.embedded import Quote
    from tillroll.ledger.access import Access
    from tillroll.ledger.pricing import Price, PriceBook, PriceVersion
    from tillroll.ledger.products import Products
    from tillroll.ledger.units import Units
    from tillroll.ledger.verbs import Meter, Span
    from tillroll.queries import Balance, Held, Proven

T = TypeVar("T")

SEQ_MAX = 2**53 - 1
# The endings of holds, which are journalled: the work is done, and only we know it.
ENDINGS = frozenset({"settle", "release", "mark_in_doubt", "resolve"})
LET_THROUGH = frozenset({"consume", "hold"})
# Once the service is found away, how long before the next consume or hold tries it again.
AWAY_SECONDS = 1.0
# Errors that a later delivery of the same request can still get past.
LATER = (StoreError, Unauthorized, Forbidden)


class Asking(Payments, Webhooks):
    """The methods of a client, as conversations: its bases have those that no ledger has.

    Attributes:
        scale: Decimals of the units, None until the service has said it.
        project: The isolation boundary, None until then.
        mode: "live" or "test", None until then.
        left: Called when something is left in the journal to be delivered.
    """

    def __init__(self, rules: Rules, journal: Journal | None, fail_open: FailOpen | None) -> None:
        """Ask by these rules."""
        if fail_open is not None and journal is None:
            raise InvalidInput("fail_open needs a journal: what is let through must not be lost")
        self.rules = rules
        self.journal = journal
        self.fail_open = fail_open
        self.scale: int | None = None
        self.project: str | None = None
        self.mode: str | None = None
        self.left: Callable[[], None] = _nothing
        self._away_until = -1.0
        self._last_verbs: Verbs | None = None

    # ------------------------------------------------------------ who we are

    def whoami(self) -> Steps[dict[str, Any]]:
        """Return what the service knows of the key: project, mode, scopes, accounts, scale."""
        return (yield from self._learn(self.rules.ends()))

    def _learn(self, ends: float) -> Steps[dict[str, Any]]:
        known = yield from self._ask(look_call("whoami", "/v1/whoami"), ends, _known)
        project, mode, scale = str(known["project"]), str(known["mode"]), int(known["scale"])
        journal = self.journal
        if journal is not None:
            yield Do(functools.partial(journal.claim, project, mode, scale))
        self.project, self.mode, self.scale = project, mode, scale
        return known

    def verbs(self) -> Verbs | None:
        """Return what checks arguments, None while the scale is not known."""
        return None if self.scale is None else self._verbs_at(self.scale)

    def _verbs_at(self, scale: int) -> Verbs:
        found = self._last_verbs
        if found is None or found.scale != scale:
            found = self._last_verbs = Verbs("", scale, new_id, quotes.read_unsealed)
        return found

    def _checking(self, ends: float) -> Steps[Verbs]:
        """Return what checks arguments; ask for the scale first where it is not known.

        With a journal the work goes on without the service: then the scale is the one that the
        journal remembers, or, before the first conversation ever, the usual one.
        """
        if self.scale is None:
            try:
                if self.journal is not None:
                    self._refuse_while_away()
                yield from self._learn(ends)
            except (StoreUnavailable, OutcomeUnknown):
                if self.journal is None:
                    raise
                self._away_until = self.rules.clock() + AWAY_SECONDS
                remembered = yield Do(self._remembered)
                return self._verbs_at(remembered)
        assert self.scale is not None
        return self._verbs_at(self.scale)

    def _refuse_while_away(self) -> None:
        """Raise where the service was found away a moment ago: who can go on does so at once."""
        if self.rules.clock() < self._away_until:
            raise StoreUnavailable("the service was away a moment ago; nothing was written")

    def _remembered(self) -> int:
        assert self.journal is not None
        known = self.journal.scale
        return SCALE_DEFAULT if known is None else known

    def _ask(self, call: Call, ends: float, read: Callable[[Any], T]) -> Steps[T]:
        return (yield from converse(call, self.rules, ends, read))

    def _ask_known(self, call: Call, read: Callable[[Any], T], nothing: T) -> Steps[T]:
        """Ask about an account; where it has no history, give what a ledger gives of none."""
        try:
            return (yield from self._ask(call, self.rules.ends(), read))
        except NotFound as problem:
            if problem.code != NotFound.code:
                raise
            return nothing

    def _receipt(self, shown: Any) -> Receipt:
        scale = self.scale
        if scale is None:  # the journal's client before the first word of its service
            scale = max(SCALE_DEFAULT, answers.decimals_of(shown))
        return answers.receipt_of(shown, scale)

    # ------------------------------------------------------------ verbs

    def write(self, verb: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Steps[Receipt]:
        """Ask for a verb that writes."""
        ends, patient = self.rules.ends(), self._patient(verb)
        verbs = yield from self._checking(patient)
        call = write_call(verbs, verb, args, kwargs)
        if self.journal is not None and verb in ENDINGS:
            return (yield from self._journalled(self.journal, call, ends))
        if self.journal is not None and self.fail_open is not None and verb in LET_THROUGH:
            return (yield from self._or_let_through(self.journal, self.fail_open, call, ends))
        return (yield from self._ask(call, ends, self._receipt))

    def _patient(self, verb: str) -> float:
        """Return when to stop waiting for the service where the work can go on without it."""
        if self.fail_open is not None and verb in LET_THROUGH:
            return self.rules.ends(min(self.rules.timeout, self.fail_open.seconds))
        return self.rules.ends()

    def preview(self, verb: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Steps[Receipt]:
        """Ask how a verb would be decided."""
        ends = self.rules.ends()
        verbs = yield from self._checking(ends)
        call = write_call(verbs, verb, args, kwargs, preview=True)
        return (yield from self._ask(call, ends, self._receipt))

    def consume_many(self, items: Iterable[Mapping[str, object]]) -> Steps[list[Outcome]]:
        """Ask for many consumes at once; what is malformed is not sent."""
        ends = self.rules.ends()
        verbs = yield from self._checking(ends)
        ids, bodies, outcomes = _batch(verbs, items)
        if bodies:
            call = batch_call(bodies)

            def read(shown: Any) -> list[Outcome]:
                return answers.outcomes_of(shown, ids, verbs.scale)

            try:
                heard = yield from self._ask(call, ends, read)
            except OutcomeUnknown as problem:
                heard = [Outcome(None, _of(problem, request_id)) for request_id in ids]
            rest = iter(heard)
            outcomes = [next(rest) if outcome is None else outcome for outcome in outcomes]
        return [outcome for outcome in outcomes if outcome is not None]

    # ------------------------------------------------------------ the journal

    def _journalled(self, journal: Journal, call: Call, ends: float) -> Steps[Receipt]:
        """Ask for a hold's ending, written down before it is sent."""
        try:
            row, repeated = yield Do(functools.partial(journal.write, call))
        except StoreError as broken:  # better sent without a net than not at all
            try:
                return (yield from self._ask(call, ends, self._receipt))
            except StoreError as problem:
                problem.add_note(f"it is not in the journal either: {broken}")
                raise
        kept = True
        try:
            for earlier in (yield Do(functools.partial(journal.before, row))):
                if (yield from self._deliver(journal, earlier, ends)) is not None:
                    return ProvisionalReceipt(call, row.shown().units, row.at, replayed=repeated)
            receipt = yield from self._ask(call, ends, self._receipt)
            kept = False
        except (Unauthorized, Forbidden) as problem:
            yield from _noting(functools.partial(journal.fail, row, problem, final=False))
            problem.add_note("it stays in the journal, and is delivered when the key may do it")
            raise
        except StoreError as problem:
            yield from _noting(functools.partial(journal.fail, row, problem, final=False))
            return ProvisionalReceipt(call, row.shown().units, row.at, replayed=repeated)
        except TillrollError:
            kept = False  # whoever asked hears of it
            yield from _noting(functools.partial(journal.remove, row))
            raise
        finally:
            if kept:
                self.left()
        yield from _noting(functools.partial(journal.remove, row))
        return receipt

    def _or_let_through(
        self, journal: Journal, bounds: FailOpen, call: Call, ends: float
    ) -> Steps[Receipt]:
        """Ask for a consume or hold; let it through where the service is away."""
        exposure = bounds.exposure(call)
        if exposure is None:
            return (yield from self._ask(call, ends, self._receipt))
        row = yield Do(functools.partial(journal.find, call))
        if row is not None and row.state == "waiting":  # let through before, and not forgotten
            self.left()
            return ProvisionalReceipt(call, row.exposure, row.at, replayed=True)
        try:
            self._refuse_while_away()
            patient = min(ends, self._patient(call.verb))
            receipt = yield from self._ask(call, patient, self._receipt)
        except TooManyRequests:  # it is there, and says that we ask too much
            raise
        except (StoreUnavailable, OutcomeUnknown):
            self._away_until = self.rules.clock() + AWAY_SECONDS
            kept = yield Do(functools.partial(journal.let_through, call, exposure, bounds))
            if kept is None:
                raise
            self.left()
            return ProvisionalReceipt(call, exposure, kept.at, replayed=False)
        self._away_until = -1.0
        return receipt

    def deliver(self) -> Steps[list[Pending]]:
        """Send what waits in the journal, and return what is left in it."""
        journal = self._needed()
        waiting: list[Row] = yield Do(functools.partial(journal.rows, waiting=True))
        stuck: set[tuple[str, str]] = set()
        if waiting and self.scale is None:
            yield from self._learn(self.rules.ends())  # whose key is this?
        for row in waiting:
            if row.queue in stuck:
                continue
            problem = yield from self._deliver(journal, row, self.rules.ends())
            if isinstance(problem, Forbidden):
                stuck.add(row.queue)
            elif problem is not None:
                break
        return (yield from self.pending())

    def _deliver(self, journal: Journal, row: Row, ends: float) -> Steps[TillrollError | None]:
        """Send one call of the journal; return what keeps it from being answered, if anything."""
        try:
            yield from self._ask(row.call, ends, self._receipt)
        except LATER as problem:
            yield Do(functools.partial(journal.fail, row, problem, final=False))
            return problem
        except TillrollError as problem:
            yield Do(functools.partial(journal.fail, row, problem, final=True))
        else:
            yield Do(functools.partial(journal.remove, row))
        self._away_until = -1.0
        return None

    def pending(self) -> Steps[list[Pending]]:
        """Return what is in the journal."""
        rows: list[Row] = yield Do(self._needed().rows)
        return [row.shown() for row in rows]

    def dismiss(self, pending: Pending) -> Steps[bool]:
        """Forget a refused request of the journal."""
        journal = self._needed()
        gone: bool = yield Do(
            functools.partial(journal.dismiss, pending.account, pending.request_id)
        )
        return gone

    def _needed(self) -> Journal:
        if self.journal is None:
            raise InvalidInput("this client has no journal: give it one, as journal='settles.db'")
        return self.journal

    # ------------------------------------------------------------ looking

    def balance(
        self,
        account: str,
        wallet: str = "credits",
        *,
        as_of: datetime | str | None = None,
        clock: Literal["recorded", "effective"] = "recorded",
    ) -> Steps[Balance]:
        """Ask for a balance; an account without a history has nothing."""
        moment = _moment(as_of, "as_of")
        path = f"/v1/accounts/{_name(account)}/balance"
        default = clock == "recorded"
        call = look_call(
            "balance", path, wallet=wallet, as_of=moment, clock=None if default else clock
        )
        nothing = answers.no_balance(account, wallet, moment)
        return (yield from self._ask_known(call, answers.balance_of, nothing))

    def statement(
        self,
        account: str,
        *,
        limit: int = 100,
        before: int | None = None,
        kinds: Sequence[str] = (),
        since: datetime | str | None = None,
        until: datetime | str | None = None,
    ) -> Steps[Page]:
        """Ask for a page of a statement."""
        if type(limit) is not int or not 1 <= limit <= PAGE_MAX:
            raise InvalidInput(f"limit must be a whole number from 1 to {PAGE_MAX}")
        if before is not None and type(before) is not int:
            raise InvalidInput("before must be a whole number, as Page.next is")
        kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
        for kind in kinds:
            if kind not in KINDS:
                raise InvalidInput(f"there is no kind {kind!r}; use {', '.join(KINDS)}")
        if before is not None and before < 1:
            return Page((), None)
        call = look_call(
            "statement",
            f"/v1/accounts/{_name(account)}/statement",
            limit=limit,
            before=None if before is None else min(before, SEQ_MAX),
            kinds=kinds or None,
            since=_moment(since, "since"),
            until=_moment(until, "until"),
        )
        scale = (yield from self._checking(self.rules.ends())).scale
        nothing = Page((), None)
        return (yield from self._ask_known(call, lambda s: answers.page_of(s, scale), nothing))

    def usage(
        self,
        account: str | None = None,
        *,
        by: Sequence[str] = ("operation",),
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        progress: Callable[[int], None] | None = None,  # noqa: ARG002 - the service reads
    ) -> Steps[list[dict[str, Any]]]:
        """Ask what was used, grouped; `progress` is not called over HTTP."""
        call = look_call(
            "usage",
            "/v1/usage" if account is None else f"/v1/accounts/{_name(account)}/usage",
            by=tuple(by),
            since=_moment(since, "since"),
            until=_moment(until, "until"),
        )
        return (yield from self._ask_known(call, lambda s: list(s["rows"]), []))

    def explain(self, request_id: str, *, account: str | None = None) -> Steps[dict[str, object]]:
        """Ask for the story of a request."""
        named = _name(request_id, "request_id")
        where = "" if account is None else f"/accounts/{_name(account)}"
        call = look_call("explain", f"/v1{where}/explain/{named}")
        return (yield from self._ask(call, self.rules.ends(), dict))

    def hold_state(self, account: str, hold_id: str) -> Steps[str]:
        """Ask what a hold is now."""
        path = f"/v1/accounts/{_name(account)}/holds/{_name(hold_id, 'hold_id')}"
        call = look_call("hold_state", path)
        try:
            return (yield from self._ask(call, self.rules.ends(), lambda s: str(s["state"])))
        except HoldNotFound as problem:
            raise NotFound(str(problem)) from problem

    def access(
        self,
        account: str,
        operation: str | None = None,
        *,
        feature: str | None = None,
        units: Units | None = None,
        meters: Mapping[str, Meter] | None = None,
        model: str | None = None,
        attributes: Mapping[str, str] | None = None,
        wallet: str | None = None,
        tags: Mapping[str, str] | None = None,
        at: datetime | str | None = None,
    ) -> Steps[Access]:
        """Ask whether an account may do something, why, until when, and what would help."""
        ends = self.rules.ends()
        verbs = yield from self._checking(ends)
        asked = {
            "operation": operation,
            "feature": feature,
            "units": units,
            "meters": meters,
            "model": model,
            "attributes": attributes,
            "wallet": wallet,
            "tags": tags,
        }
        path = f"/v1/accounts/{_name(account)}/access"
        question(verbs, account, **asked)  # type: ignore[arg-type]  # each as it was given
        body: dict[str, object] = {n: value for n, value in asked.items() if value is not None}
        if at is not None:
            body["at"] = _moment(at, "at")
        call = send_call("access", "POST", path, body, writes=False)
        return (yield from self._ask(call, ends, answers.access_of))

    def entitlements(
        self, account: str, *, at: datetime | str | None = None
    ) -> Steps[list[dict[str, object]]]:
        """Ask for all that an account may use."""
        path = f"/v1/accounts/{_name(account)}/entitlements"
        call = look_call("entitlements", path, at=_moment(at, "at"))
        return (yield from self._ask(call, self.rules.ends(), lambda s: list(s["entitlements"])))

    def holdings(self) -> Steps[list[Held]]:
        """Ask how many accounts hold each product of the catalog."""
        call = look_call("holdings", "/v1/holdings")
        return (yield from self._ask(call, self.rules.ends(), answers.holdings_of))

    def verify(
        self, account: str | None = None, *, progress: Callable[[int], None] | None = None
    ) -> Steps[Verification]:
        """Ask the service to refold histories; `progress` is called at the end."""
        where = "" if account is None else f"/accounts/{_name(account)}"
        call = look_call("verify", f"/v1{where}/verify")
        found = yield from self._ask(call, self.rules.ends(), answers.verification_of)
        if progress is not None:
            progress(found.entries)
        return found

    def names(self, after: str) -> Steps[tuple[list[str], str | None]]:
        """Ask for the accounts after this one, and where to go on."""
        call = look_call("accounts", "/v1/accounts", after=after or None, limit=PAGE_MAX)
        return (
            yield from self._ask(
                call, self.rules.ends(), lambda s: (list(s["accounts"]), s["next"])
            )
        )

    def overview(self, account: str) -> Steps[dict[str, object]]:
        """Ask for an account as it is now: status, settings, every wallet, recurring grants."""
        call = look_call("overview", f"/v1/accounts/{_name(account)}")
        return (yield from self._ask(call, self.rules.ends(), dict))

    def knows(self, account: str) -> Steps[bool]:
        """Ask whether an account has a history."""
        call = look_call("knows", f"/v1/accounts/{_name(account)}/entries", limit=1)
        found = yield from self._ask_known(call, lambda s: len(s["entries"]), 0)
        return found > 0

    def history(self, account: str, *, after: int = 0, limit: int = 1_000) -> Steps[list[Receipt]]:
        """Ask for entries after this seq, oldest first."""
        page = yield from self.page(account, after, limit)
        return list(page.receipts)

    def page(self, account: str, after: int, limit: int = PAGE_MAX) -> Steps[Page]:
        """Ask for entries after this seq, oldest first, and where to go on."""
        if type(limit) is not int or not 1 <= limit <= PAGE_MAX:
            raise InvalidInput(f"limit must be a whole number from 1 to {PAGE_MAX}")
        if type(after) is not int:
            raise InvalidInput("after must be a whole number, as a receipt's seq is")
        path = f"/v1/accounts/{_name(account)}/entries"
        call = look_call("entries", path, after=min(max(after, 0), SEQ_MAX), limit=limit)
        scale = (yield from self._checking(self.rules.ends())).scale
        nothing = Page((), None)
        return (yield from self._ask_known(call, lambda s: answers.page_of(s, scale), nothing))

    def receipt(self, account: str, request_id: str) -> Steps[Proven]:
        """Ask for the entry that a request made, with what proves it."""
        path = f"/v1/accounts/{_name(account)}/receipts/{_name(request_id, 'request_id')}"
        scale = (yield from self._checking(self.rules.ends())).scale
        call = look_call("receipt", path)
        ends = self.rules.ends()
        return (yield from self._ask(call, ends, lambda s: answers.proven_of(s, account, scale)))

    # ------------------------------------------------------------ prices and upkeep

    def prices(self) -> Steps[PriceBook]:
        """Ask for the price book."""
        call = look_call("prices", "/v1/prices")
        return (yield from self._ask(call, self.rules.ends(), answers.book_of))

    def apply_prices(
        self,
        prices: Sequence[Price],
        *,
        author: str,
        reason: str,
        overrides: Mapping[str, Sequence[Price]] | None = None,
        products: Products | None = None,
    ) -> Steps[PriceVersion]:
        """Ask for a new version of the price book; the same content gives the same version."""
        if not author.strip() or not reason.strip():
            raise InvalidInput("a price version needs an author and a reason")
        sold = NOTHING if products is None else products
        sealed = new_version(
            1, prices, overrides=overrides, products=sold, author=author, reason=reason
        )
        body = {
            "prices": plain(sealed.prices),
            "overrides": plain(sealed.overrides),
            "author": author,
            "reason": reason,
        }
        if products is not None:
            body["products"] = plain(products)
        call = send_call("apply_prices", "POST", "/v1/prices", body, writes=True)
        return (yield from self._ask(call, self.rules.ends(), answers.version_of))

    def quote(
        self,
        account: str,
        operation: str,
        *,
        meters: Mapping[str, Meter] | None = None,
        model: str | None = None,
        attributes: Mapping[str, str] | None = None,
        lock_for: Span | None = None,
    ) -> Steps[Quote]:
        """Ask what an operation would cost."""
        ends = self.rules.ends()
        verbs = yield from self._checking(ends)
        verbs.hold(account, operation, meters=meters, model=model, attributes=attributes)
        if lock_for is not None:
            calendar.span(lock_for, "lock_for")
        asked = {
            "operation": operation,
            "meters": meters,
            "model": model,
            "attributes": attributes,
            "lock_for": lock_for,
        }
        body = {name: value for name, value in asked.items() if value is not None}
        path = f"/v1/accounts/{part(account)}/quotes"
        call = send_call("quote", "POST", path, body, writes=False)
        return (yield from self._ask(call, ends, answers.quote_of))

    def erase_metadata(self, account: str) -> Steps[int]:
        """Ask for the metadata of an account to be erased; asking again changes nothing."""
        path = f"/v1/accounts/{_name(account)}/metadata"
        call = send_call("erase_metadata", "DELETE", path, None, writes=True)
        return (yield from self._ask_known(call, lambda s: int(s["erased"]), 0))


def _nothing() -> None:
    """Do nothing."""


def _noting(work: Callable[[], object]) -> Steps[None]:
    """Note in the journal what became of a call; an answer is one whether or not that succeeds.

    A line that stays is delivered once more, which changes nothing.
    """
    with contextlib.suppress(StoreError):
        yield Do(work)


def _known(shown: Any) -> dict[str, Any]:
    """Return who we are, if that is all there."""
    return {**shown, "project": str(shown["project"]), "scale": int(shown["scale"])}


def _name(value: str, name: str = "account") -> str:
    return named(value, name)


def _moment(value: datetime | str | None, name: str) -> str | None:
    return None if value is None else calendar.show_instant(calendar.instant(value, name))


def _of(problem: OutcomeUnknown, request_id: str) -> OutcomeUnknown:
    """Return a batch's error as one item's own."""
    error = OutcomeUnknown(*problem.args)
    error.__cause__, error.request_id = problem, request_id
    return error


def _batch(
    verbs: Verbs, items: Iterable[Mapping[str, object]]
) -> tuple[list[str], list[Any], list[Outcome | None]]:
    """Return the ids and bodies of a batch, and an outcome already where an item is malformed."""
    ids: list[str] = []
    bodies: list[Any] = []
    outcomes: list[Outcome | None] = []
    for item in batch_of(items):
        try:
            request_id, body = batch_item(verbs, item_of(item))
        except TillrollError as problem:
            outcomes.append(Outcome(None, problem))
        except TypeError as problem:
            outcomes.append(Outcome(None, misnamed(problem)))
        else:
            ids.append(request_id)
            bodies.append(body)
            outcomes.append(None)
        if len(outcomes) > BULK_MAX:
            raise InvalidInput(f"a batch may have {BULK_MAX} items at the most")
    return ids, bodies, outcomes
