"""The desk where a ledger meets its payment provider: hears what it tells, opens checkouts, asks.

One desk is one ledger and one provider. It turns what is told into facts of payments and standings
of subscriptions, and leaves the rest to `settling` and `subscribing`. What it was told and what it
asked is in the store, so any process may go on where another one ended.
"""

from __future__ import annotations

import hmac
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tillroll.embedded.ledger import verbs_of
from tillroll.ledger.commands import account_id
from tillroll.ledger.errors import (
    AccountClosed,
    IdempotencyConflict,
    InvalidInput,
    NotFound,
    ProviderRefused,
    StoreCorrupt,
)
from tillroll.ledger.types import DAY, HOUR, MINUTE, NEVER, SECOND
from tillroll.ledger.units import parse_units
from tillroll.ledger.values import ID_MAX
from tillroll.payments import settling, subscribing
from tillroll.payments.facts import Bought, Failed, decimals_of
from tillroll.payments.provider import (
    ChargeTold,
    InvoiceTold,
    Order,
    PaymentTold,
    ReturnTold,
    SessionTold,
    Sold,
    SubscriptionTold,
    Told,
)
from tillroll.queries import look
from tillroll.stores.base import Note

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping, Sequence

    from tillroll.engine import Engine
    from tillroll.ledger.pricing import PriceBook
    from tillroll.ledger.types import Account
    from tillroll.payments.facts import Disputed, Fact, Refunded
    from tillroll.payments.provider import Listener, Provider
    from tillroll.stores.base import NoteKey, Reader, Writer

CHECKOUT, ASKED, CUSTOMER = "checkout", "checkout_asked", "customer"
CURSOR, KEPT = "cursor", "kept"
# A provider forgets our keys after a day; so long we may ask again under the same one.
KEY_LIFE = 23 * HOUR
# A page that ends so soon is no use to a customer.
PAGE_LEFT_MIN = 5 * MINUTE
# How far back of what was heard last the pull begins: what was listed late is heard as well.
OVERLAP = 10 * MINUTE
REACH = 29 * DAY  # how far back Stripe lists events: thirty days
WINDOW = 6 * HOUR  # asked for at once: some thousands of events at a busy shop
EVENTS_MAX = 5_000  # of one pull; the next one goes on
AGAIN_MAX = 100  # of one round that are tried again
# What cannot be followed, be it for one account that is damaged: tried again, and not for ever.
CANNOT = (InvalidInput, IdempotencyConflict, ProviderRefused, StoreCorrupt)


class Opened(Struct, frozen=True, omit_defaults=True):
    """The checkout of one product for one account: asked for, open, or over.

    Attributes:
        attempt: Counts the pages that were asked for; each has its own key at the provider.
        asked_at: When the last was asked for.
        url: Where it is; None while the provider has not answered yet.
        session: The provider's id of it.
        expires_at: When the page ends.
        over: Whether it was paid, or ended.
    """

    attempt: int
    asked_at: int
    url: str | None = None
    session: str | None = None
    expires_at: int = 0
    over: bool = False


class Page(NamedTuple):
    """Where an account pays, and whether this request was answered so before."""

    url: str
    replayed: bool = False


class Asked(Struct, frozen=True):
    """What was answered to one request for a checkout."""

    product: str
    url: str


class Cursor(Struct, frozen=True):
    """How far what happened at the provider has been heard."""

    at: int


class Kept(Struct, frozen=True, omit_defaults=True):
    """What was told at `at` and cannot be followed, and why.

    It is tried again until it is too old, and stays to be seen. Notes of before say None once it
    was followed; now they are deleted.
    """

    told: tuple[Told, ...]
    at: int
    problem: str | None = None


def kept_of(
    reader: Reader, ledger: str, after: str = "", limit: int = 100
) -> list[tuple[str, Kept, bool]]:
    """Return what was told and cannot be followed: its name, what it is, and if it is tried again.

    By provider and name, above `after`.
    """
    return [
        (note.name, msgspec.json.decode(note.document, type=Kept), note.due_at != NEVER)
        for note in reader.notes_of(ledger, "", KEPT, after, limit)
    ]


