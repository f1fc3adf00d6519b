"""Looking and upkeep: balances, statements, explanations, prices, quotes, what fell due.

`Ledger` has these methods as they are; `AsyncLedger` runs them on a thread, to be awaited.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from tillroll import queries
from tillroll.embedded.answers import new_id
from tillroll.engine import rules_of
from tillroll.ledger import calendar, quotes
from tillroll.ledger.book import Book
from tillroll.ledger.commands import Hold, QuoteClaims, account_id
from tillroll.ledger.core import REFUSAL_LIFE, advance_in
from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.errors import Unpriced as UnpricedError
from tillroll.ledger.pricing import Unpriced, explain_hold, new_version, price_hold
from tillroll.ledger.products import check_products
from tillroll.ledger.units import to_decimal
from tillroll.ledger.verbs import question

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime
    from decimal import Decimal

    from tillroll.embedded.joined import Carrier
    from tillroll.ledger.access import Access
    from tillroll.ledger.pricing import Price, PriceBook, PriceVersion
    from tillroll.ledger.products import Products
    from tillroll.ledger.receipts import Receipt
    from tillroll.ledger.units import Units
    from tillroll.ledger.verbs import Meter, Span, Verbs
    from tillroll.queries import Balance, Held, Page, Proven, Verification
    from tillroll.stores.base import Store, Writer


class Quote(Struct, frozen=True):
    """What an operation would cost.

    Attributes:
        units: The amount, or the most it can be.
        exact: The amount before rounding.
        arithmetic: How it came about, a line a step.
        available: What the account could spend on it.
        token: The signed quote, None where the price was not locked.
        expires_at: When the locked price ends.
    """

    account: str
    operation: str
    wallet: str
    units: Decimal
    exact: Decimal
    price_version: int
    rule: str
    arithmetic: tuple[str, ...]
    available: Decimal
    token: str | None
    expires_at: str | None

    def to_dict(self) -> dict[str, object]:
        """Return it as plain values for JSON."""
        return {
            name: format(value, "f") if hasattr(value, "as_tuple") else value
            for name, value in ((n, getattr(self, n)) for n in self.__struct_fields__)
        }


class Reads:
    """What can be asked of a ledger without a verb."""

    def __init__(self, engine: Carrier, verbs: Verbs) -> None:
        """Look through this engine."""
        self._engine = engine
        self._verbs = verbs
        self.project = verbs.project
        self.scale = engine.store.scale

    @property
    def store(self) -> Store:
        """The store behind the ledger."""
        return self._engine.store

    def _now(self) -> int:
        return self._engine.clock()

    def balance(
        self,
        account: str,
        wallet: str = "credits",
        *,
        as_of: datetime | str | None = None,
        clock: Literal["recorded", "effective"] = "recorded",
    ) -> Balance:
        """Return the balance of one wallet, with live grants, open holds and budgets.

        Args:
            account: The balance owner; one without a history has nothing.
            wallet: The kind of credits.
            as_of: A moment of the past; now if left out.
            clock: "recorded" for what the ledger knew then, "effective" for what is known today
                of what had happened by then.
        """
        return queries.balance(
            self.store,
            self.project,
            _sound(account, "account"),
            at=self._now(),
            wallet=wallet,
            as_of=None if as_of is None else calendar.instant(as_of, "as_of"),
            clock=clock,
        )

    def statement(
        self,
        account: str,
        *,
        limit: int = 100,
        before: int | None = None,
        kinds: Sequence[str] = (),
        since: datetime | str | None = None,
        until: datetime | str | None = None,
    ) -> Page:
        """Return entries of an account, newest first, a page at a time.

        What fell due since the last of them, and nobody has booked yet, is in `Page.due` of the
        first page: with it the statement adds up to the balance.

        Args:
            account: The balance owner.
            limit: How many, 1 to 1,000.
            before: Go on below this seq; `Page.next` says which.
            kinds: Only these kinds, such as ["consume", "settle"].
            since: Only what was recorded at or after this.
            until: Only what was recorded before this.
        """
        return queries.statement(
            self.store,
            self.project,
            _sound(account, "account"),
            limit=limit,
            before=before,
            kinds=kinds,
            since=None if since is None else calendar.instant(since, "since"),
            until=None if until is None else calendar.instant(until, "until"),
            at=self._now(),
        )

    def usage(
        self,
        account: str | None = None,
        *,
        by: Sequence[str] = ("operation",),
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Return what was used, grouped; refunds are taken off.

        A charge, its parts and its refunds are counted when its work began: at the
        `effective_at` of the consume or hold.

        Args:
            account: One account, or all.
            by: The groups, in order: account, operation, model, wallet, day, month, tag:NAME.
            since: Only work that began at or after this.
            until: Only work that began before this.
            progress: Called with the number of entries read so far.
        """
        return queries.usage(
            self.store,
            self.project,
            at=self._now(),
            account=_sound_or_none(account, "account"),
            by=by,
            since=None if since is None else calendar.instant(since, "since"),
            until=None if until is None else calendar.instant(until, "until"),
            progress=progress,
        )

    def explain(self, request_id: str, *, account: str | None = None) -> dict[str, object]:
        """Return the whole story of one request: who, what, when, how priced, who paid, since.

        Args:
            request_id: The id of a charge, hold, grant or refused request.
            account: The balance owner; may be left out where one account only knows the id.

        Raises:
            NotFound: No account knows the id.
            InvalidInput: Several accounts know it.
        """
        return queries.explain_request(
            self.store,
            self.project,
            _sound(request_id, "request_id"),
            account=_sound_or_none(account, "account"),
            at=self._now(),
        )

    def overview(self, account: str) -> dict[str, object]:
        """Return an account as it is now: status, settings, every wallet, recurring grants.

        Raises:
            NotFound: The account has no history.
        """
        account = _sound(account, "account")
        return queries.overview(self.store, self.project, account, at=self._now())

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
    ) -> Access:
        """Return whether an account may do something, why, until when, and what would help.

        To check and take in one step, give `feature` to `consume` or `hold`.

        Args:
            account: The balance owner.
            operation: What would be done, to be priced by the price book unless `units` are given.
                With neither and no feature: whether it has anything active or spendable at all.
            feature: What it must be entitled to.
            units: What it would cost.
            meters: What it would measure.
            model: The model, where prices differ by model.
            attributes: What prices may depend on.
            wallet: The kind of credits; only with units.
            tags: What budgets match.
            at: A moment of the past: answered from the history as it was known then, with the
                catalog that was in force.
        """
        request = question(
            self._verbs,
            _sound(account, "account"),
            operation,
            feature=feature,
            units=units,
            meters=meters,
            model=model,
            attributes=attributes,
            wallet=wallet,
            tags=tags,
        )
        then = None if at is None else calendar.instant(at, "at")
        return queries.access_of(self.store, request, at=self._now(), as_of=then)

    def entitlements(
        self, account: str, *, at: datetime | str | None = None
    ) -> list[dict[str, object]]:
        """Return all that an account may use: subscriptions, time passes, features, usage packs.

        Args:
            account: The balance owner.
            at: A moment of the past; now if left out.
        """
        account = _sound(account, "account")
        then = None if at is None else calendar.instant(at, "at")
        return queries.entitlements(self.store, self.project, account, at=self._now(), as_of=then)

    def holdings(self) -> list[Held]:
        """Return how many accounts hold each pack, plan and pass, by the version of its terms.

        It reads every account: ask it before a catalog is changed, not before a charge.
        """
        return queries.holders(self.store, self.project, at=self._now())

    def knows(self, account: str) -> bool:
        """Return whether an account has a history."""
        return queries.knows(self.store, self.project, _sound(account, "account"))

    def history(self, account: str, *, after: int = 0, limit: int = 1_000) -> list[Receipt]:
        """Return entries of an account with a seq above `after`, oldest first."""
        account = _sound(account, "account")
        return queries.history(self.store, self.project, account, after=after, limit=limit)

    def receipt(self, account: str, request_id: str) -> Proven:
        """Return the entry that a request made, with what proves it.

        Raises:
            NotFound: The request made none.
        """
        account, request_id = _sound(account, "account"), _sound(request_id, "request_id")
        return queries.proven(self.store, self.project, account, request_id)

    def hold_state(self, account: str, hold_id: str) -> str:
        """Return what a hold is now: open, in_doubt, settled, released or expired.

        Raises:
            NotFound: The account has no hold of that id.
        """
        account, hold_id = _sound(account, "account"), _sound(hold_id, "hold_id")
        return queries.hold_state(self.store, self.project, account, hold_id, at=self._now())

    def verify(
        self, account: str | None = None, *, progress: Callable[[int], None] | None = None
    ) -> Verification:
        """Refold one account or all from the stored bytes and compare with all that is stored.

        Args:
            account: One account, or all.
            progress: Called with the number of entries checked so far.

        Raises:
            NotFound: The account that was named has no history.
        """
        account = _sound_or_none(account, "account")
        return queries.verify(self.store, self.project, account=account, progress=progress)

    def entries(self, account: str | None = None, *, due: bool = False) -> Iterator[Receipt]:
        """Yield every entry, account by account, oldest first; for exports.

        Args:
            account: One account, or all.
            due: After each account's entries yield what fell due by now and nobody has booked
                yet, too: receipts with `due`, which a later export has as entries.
        """
        return queries.histories(
            self.store,
            self.project,
            _sound_or_none(account, "account"),
            due_by=self._now() if due else None,
        )

    def accounts(self) -> Iterator[str]:
        """Yield the names of all accounts that have a history."""
        after = ""
        while True:
            with self.store.read() as reader:
                names = reader.names(self.project, after)
            if not names:
                return
            yield from names
            after = names[-1]

    # ------------------------------------------------------------ prices

    def prices(self) -> PriceBook:
        """Return every price version; the newest is in force."""
        with self.store.read() as reader:
            return reader.prices(self.project)

    def apply_prices(
        self,
        prices: Sequence[Price],
        *,
        author: str,
        reason: str,
        overrides: Mapping[str, Sequence[Price]] | None = None,
        products: Products | None = None,
    ) -> PriceVersion:
        """Write a new, immutable version of prices and products and have it in force.

        Args:
            prices: The rules; `tillroll.catalog.load` reads them from a file.
            author: Who applies them.
            reason: Why.
            overrides: Rules for single accounts, tried first.
            products: Packs, plans, passes, features, coupons and alerts; those in force stay
                where they are left out.

        Returns:
            The new version, or the one in force where nothing differs from it.

        Raises:
            InvalidInput: A rule makes no sense, or two rules claim the same requests.
        """
        if not author.strip() or not reason.strip():
            raise InvalidInput("a price version needs an author and a reason")
        applied_at = self._now()

        def act(tx: Writer) -> PriceVersion:
            book = tx.prices(self.project)
            sold = book.products if products is None else products
            check_products(sold, self.scale)
            version = new_version(
                book.current + 1,
                prices,
                overrides=overrides,
                products=sold,
                author=author,
                reason=reason,
                applied_at=applied_at,
            )
            if book.current and book.version(book.current).digest == version.digest:
                return book.version(book.current)
            tx.add_price_version(self.project, version)
            return version

        return self._engine.perform(act)

    def quote(
        self,
        account: str,
        operation: str,
        *,
        meters: Mapping[str, Meter] | None = None,
        model: str | None = None,
        attributes: Mapping[str, str] | None = None,
        lock_for: Span | None = None,
    ) -> Quote:
        """Return what an operation would cost, the arithmetic, and, if asked, a locked price.

        Args:
            account: The balance owner; its overrides count.
            operation: What would be done.
            meters: The most it can measure.
            model: The model, where prices differ by model.
            attributes: What prices may depend on.
            lock_for: Give a signed quote good for so long, such as "15m": a hold or consume
                opened on it never costs more than its ceiling, whatever prices do.

        Raises:
            Unpriced: The price book has no price for it.
        """
        request = self._verbs.hold(
            account, operation, meters=meters, model=model, attributes=attributes
        )
        at = self._now()
        book = self.prices()
        command = request.command
        assert isinstance(command, Hold)
        asked: dict[str, Any] = {
            "model": model,
            "attributes": command.attributes,
            "account_ref": account,
            "at": at,
            "scale": self.scale,
        }
        priced = price_hold(book, operation, command.meters or {}, **asked)
        if isinstance(priced, Unpriced):
            raise UnpricedError(
                priced.reason, account=account, details={"known": ", ".join(priced.known)}
            )
        locked = None
        if lock_for is not None:
            claims = QuoteClaims(
                account=account,
                operation=operation,
                version=priced.version,
                ceiling=priced.units,
                wallet=priced.wallet,
                expires_at=at + calendar.span(lock_for, "lock_for"),
                model=model,
                id=new_id(),
            )
            locked = quotes.sign(self.store.secret, claims)
        return Quote(
            account=account,
            operation=operation,
            wallet=priced.wallet,
            units=to_decimal(priced.units, self.scale),
            exact=priced.exact,
            price_version=priced.version,
            rule=priced.rule,
            arithmetic=tuple(explain_hold(book, operation, command.meters or {}, **asked)),
            available=self.balance(account, priced.wallet).spendable,
            token=locked,
            expires_at=None
            if lock_for is None
            else calendar.show_instant(at + calendar.span(lock_for, "lock_for")),
        )

    # ------------------------------------------------------------ upkeep

    def book_due(self, limit: int = 1_000) -> int:
        """Book what fell due on accounts that nobody touched; return on how many there was any.

        Correctness never needs it: every decision and every read sees what is due by itself. As
        the ledger's one regular job it also deletes refusals that are too old to be remembered,
        at most `limit` a call.

        Raises:
            InvalidInput: `limit` is not from 1 to 1,000; nothing was written.
        """
        queries.check_limit(limit)
        at = self._now()

        def act(tx: Writer) -> int:
            names = tx.due(self.project, at, limit)
            owners = {account_id(self.project, name): name for name in names}
            book = Book(accounts=tx.load_locked(self.project, owners), at=at)
            rules = rules_of(tx, self.project, self.scale)
            book.watch = rules if rules.topics else None
            for owner in owners:
                advance_in(book, owner, max(at, book.accounts[owner].at))
            tx.append(self.project, book)
            tx.prune_refusals(at - REFUSAL_LIFE, limit)
            return len({sealed.account_id for sealed in book.appended})

        return self._engine.perform(act)

    def erase_metadata(self, account: str) -> int:
        """Erase the metadata of every entry of an account; the chain still verifies."""
        owner = account_id(self.project, _sound(account, "account"))
        return self._engine.perform(lambda tx: tx.erase_metadata(owner))

    def prune_refusals(self) -> int:
        """Delete all refusals that are too old to be remembered; return how many.

        `book_due` does it bit by bit.
        """
        before = self._now() - REFUSAL_LIFE
        total = 0
        while gone := self._engine.perform(lambda tx: tx.prune_refusals(before)):
            total += gone
        return total


def _sound(value: str, name: str) -> str:
    """Return a name that is looked for, which must at least be a text that could be stored."""
    try:
        value.encode()
    except (AttributeError, UnicodeEncodeError):
        raise InvalidInput(f"{name} must be a text, whole and well encoded") from None
    return value


def _sound_or_none(value: str | None, name: str) -> str | None:
    return None if value is None else _sound(value, name)
