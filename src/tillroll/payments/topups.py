"""Auto top-up: an account that runs low is charged, once, within bounds, and stops when declined.

Each account and wallet has one note, so one top-up is pending at the most. An attempt is numbered
and noted before anything is charged, and its number makes the key that the provider knows it by:
whoever dies in between, or is not answered, asks again under that key and is charged once. The
units are granted as for any payment (`settling`), by whoever hears of it first.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from functools import partial
from typing import TYPE_CHECKING, Literal
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tillroll.embedded.answers import exception_of
from tillroll.embedded.ledger import verbs_of
from tillroll.engine import answer_in
from tillroll.ledger import calendar
from tillroll.ledger.burn import spendable
from tillroll.ledger.commands import account_id
from tillroll.ledger.errors import (
    InvalidInput,
    NotFound,
    ProviderUnavailable,
    StoreCorrupt,
    StoreUnavailable,
    TillrollError,
)
from tillroll.ledger.events import PaymentData, TopUpData
from tillroll.ledger.types import (
    DAY,
    HOUR,
    MINUTE,
    NEVER,
    RESERVED,
    TOPUP,
    WALLET_DEFAULT,
    Entry,
)
from tillroll.ledger.units import parse_decimal, parse_limit, parse_units, show_units, to_decimal
from tillroll.payments.desk import KEY_LIFE, REACH, Desk, check_standing, minor, new_note, put
from tillroll.payments.facts import AMOUNT_MAX, decimals_of
from tillroll.payments.provider import ChargeTold, Order, PaymentTold, Sold
from tillroll.payments.settling import standing
from tillroll.payments.telling import Source, tell

if TYPE_CHECKING:
    from collections.abc import Callable

    from tillroll.ledger.types import Account
    from tillroll.ledger.units import Units
    from tillroll.ledger.verbs import Span
    from tillroll.payments.telling import Topic
    from tillroll.stores.base import Note, NoteKey, Reader, Writer

KIND = TOPUP
EVERY = MINUTE  # how often a balance is looked at anyhow, and a pending charge asked after
COOL_DOWN = 10 * MINUTE  # after a top-up, unless set otherwise
BACK_OFF = (HOUR, 6 * HOUR, DAY)  # after each decline; one more, and it is paused
ROUND_MAX = 500  # accounts of one round
SPENT_MAX = 1_000  # top-ups that are remembered for the caps: those of the last 32 days
_MONTH = 32 * DAY

State = Literal["ready", "pending", "waiting", "paused"]


class Pending(Struct, frozen=True, omit_defaults=True):
    """An attempt that was begun: exactly what is charged, whoever asks for it again.

    Attributes:
        card: The provider's id of what is charged; None until that was looked up.
    """

    attempt: int
    at: int
    amount: int
    currency: str
    quantity: int = 1
    product: str | None = None
    version: int = 0
    units: str | None = None
    card: str | None = None


class Spent(Struct, frozen=True, array_like=True):
    """A top-up that was paid: when, and how much."""

    at: int
    amount: int


class TopUp(Struct, frozen=True, omit_defaults=True):
    """What tops an account up, and how it stands.

    Attributes:
        threshold: Units; at or below it the account is topped up.
        target: Units that it is topped up to.
        product: The pack that is bought, as often as it takes.
        unit_price: What one unit costs, where no pack is bought.
        daily_cap: The most that is charged on one day, in the currency's smallest unit, in the
            account's own time zone; None for no such bound.
        monthly_cap: The same for a month.
        cool_down: How long after a top-up the next one may be, in microseconds.
        state: "ready" looks at the balance; "pending" waits for the provider; "waiting" may not
            charge before `not_before`; "paused" waits for `resume`.
        reason: Why it waits or is paused, in one word.
        attempt: How many attempts were begun.
        declined: How many were declined since one was paid.
    """

    account: str
    threshold: int
    target: int
    wallet: str = WALLET_DEFAULT
    product: str | None = None
    unit_price: str | None = None
    currency: str | None = None
    daily_cap: int | None = None
    monthly_cap: int | None = None
    cool_down: int = COOL_DOWN
    state: State = "ready"
    reason: str | None = None
    attempt: int = 0
    pending: Pending | None = None
    declined: int = 0
    not_before: int = 0
    spent: tuple[Spent, ...] = ()

    def shown(self, scale: int) -> dict[str, object]:
        """Return it as plain values for JSON, units exact."""
        plain: dict[str, object] = {
            name: getattr(self, name)
            for name in self.__struct_fields__
            if name not in ("pending", "spent", "not_before", "cool_down")
        }
        plain["threshold"] = show_units(self.threshold, scale)
        plain["target"] = show_units(self.target, scale)
        plain["cool_down"] = calendar.show_span(self.cool_down)
        waits = self.state == "waiting"
        plain["not_before"] = calendar.show_instant(self.not_before) if waits else None
        plain["pending_amount"] = None if self.pending is None else self.pending.amount
        plain["last_paid_at"] = calendar.show_instant(self.spent[-1].at) if self.spent else None
        return plain


# ---------------------------------------------------------------- set, see, pause, resume


def set_top_up(
    desk: Desk,
    account: str,
    *,
    threshold: Units,
    target: Units,
    wallet: str = WALLET_DEFAULT,
    product: str | None = None,
    unit_price: Units | None = None,
    currency: str | None = None,
    daily_cap: Units | None = None,
    monthly_cap: Units | None = None,
    cool_down: Span | None = None,
) -> TopUp:
    """Have an account topped up from now on; what is pending or was spent stays.

    Args:
        desk: Whose account, and who is paid.
        account: The balance owner; it must have paid before, so that a card is on file.
        threshold: At or below so many spendable units it is topped up.
        target: Up to so many.
        wallet: The kind of credits.
        product: A pack of the catalog that brings them; bought as often as it takes.
        unit_price: What one unit costs, such as "0.01", where there is no pack for it.
        currency: Of the unit price and of nothing else; a pack has its own.
        daily_cap: The most that is charged on one day, such as "50" (of the currency).
        monthly_cap: The most that is charged in one month.
        cool_down: How long after a top-up the next one may be; ten minutes if left out.

    Raises:
        InvalidInput: It makes no sense, or the catalog has no such pack; nothing was written.
        NotFound: There is no such account; nothing was written.
        AccountClosed: Nothing was written.
    """
    scale = desk.engine.store.scale
    low, high = parse_limit(threshold, scale, "threshold"), parse_units(target, scale)
    if high <= low:
        raise InvalidInput("target must be above threshold")
    if (product is None) == (unit_price is None):
        raise InvalidInput("give product or unit_price, one of them")
    if (unit_price is None) != (currency is None):
        raise InvalidInput("unit_price and currency go together")
    if product is not None:
        currency = _pack(desk, product, wallet).currency
    assert currency is not None
    terms = TopUp(
        account=account,
        threshold=low,
        target=high,
        wallet=wallet,
        product=product,
        unit_price=None if unit_price is None else str(_positive(unit_price)),
        currency=currency.lower(),
        daily_cap=_money(daily_cap, currency, "daily_cap"),
        monthly_cap=_money(monthly_cap, currency, "monthly_cap"),
        cool_down=COOL_DOWN if cool_down is None else calendar.span(cool_down, "cool_down"),
    )
    at = desk.engine.clock()

    def act(tx: Writer) -> TopUp:
        found = standing(tx, desk.ledger, account, at)
        check_standing(found)
        note = tx.note(_key(desk, account, wallet))
        made = terms if note is None else _set_anew(decoded(note), terms)
        _write(tx, desk, note, made, at)
        _watch(tx, desk, found, made, note, at)
        return made

    return desk.engine.perform(act)


def _set_anew(known: TopUp, terms: TopUp) -> TopUp:
    """Return a top-up on new terms: what is pending or was spent stays, and a pause by hand."""
    made = replace(terms, attempt=known.attempt, pending=known.pending, spent=known.spent)
    by_hand = known.reason == "by_hand"
    if known.pending is not None:
        return replace(made, state="pending", reason="by_hand" if by_hand else None)
    if by_hand or _terms(known) == _terms(made):  # saying the same again is no `resume`
        stands = ("state", "reason", "declined", "not_before")
        return replace(made, **{name: getattr(known, name) for name in stands})
    return made


def _terms(topup: TopUp) -> tuple[object, ...]:
    """Return what was set, without how it stands."""
    money = topup.product, topup.unit_price, topup.currency, topup.daily_cap, topup.monthly_cap
    return topup.threshold, topup.target, topup.cool_down, *money


def top_up_of(reader: Reader, ledger: str, account: str, wallet: str = WALLET_DEFAULT) -> TopUp:
    """Return what tops an account up, and how it stands.

    Raises:
        NotFound: Nothing does.
    """
    note = reader.note((account_id(ledger, account), KIND, wallet))
    if note is None:
        raise NotFound(f"account {account!r} has no top-up of {wallet!r}")
    return decoded(note)


def pause(desk: Desk, account: str, wallet: str = WALLET_DEFAULT) -> TopUp:
    """Charge nothing more until it is resumed; an attempt that is pending is still waited for."""

    def paused(topup: TopUp) -> TopUp:
        state: State = "pending" if topup.pending is not None else "paused"
        return replace(topup, state=state, reason="by_hand", not_before=0)

    return _change(desk, account, wallet, paused)


def resume(desk: Desk, account: str, wallet: str = WALLET_DEFAULT) -> TopUp:
    """Look at the balance again, whatever it was paused or waited for; declines are forgotten."""

    def resumed(topup: TopUp) -> TopUp:
        state: State = "pending" if topup.pending is not None else "ready"
        return replace(topup, state=state, reason=None, declined=0, not_before=0)

    return _change(desk, account, wallet, resumed)


def decoded(note: Note) -> TopUp:
    """Return the top-up that a note holds."""
    return msgspec.json.decode(note.document, type=TopUp)


def _change(desk: Desk, account: str, wallet: str, to: Callable[[TopUp], TopUp]) -> TopUp:
    def act(tx: Writer) -> TopUp:
        topup = to(top_up_of(tx, desk.ledger, account, wallet))
        _write(tx, desk, tx.note(_key(desk, account, wallet)), topup, desk.engine.clock())
        return topup

    return desk.engine.perform(act)


# ---------------------------------------------------------------- rounds


def round_of(desk: Desk) -> int:
    """Look at the balances that are due, and charge where they are low; return how many charges.

    Raises:
        ProviderUnavailable, StoreUnavailable: What is pending stays so; the next round asks again.
        TillrollError: The first that went wrong with one account; the others were looked at.
    """
    desk.heard_charge = lambda told: resolved(desk, told)
    with desk.engine.store.read_primary() as reader:
        due = reader.notes_due(desk.ledger, KIND, desk.engine.clock(), ROUND_MAX)
    charges = 0
    problems: list[TillrollError] = []
    for note in due:
        try:
            topup = desk.engine.perform(partial(_begin, desk=desk, seen=note))
            if topup is not None:
                charges += 1
                _charge(desk, topup)
        except TillrollError as problem:  # one account's trouble is not the others'
            is_damaged = isinstance(problem, StoreCorrupt)
            if isinstance(problem, ProviderUnavailable | StoreUnavailable) and not is_damaged:
                raise
            problems.append(problem)
            desk.engine.perform(partial(_put_off, desk=desk, seen=note))
    if problems:
        raise problems[0]
    return charges


def _put_off(tx: Writer, *, desk: Desk, seen: Note) -> None:
    """Look later at what could not even be begun: it would keep those behind it waiting."""
    note = tx.note(seen.key)
    if note is not None and note.version == seen.version:
        tx.put_note(replace(note, due_at=desk.engine.clock() + HOUR))


def _begin(tx: Writer, *, desk: Desk, seen: Note) -> TopUp | None:
    """Begin an attempt where one is needed; return the top-up whose attempt is to be charged."""
    note = tx.note(seen.key)
    assert note is not None, "a note is never removed"
    topup = decoded(note)
    at = desk.engine.clock()
    if note.due_at > at:
        return None  # another process was here
    if topup.pending is not None:
        _write(tx, desk, note, topup, at + EVERY)
        return topup
    account = standing(tx, desk.ledger, topup.account, at)
    if account.status != "closed":
        _watch(tx, desk, account, topup, note, at)
    begun = _decide(desk, topup, account, at)
    _write(tx, desk, note, begun, at + EVERY)
    return begun if begun.pending is not None else None


def _watch(
    tx: Writer, desk: Desk, account: Account, topup: TopUp, note: Note | None, at: int
) -> None:
    """Have the account know where it is topped up, so that who takes it there says so at once."""
    name = f"{RESERVED}{KIND}/{topup.wallet}"
    known = account.alerts.get(name)
    if known is not None and known.terms.threshold == topup.threshold:
        return
    scale = desk.engine.store.scale
    version = 0 if note is None else note.version
    request = verbs_of(desk.engine, desk.ledger, ours=True).set_alert(
        topup.account,
        name,
        TOPUP,  # type: ignore[arg-type]  # ours alone
        to_decimal(topup.threshold, scale),
        wallet=topup.wallet,
        request_id=f"{name}/{version + 1}",
        reason=f"it is topped up at {show_units(topup.threshold, scale)} {topup.wallet} or fewer",
        actor=f"payments/{desk.provider.name}",
    )
    [answer] = answer_in(tx, scale, [request], at)
    if not isinstance(answer.outcome, Entry):
        raise exception_of(answer, request, scale)


def _decide(desk: Desk, topup: TopUp, account: Account, at: int) -> TopUp:
    """Return how a top-up stands after a look at the balance."""
    if topup.state == "paused" or (topup.state == "waiting" and topup.not_before > at):
        return topup
    if account.status != "open":
        return replace(topup, state="paused", reason=f"account_{account.status}")
    free = spendable(account, topup.wallet, None, at)
    if free > topup.threshold:
        return replace(topup, state="ready", reason=None)
    try:
        pending = _priced(desk, topup, topup.target - free, at)
    except InvalidInput:
        return replace(topup, state="paused", reason="no_such_product")
    zone = account.settings.time_zone
    for cap, reason, start, end in (
        (topup.daily_cap, "daily_cap", *_day(at, zone)),
        (topup.monthly_cap, "monthly_cap", *_month(at, zone)),
    ):
        spent = sum(one.amount for one in topup.spent if one.at >= start)
        if cap is not None and spent + pending.amount > cap:
            return replace(topup, state="waiting", reason=reason, not_before=end)
    return replace(
        topup, state="pending", reason=None, attempt=pending.attempt, pending=pending, not_before=0
    )


def _priced(desk: Desk, topup: TopUp, units: int, at: int) -> Pending:
    """Return the attempt that brings so many units: whole packs, or the units at their price."""
    scale = desk.engine.store.scale
    attempt = topup.attempt + 1
    if topup.product is not None:
        pack = _pack(desk, topup.product, topup.wallet)
        quantity = -(-units // pack.units)
        return Pending(
            attempt=attempt,
            at=at,
            amount=pack.amount * quantity,
            currency=pack.currency,
            quantity=quantity,
            product=topup.product,
            version=pack.version,
        )
    currency = topup.currency or ""
    text = show_units(units, scale)
    each = Decimal(topup.unit_price or "0").scaleb(decimals_of(currency))
    amount = int((each * Decimal(text)).to_integral_value(ROUND_CEILING))
    return Pending(attempt=attempt, at=at, amount=amount, currency=currency, units=text)


def _charge(desk: Desk, topup: TopUp) -> None:
    """Charge the attempt that is pending, or find out what became of it; then say so."""
    pending = topup.pending
    assert pending is not None
    told = _asked(desk, topup, pending)
    if told.state == "succeeded" and told.payment is not None:
        sold = Sold(
            account=topup.account,
            product=pending.product,
            version=pending.version,
            quantity=pending.quantity,
            units=pending.units,
            wallet=topup.wallet,
            amount=pending.amount,
            currency=pending.currency,
        )
        desk.hear([PaymentTold(id=told.payment, facts=(sold,))])
    resolved(desk, told)


def _asked(desk: Desk, topup: TopUp, pending: Pending) -> ChargeTold:
    """Charge an attempt, or find out what became of it; who does it again asks the very same."""
    order = Order(
        account=topup.account,
        product=pending.product,
        version=pending.version,
        customer=desk.customer(topup.account),
        quantity=pending.quantity,
        amount=pending.amount,
        currency=pending.currency,
        units=pending.units,
        wallet=topup.wallet,
        attempt=pending.attempt,
    )
    nothing = ChargeTold(
        account=topup.account, wallet=topup.wallet, attempt=pending.attempt, state="declined"
    )
    now = desk.engine.clock()
    age = now - pending.at
    if not 0 <= age < KEY_LIFE:
        # The key may be forgotten: asked again under it, the charge might be another one. Of one
        # that was begun later than now nobody knows how long ago that was.
        found = desk.asked.attempt(order, pending.at if age >= 0 else now - REACH)
        if found is not None:
            return found
        if age >= 0:
            return replace(nothing, reason="never_arrived")
    noted = pending if pending.card is not None else _with_card(desk, topup, pending)
    if noted is None:
        return replace(nothing, state="pending")
    if noted.card is None:
        return replace(nothing, reason="no_payment_method", final=True)
    key = desk.key("topup", topup.account, topup.wallet, pending.attempt)
    return desk.asked.charge(replace(order, card=noted.card), key)


def _with_card(desk: Desk, topup: TopUp, pending: Pending) -> Pending | None:
    """Return an attempt with what it charges, and note that: a later default is not this one's.

    None where the attempt was resolved meanwhile.
    """
    card = desk.asked.card(desk.customer(topup.account))

    def act(tx: Writer) -> Pending | None:
        note = tx.note(_key(desk, topup.account, topup.wallet))
        assert note is not None, "a note is never removed"
        known = decoded(note)
        noted = known.pending
        if noted is None or noted.attempt != pending.attempt:
            return None
        if noted.card is None and card is not None:
            noted = replace(noted, card=card)
            put(tx, note, replace(known, pending=noted), note.due_at)
        return noted

    return desk.engine.perform(act)


def resolved(desk: Desk, told: ChargeTold) -> None:
    """Note what became of an attempt; one that is not pending any more changes nothing."""
    at = desk.engine.clock()

    def act(tx: Writer) -> None:
        note = tx.note(_key(desk, told.account, told.wallet))
        if note is None:
            return
        topup = decoded(note)
        pending = topup.pending
        if pending is None or pending.attempt != told.attempt or told.state == "pending":
            return
        _write(tx, desk, note, _after(topup, pending, told, at), at + EVERY, told)

    desk.engine.perform(act)


def _after(topup: TopUp, pending: Pending, told: ChargeTold, at: int) -> TopUp:
    by_hand = topup.reason == "by_hand"
    topup = replace(topup, pending=None)
    if told.state == "succeeded":
        recent = [one for one in topup.spent if one.at > at - _MONTH]
        spent = _bounded((*recent, Spent(pending.at, pending.amount)))
        topup = replace(topup, spent=spent, declined=0)
        if by_hand:
            return replace(topup, state="paused")
        return replace(topup, state="waiting", reason="cool_down", not_before=at + topup.cool_down)
    declined = topup.declined + 1
    reason = told.reason or "declined"
    topup = replace(topup, declined=declined)
    if by_hand:
        return replace(topup, state="paused")
    if told.final or declined > len(BACK_OFF):
        return replace(topup, state="paused", reason=reason)
    return replace(topup, state="waiting", reason=reason, not_before=at + BACK_OFF[declined - 1])


def _bounded(spent: tuple[Spent, ...]) -> tuple[Spent, ...]:
    """Return what was spent in no more parts than are remembered; a cap errs on the safe side."""
    while len(spent) > SPENT_MAX:
        first, second, *rest = spent
        spent = (Spent(second.at, first.amount + second.amount), *rest)
    return spent


# ---------------------------------------------------------------- pieces


class _Priced(Struct, frozen=True):
    """A pack of the catalog with what it brings and costs."""

    units: int
    amount: int
    currency: str
    version: int


def _pack(desk: Desk, product: str, wallet: str) -> _Priced:
    """Return a pack that can fill this wallet: another one would be bought again and again."""
    prices = desk.prices()
    pack = prices.products.packs.get(product)
    if pack is None or pack.price is None:
        raise InvalidInput(f"the catalog has no pack {product!r} with a price")
    if pack.wallet != wallet or pack.applies_to:
        raise InvalidInput(f"the pack {product!r} does not bring {wallet} for everything")
    units = parse_units(pack.units, desk.engine.store.scale)
    return _Priced(units, minor(pack.price), pack.price.currency.lower(), prices.current)


def _key(desk: Desk, account: str, wallet: str) -> NoteKey:
    return account_id(desk.ledger, account), KIND, wallet


def _write(
    tx: Writer,
    desk: Desk,
    note: Note | None,
    topup: TopUp,
    due_at: int,
    charge: ChargeTold | None = None,
) -> None:
    """Write a top-up, due then, or when it may be looked at again; tell what is new of it."""
    key = _key(desk, topup.account, topup.wallet)
    if topup.state == "waiting":
        due_at = topup.not_before
    elif topup.state == "paused":
        due_at = NEVER
    known = note or new_note(desk.ledger, key, topup.account)
    put(tx, known, topup, due_at)
    place = f"{KIND}\n{topup.wallet}\n{topup.account}"
    source = Source(desk.ledger, place, known.version + 1, topup.account, desk.engine.clock())
    before = None if note is None else decoded(note)
    tell(tx, source, told_of(before, topup, charge, desk.engine.store.scale, desk.provider.name))


def told_of(
    before: TopUp | None, after: TopUp, charge: ChargeTold | None, scale: int, provider: str
) -> list[Topic]:
    """Return what is to be told of a top-up that stands otherwise than before.

    Args:
        before: How it stood; None where there was none.
        after: How it stands.
        charge: What became of its attempt, where that was told.
        scale: Decimals of units.
        provider: Who was to charge.
    """
    pending = None if before is None else before.pending
    told: list[Topic] = []
    if after.pending is not None and pending is None:
        told.append(("topup.started", _data(after, after.pending, None, None, scale)))
    if pending is not None and after.pending is None and charge is not None:
        reason = None if charge.state == "succeeded" else charge.reason or "declined"
        paid = "topup.failed" if reason else "topup.succeeded"
        told.append((paid, _data(after, pending, charge.payment, reason, scale)))
        if reason and charge.payment is not None:
            told.append(("payment.failed", _failed(pending, charge.payment, reason, provider)))
    if after.state == "paused" and (before is None or before.state != "paused"):
        last = None if charge is None else charge.payment
        told.append(("topup.paused", _data(after, pending, last, after.reason, scale)))
    return told


def _data(
    topup: TopUp, pending: Pending | None, payment: str | None, reason: str | None, scale: int
) -> TopUpData:
    """Return what is told of a top-up; what is bought is the attempt's, whatever was set since."""
    waits = topup.state == "waiting"
    bought = pending or topup
    return TopUpData(
        wallet=topup.wallet,
        threshold=show_units(topup.threshold, scale),
        target=show_units(topup.target, scale),
        attempt=topup.attempt,
        product=bought.product,
        amount=None if pending is None else pending.amount,
        currency=bought.currency,
        payment=payment,
        reason=reason,
        declined=topup.declined,
        not_before=calendar.show_instant(topup.not_before) if waits else None,
    )