class Pulled(Struct, frozen=True):
    """What a pull found.

    Attributes:
        heard: How many events there were.
        kept: How many of them cannot be followed yet, and are tried again.
        until: Up to when all was heard.
        more: Whether there is more to be heard.
    """

    heard: int
    kept: int
    until: int
    more: bool = False


class Desk:
    """One ledger and one payment provider.

    Args:
        engine: Whose ledger.
        ledger: Its name: a project's, or that of a project's test mode.
        provider: Who tells and is asked.

    Attributes:
        heard_charge: Told what became of a top-up's attempt; see `topups`.
    """

    def __init__(self, engine: Engine, ledger: str, provider: Listener) -> None:
        """Serve this ledger; nothing is asked yet."""
        self.engine = engine
        self.ledger = ledger
        self.provider = provider
        self.heard_charge: Callable[[ChargeTold], None] | None = None

    @property
    def asked(self) -> Provider:
        """The provider, where it can be asked.

        Raises:
            InvalidInput: It only tells.
        """
        if not hasattr(self.provider, "checkout"):
            raise InvalidInput(f"{self.provider.name} has no checkout: it only tells of payments")
        return self.provider  # type: ignore[return-value]  # a Provider has what a Listener lacks

    def close(self) -> None:
        """Let go of what the provider keeps open."""
        close = getattr(self.provider, "close", None)
        if close is not None:
            close()

    def key(self, *parts: object) -> str:
        """Return our key for something that we ask the provider: of this ledger and no other."""
        told = msgspec.json.encode([self.ledger, *parts])
        return f"tillroll-{hmac.digest(self.engine.store.secret, told, 'sha256').hex()}"

    # ------------------------------------------------------------ what is told

    def receive(self, headers: Mapping[str, str], body: bytes) -> int:
        """Take in a webhook; return how many things it told, once all of them are committed.

        Raises:
            BadSignature: It is not the provider's; nothing was written.
            InvalidInput: It cannot be right.
            IdempotencyConflict: The purchase was told otherwise before, by one who makes his own
                ids; all else was written.
            ProviderUnavailable, StoreUnavailable, OutcomeUnknown: Have it sent again.
        """
        told = self.provider.read(headers, body, self.engine.clock())
        self.hear(told)
        return len(told)

    def hear(self, told: Iterable[Told]) -> None:
        """Bring the ledger to each thing told, one transaction a thing."""
        for one in told:
            if isinstance(one, PaymentTold):
                self._payment(one)
            elif isinstance(one, SubscriptionTold):
                self._subscription(one)
            elif isinstance(one, InvoiceTold | ReturnTold):
                self._follow(one.subscription, [one])
            elif isinstance(one, SessionTold):
                self._session(one)
            elif self.heard_charge is not None:
                self.heard_charge(one)

    def _payment(self, told: PaymentTold) -> None:
        facts: list[Fact] = []
        if not self._is_purchase(told):
            return
        for fact in told.facts:
            if isinstance(fact, Sold):
                facts.append(self._bought(self._as_offered(told.id, fact)))
            else:
                facts.append(fact)
        settled = settling.settle(self.engine, self.ledger, self.provider.name, told.id, facts)
        others = [fact for fact in facts if isinstance(fact, Bought) and fact != settled.bought]
        if others and self.provider.hears_conflicts:
            raise IdempotencyConflict(
                f"payment {told.id!r} was told before with another account, product or amount: "
                f"the first counts and stays. That they differ is noted, and what else was told. "
                f"Tell of another payment under another id"
            )

    def _is_purchase(self, told: PaymentTold) -> bool:
        """Return whether a payment bought something; what paid for a period is followed here.

        A refund does not say what it is of, so the provider is asked, unless the purchase is known.
        """
        returned = [one for one in told.facts if not isinstance(one, Sold | Failed)]
        if len(returned) != len(told.facts) or not hasattr(self.provider, "origin"):
            return True
        with self.engine.store.read_primary() as reader:
            known = settling.known(reader, self.ledger, self.provider.name, told.id)
        if known is not None and known.bought is not None:
            return True
        origin = self.asked.origin(told.id)
        if origin is None or origin.invoice is None:
            return origin is not None
        invoice = origin.invoice
        # What was noted when nobody could tell what it was of is heard once more.
        before: list[Refunded | Disputed] = []
        if known is not None:
            before = [*known.refunds.values(), *known.disputes.values()]
        told_of = ReturnTold(
            subscription=invoice.subscription,
            invoice=invoice.id,
            payment=told.id,
            facts=(*before, *returned),
        )
        self._follow(invoice.subscription, [invoice, told_of])
        if known is not None:
            key = settling.key_of(self.ledger, self.provider.name, told.id)
            self.engine.perform(partial(self._placed, key=key))
        return False

    def _placed(self, tx: Writer, *, key: NoteKey) -> None:
        """Delete what was noted of a payment as long as nobody knew what it was for."""
        note = tx.note(key)
        if note is not None and not note.account:
            tx.drop_note(note)

    def _as_offered(self, payment_id: str, sold: Sold) -> Sold:
        """Return a purchase with the version of the catalog that it was first told by.

        Told again after the catalog was changed, it is still the same purchase.
        """
        if sold.version or sold.product is None:
            return sold
        with self.engine.store.read_primary() as reader:
            known = settling.known(reader, self.ledger, self.provider.name, payment_id)
        if known is None or known.bought is None:
            return sold
        return replace(sold, version=known.bought.version)

    def _bought(self, sold: Sold) -> Bought:
        """Return a purchase with what its product brings, by the catalog that offered it."""
        scale = self.engine.store.scale
        common: dict[str, Any] = {
            "account": sold.account,
            "amount": sold.amount,
            "currency": sold.currency,
            "quantity": sold.quantity,
        }
        if sold.units is not None:
            return Bought(
                units=parse_units(sold.units, scale),
                product=sold.product,
                wallet=sold.wallet,
                expires_in=sold.expires_in,
                **common,
            )
        prices = self.prices()
        number = sold.version or prices.current
        if number not in prices.versions:
            raise InvalidInput(f"the catalog has no version {number}")
        products = prices.versions[number].products
        common |= {"product": sold.product, "version": number}
        pack = products.packs.get(sold.product or "")
        if pack is not None:
            return Bought(
                units=parse_units(pack.units, scale) * sold.quantity,
                wallet=pack.wallet,
                expires_in=pack.expires,
                applies_to=pack.applies_to,
                **common,
            )
        timed = products.passes.get(sold.product or "")
        if timed is None:
            raise InvalidInput(
                f"version {number} of the catalog has no pack or pass {sold.product!r}"
            )
        return Bought(units=0, lasts=timed.lasts * sold.quantity, **common)

    def _subscription(self, told: SubscriptionTold) -> None:
        """Follow a subscription; where two tellings of one second differ, ask how it stands."""
        provider = self.provider.name
        with self.engine.store.read_primary() as reader:
            known = subscribing.known(reader, self.ledger, provider, told.id)
        if subscribing.is_in_doubt(known, told) and hasattr(self.provider, "subscription"):
            # Later than both, and earlier than anything of the next second.
            told = replace(self.asked.subscription(told.id), at=told.at + SECOND - 1)
        self._follow(told.id, [told])

    def _follow(
        self, subscription_id: str, told: Sequence[subscribing.Told]
    ) -> subscribing.Subscription:
        return subscribing.follow(
            self.engine, self.ledger, self.provider.name, subscription_id, told
        )

    def _session(self, told: SessionTold) -> None:
        """End the checkout that is over, so that the next one who asks gets a new page."""
        if told.state == "open":
            return

        def act(tx: Writer) -> None:
            note = tx.note(self._checkout_key(told.account, told.product))
            if note is None:
                return
            opened = msgspec.json.decode(note.document, type=Opened)
            if opened.session == told.id and not opened.over:
                put(tx, note, replace(opened, over=True))

        self.engine.perform(act)

    # ------------------------------------------------------------ what is asked

    def checkout(self, account: str, product: str, request_id: str) -> str:
        """Return where an account pays for a product; see `page`."""
        return self.page(account, product, request_id).url

    def page(self, account: str, product: str, request_id: str) -> Page:
        """Return where an account pays for a product: one page as long as it is open.

        Args:
            account: Who pays.
            product: A pack, pass or plan of the catalog.
            request_id: Repeat it to retry; the first answer is returned.

        Raises:
            InvalidInput: The catalog has no such product, or it has no price; or the account could
                not receive what is bought.
            IdempotencyConflict: The id was used for another product.
            ProviderRefused: The provider refused, such as for lack of a right.
            ProviderUnavailable: Ask again with the same id.
        """
        if not (0 < len(account) <= ID_MAX and 0 < len(request_id) <= ID_MAX):
            raise InvalidInput("account and request_id have 1 to 255 characters")
        answered = self._answered(account, product, request_id)
        if answered is not None:
            return Page(answered, replayed=True)
        self._check_receiver(account)
        order = self._order(account, product)
        opened = self.engine.perform(lambda tx: self._opening(tx, account, product))
        if opened.session is not None and self._is_over(account, product, opened.session):
            opened = self.engine.perform(lambda tx: self._opening(tx, account, product))
        if opened.url is None:
            order = replace(order, customer=self.customer(account))
            # What it costs is part of the key: under one key Stripe takes one order only. A trial
            # may be used up meanwhile.
            wanted = order.version, order.amount, order.currency, order.trial
            session = self.asked.checkout(
                order, self.key("checkout", account, product, opened.attempt, *wanted)
            )
            opened = replace(
                opened, url=session.url, session=session.id, expires_at=session.expires_at
            )
        url = opened.url
        assert url is not None
        self.engine.perform(lambda tx: self._opened(tx, account, product, opened, request_id, url))
        return Page(url)

    def _check_receiver(self, account: str) -> None:
        """Refuse to take money for an account that could not receive what it is for."""
        verbs_of(self.engine, self.ledger).grant(account, 1)  # the name is looked at as ever
        with self.engine.store.read_primary() as reader:
            found = look(reader, self.ledger, account, self.engine.clock())
        if found.status == "closed":
            raise InvalidInput(f"account {account!r} is closed; nothing was asked for")

    def _is_over(self, account: str, product: str, session_id: str) -> bool:
        """Return whether a page that we take for open is over; then what it told is heard.

        Its webhook may be lost or still under way, and a customer who wants to buy again must not
        be sent to a page that is paid. Where the provider does not say, none is opened beside it.

        Raises:
            ProviderRefused, ProviderUnavailable: It does not say.
        """
        told = self.asked.page(session_id)
        if told is None:
            gone = SessionTold(id=session_id, account=account, product=product, state="expired")
            told = [gone]
        over = any(isinstance(one, SessionTold) and one.state != "open" for one in told)
        if over:
            self.hear(told)
        return over

    def _answered(self, account: str, product: str, request_id: str) -> str | None:
        with self.engine.store.read_primary() as reader:
            note = reader.note((account_id(self.ledger, account), ASKED, request_id))
        if note is None:
            return None
        asked = msgspec.json.decode(note.document, type=Asked)
        if asked.product != product:
            raise IdempotencyConflict(
                f"request_id {request_id!r} was used before for {asked.product!r}; nothing was "
                f"written. Use a new id for a new request"
            )
        return asked.url

    def _opening(self, tx: Writer, account: str, product: str) -> Opened:
        """Return the page that is open, or note that one is asked for."""
        at = self.engine.clock()
        key = self._checkout_key(account, product)
        note = tx.note(key)
        known = None if note is None else msgspec.json.decode(note.document, type=Opened)
        if known is not None and not known.over:
            if known.url is not None and known.expires_at - PAGE_LEFT_MIN > at:
                return known
            if known.url is None and at - known.asked_at < KEY_LIFE:
                return known  # somebody asked and was not answered yet: ask the same again
        opened = Opened(attempt=1 if known is None else known.attempt + 1, asked_at=at)
        put(tx, note or self._note(key, account), opened)
        return opened

    def _opened(
        self, tx: Writer, account: str, product: str, opened: Opened, request_id: str, url: str
    ) -> None:
        """Note where the page is, and what this request was answered."""
        key = self._checkout_key(account, product)
        note = tx.note(key)
        assert note is not None, "a checkout is noted before it is opened"
        known = msgspec.json.decode(note.document, type=Opened)
        if known.attempt == opened.attempt and known.url is None:
            put(tx, note, opened)
        asked = (account_id(self.ledger, account), ASKED, request_id)
        if tx.note(asked) is None:
            put(tx, self._note(asked, account), Asked(product, url))

    def _order(self, account: str, product: str) -> Order:
        prices = self.prices()
        products = prices.products
        plan = products.plans.get(product)
        sold = plan or products.packs.get(product) or products.passes.get(product)
        if sold is None:
            raise InvalidInput(f"the catalog has no pack, pass or plan {product!r}")
        if not sold.stripe_price and (plan is not None or sold.price is None):
            raise InvalidInput(f"{product!r} has no price that can be paid: give it stripe_price")
        return Order(
            account=account,
            product=product,
            version=prices.current,
            plan=plan is not None,
            price=sold.stripe_price or None,
            amount=None if sold.price is None else minor(sold.price),
            currency=None if sold.price is None else sold.price.currency.lower(),
            trial=None if plan is None else plan.trial_of(product in self._tried(account)),
        )

    def _tried(self, account: str) -> Container[str]:
        """Return the plans that an account had a trial of."""
        with self.engine.store.read_primary() as reader:
            return look(reader, self.ledger, account, self.engine.clock()).tried

    def customer(self, account: str) -> str:
        """Return the provider's customer for an account, and keep it."""
        key = (account_id(self.ledger, account), CUSTOMER, self.provider.name)
        with self.engine.store.read_primary() as reader:
            note = reader.note(key)
        if note is not None:
            return note.document
        made = self.asked.customer(account, self.key("customer", account))

        def act(tx: Writer) -> str:
            there = tx.note(key)
            if there is None:
                tx.put_note(replace(self._note(key, account), document=made))
            return made if there is None else there.document

        return self.engine.perform(act)

    # ------------------------------------------------------------ rounds

    def pull(self) -> Pulled:
        """Hear what happened since the last pull: whatever webhooks were lost comes this way.

        What cannot be followed (a product that the catalog lacks) is kept for `again`, so that one
        event does not keep the others from being heard.

        Raises:
            ProviderUnavailable: What came before is heard; the next pull goes on.
        """
        at = self.engine.clock()
        heard = kept = 0
        while True:
            start, until = self._window(at)
            for happened_at, told in self.asked.pull(start, until):
                heard += 1
                if isinstance(told, InvalidInput):
                    kept += self._keep([], happened_at, str(told))
                    continue
                try:
                    self.hear(told)
                except CANNOT as problem:
                    kept += self._keep(told, happened_at, str(problem))
            self.engine.perform(partial(self._heard, until=until))
            if until >= at or heard >= EVENTS_MAX:
                return Pulled(heard, kept, until, more=until < at)

    def _window(self, at: int) -> tuple[int, int]:
        """Return from when to when to ask next: from what was heard last, a few hours on."""
        with self.engine.store.read_primary() as reader:
            note = reader.note(self._cursor_key())
        last = 0 if note is None else msgspec.json.decode(note.document, type=Cursor).at
        last = min(last, at)  # a clock that was ahead is not believed for ever
        start = max(last - OVERLAP, at - REACH)
        return start, min(max(last, start) + WINDOW, at)

    def _heard(self, tx: Writer, *, until: int) -> None:
        key = self._cursor_key()
        there = tx.note(key)
        known = 0 if there is None else msgspec.json.decode(there.document, type=Cursor).at
        if until > known:
            put(tx, there or self._note(key), Cursor(until))

    def _cursor_key(self) -> NoteKey:
        return account_id(self.ledger, f"~{CURSOR}/{self.provider.name}"), CURSOR, "events"

    def _keep(self, told: list[Told], happened_at: int, problem: str) -> int:
        """Keep what cannot be followed yet, once; return how many."""
        digest = sha256(msgspec.json.encode(told or problem)).hexdigest()
        key = (account_id(self.ledger, f"~{KEPT}/{digest}"), KEPT, f"{self.provider.name}:{digest}")
        kept = Kept(told=tuple(told), problem=problem, at=happened_at)

        def act(tx: Writer) -> int:
            if tx.note(key) is not None:
                return 0
            due_at = self.engine.clock() + subscribing.AGAIN if told else NEVER
            put(tx, self._note(key), kept, due_at)
            return 1

        return self.engine.perform(act)

    def again(self) -> int:
        """Try again what the ledger could not follow; return how many were tried."""
        at = self.engine.clock()
        with self.engine.store.read_primary() as reader:
            due = reader.notes_due(self.ledger, subscribing.KIND, at, AGAIN_MAX)
            kept = reader.notes_due(self.ledger, KEPT, at, AGAIN_MAX)
        for note in due:
            subscription = subscribing.decoded(note)
            try:
                self._follow(subscription.id, [])
            except CANNOT:  # put off, or it would keep those behind it from being tried
                self._put_off(note, subscribing.again_at(subscription, at))
        for note in kept:
            self._hear_kept(note)
        return len(due) + len(kept)

    def _put_off(self, seen: Note, due_at: int) -> None:
        """Try a note again a while later, if at all."""

        def act(tx: Writer) -> None:
            note = tx.note(seen.key)
            if note is not None and note.version == seen.version:
                tx.put_note(replace(note, due_at=due_at))

        self.engine.perform(act)

    def _hear_kept(self, seen: Note) -> None:
        kept = msgspec.json.decode(seen.document, type=Kept)
        at = self.engine.clock()
        problem = None
        try:
            self.hear(kept.told)
        except CANNOT as found:
            problem = str(found)

        def act(tx: Writer) -> None:
            note = tx.note(seen.key)
            if note != seen:  # another process was here
                return
            if problem is None:
                tx.drop_note(note)
            else:
                put(tx, note, replace(kept, problem=problem), subscribing.next_try(kept.at, at))

        self.engine.perform(act)

    # ------------------------------------------------------------ what is shared

    def prices(self) -> PriceBook:
        """Return the ledger's catalog."""
        with self.engine.store.read_primary() as reader:
            return reader.prices(self.ledger)

    def _checkout_key(self, account: str, product: str) -> tuple[bytes, str, str]:
        return account_id(self.ledger, account), CHECKOUT, product

    def _note(self, key: tuple[bytes, str, str], account: str = "") -> Note:
        return new_note(self.ledger, key, account)


def new_note(ledger: str, key: tuple[bytes, str, str], account: str = "") -> Note:
    """Return a note that is not there yet."""
    owner, kind, name = key
    return Note(owner=owner, kind=kind, name=name, project=ledger, account=account, document="")


def put(tx: Writer, note: Note, document: Struct, due_at: int = NEVER) -> None:
    """Write a document into a note."""
    text = msgspec.json.encode(document).decode()
    tx.put_note(replace(note, document=text, due_at=due_at))


def check_standing(account: Account) -> None:
    """Arrange nothing for an account that is not there, or is closed.

    Raises:
        NotFound: It has no history; nothing was written.
        AccountClosed: Nothing was written.
    """
    if account.seq == 0:
        raise NotFound(f"there is no account {account.account!r}; nothing was written")
    if account.status == "closed":
        raise AccountClosed(
            f"account {account.account!r} is closed; nothing was written",
            account=account.account,
            seq=account.seq,
        )


def minor(price: Any) -> int:
    """Return a price of the catalog in the currency's smallest unit.

    Raises:
        InvalidInput: It has more decimals than the currency.
    """
    amount = price.amount.scaleb(decimals_of(price.currency))
    if amount != amount.to_integral_value():
        raise InvalidInput(f"{price.amount} {price.currency} is no amount of that currency")
    return int(amount)


__all__ = ["Desk", "Page", "Pulled", "check_standing", "kept_of", "minor", "new_note", "put"]