def _failed(pending: Pending, payment: str, reason: str, provider: str) -> PaymentData:
    return PaymentData(
        provider=provider,
        payment=payment,
        product=pending.product,
        units=pending.units,
        amount=pending.amount,
        currency=pending.currency,
        reason=reason,
    )


def _positive(price: Units) -> Decimal:
    each = parse_decimal(price, "unit_price")
    if each <= 0:
        raise InvalidInput("unit_price must be greater than zero")
    return each


def _money(amount: Units | None, currency: str, name: str) -> int | None:
    """Return an amount of money in the currency's smallest unit."""
    if amount is None:
        return None
    small = parse_decimal(amount, name).scaleb(decimals_of(currency))
    if small != small.to_integral_value() or not 0 <= small <= AMOUNT_MAX:
        raise InvalidInput(f"{name} is no amount of {currency}")
    return int(small)


def _day(at: int, zone: str) -> tuple[int, int]:
    """Return when the day at hand began and when it ends, where the account is."""
    local = datetime.fromtimestamp(at / 1e6, UTC).astimezone(ZoneInfo(zone))
    begins = local.replace(hour=0, minute=0, second=0, microsecond=0)
    return _micros(begins), _micros(begins + timedelta(days=1))


def _month(at: int, zone: str) -> tuple[int, int]:
    local = datetime.fromtimestamp(at / 1e6, UTC).astimezone(ZoneInfo(zone))
    begins = local.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return _micros(begins), _micros((begins + timedelta(days=32)).replace(day=1))


def _micros(moment: datetime) -> int:
    return int(moment.timestamp()) * 10**6


__all__ = ["TopUp", "pause", "resolved", "resume", "round_of", "set_top_up", "top_up_of"]
