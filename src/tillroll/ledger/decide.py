"""The rules: what one request leads to, on an account brought to the moment of deciding.

`decide` answers with an `Entry` to append, a `Refusal`, or a ready `Answer` where the request asks
for what was done before. It changes nothing. The checks of each verb stand in the order of the
refusals' precedence (errors.REFUSALS).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from tillroll.ledger import alerts, budgets, calendar
from tillroll.ledger import commands as c
from tillroll.ledger.budgets import Spend
from tillroll.ledger.burn import draw, is_over, surplus
from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.pricing import Priced, Unpriced, price_hold, price_request
from tillroll.ledger.types import (
    DAY,
    HOUR,
    MINUTE,
    OVERDRAFT,
    PART,
    RESERVED,
    TOPUP,
    WALLET_DEFAULT,
    Account,
    AlertTerms,
    Entry,
    Grant,
    Hold,
    Meters,
    Posting,
    PricedBy,
    RecurringTerms,
    Refusal,
    Settings,
    Terms,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal
from tillroll.ledger import entitle
from tillroll.ledger.book import Answer, Case
from tillroll.ledger.entitlements import may_use
from tillroll.ledger.fold import hold_of
from tillroll.ledger.granting import LIVE_MAX, check_room, granted
from tillroll.ledger.moves import (
    ending_of,
    entry_of,
    is_void,
    issue,
    paid_lines,
    parts_of,
    returns,
    take,
    terms_of,
    unused,
    unwind,
)
from tillroll.ledger.refuse import (
    exceeds_charge,
    exceeds_hold,
    finalized,
    hold_expired,
    insufficient,
    no_hold,
    not_entitled,
    not_open,
    over_budget,
    refuse,
)

HOLD_LIFE = 15 * MINUTE
HOLD_LIFE_MAX = 24 * HOUR
DOUBT_LIFE = 24 * HOUR
DOUBT_LIFE_MAX = 30 * DAY


def decide(case: Case) -> Entry | Refusal | Answer:
    """Answer one request on an account that was advanced to `case.at`; change nothing.

    Returns:
        The entry to append, a refusal, or a ready answer where the request asks for what was
        done before (a settle or release repeated under another id).

    Raises:
        InvalidInput: The request can never be right; nothing is remembered.
    """
    command = case.request.command
    refusal = None if case.account.status == "open" else _refuse_by_status(case)
    return refusal or _RULES.get(type(command), _govern)(case, command)


def gate(case: Case) -> Refusal | None:
    """Refuse work by what comes before its price: the account's status, and its feature."""
    command = case.request.command
    assert isinstance(command, c.Work), "only work passes the gate"
    if case.account.status != "open":
        return _refuse_by_status(case)
    if command.feature is not None and _is_barred(case, command.feature):
        return not_entitled(case, command.feature)
    return None


WORK_IN_FLIGHT = (c.Settle, c.Release, c.InDoubt, c.Extend)


def _refuse_by_status(case: Case) -> Refusal | None:
    """Refuse what a frozen or closed account may not do; work in flight may always end."""
    command = case.request.command
    if isinstance(command, WORK_IN_FLIGHT):
        return None
    if case.account.status == "closed":
        return refuse(case, "account_closed", "the account is closed")
    if isinstance(command, c.Work):
        return refuse(
            case,
            "account_frozen",
            "the account is frozen",
            ways_out=({"kind": "unfreeze", "text": "an operator may unfreeze the account"},),
        )
    return None


class _Amount(Struct, frozen=True, gc=False):
    units: int
    wallet: str
    price: PricedBy | None


def _price(case: Case, work: c.Work) -> _Amount | Refusal:
    """Return what the work costs: the units given, or the price book's for its meters."""
    if work.units is not None:
        return _Amount(work.units, work.wallet or WALLET_DEFAULT, None)
    quote = work.quote
    if quote is not None and case.at >= quote.expires_at:
        return refuse(
            case,
            "quote_expired",
            f"the quote ended at {calendar.show_instant(quote.expires_at)}",
            ways_out=({"kind": "quote", "text": "ask for a new quote"},),
        )
    return _price_meters(
        case,
        operation=work.operation or "",
        model=work.model,
        meters=work.meters,
        attributes=work.attributes,
        version=quote.version if quote else None,
        ceiling=quote.ceiling if quote else None,
        at=work.effective_at or case.at,
    )


def _price_meters(
    case: Case,
    *,
    operation: str,
    model: str | None,
    meters: Meters | None,
    attributes: dict[str, str] | None,
    version: int | None,
    ceiling: int | None,
    at: int,
) -> _Amount | Refusal:
    account = case.account
    asked: dict[str, Any] = {
        "model": model,
        "attributes": attributes,
        "account_ref": account.account,
        "at": at,
        "version": version,
        "scale": case.rules.scale,
    }
    book = case.rules.prices
    if isinstance(case.request.command, c.Hold):
        priced = price_hold(book, operation, meters or {}, **asked)
    else:
        priced = price_request(book, operation, meters or {}, **asked)
        carried = account.residuals.get(priced.rule) if isinstance(priced, Priced) else None
        if carried:
            priced = price_request(book, operation, meters or {}, residual=carried, **asked)
    if isinstance(priced, Unpriced):
        return refuse(
            case,
            "unpriced",
            priced.reason,
            details={"known": ", ".join(priced.known)},
            ways_out=({"kind": "price", "text": "add a price to tillroll.toml and apply it"},),
        )
    units = priced.units if ceiling is None else min(priced.units, ceiling)
    residual: Decimal | None = priced.residual_after
    if isinstance(case.request.command, c.Hold) or not (
        residual or priced.rule in account.residuals
    ):
        residual = None  # a residual is carried by charges, and only where a price says so
    by = PricedBy(priced.version, priced.rule, priced.exact, residual)
    return _Amount(units, priced.wallet, by)


def _is_barred(case: Case, feature: str) -> bool:
    """Return whether the work needs a feature that the account may not use."""
    return not may_use(case.account, feature, case.rules.prices.products)


def _consume(case: Case, command: c.Consume) -> Entry | Refusal:
    account = case.account
    effective_at = _effective(case, command.effective_at)
    if command.feature is not None and _is_barred(case, command.feature):
        return not_entitled(case, command.feature)
    amount = _price(case, command)
    if isinstance(amount, Refusal):
        return amount
    units, wallet = amount.units, amount.wallet
    if account.budgets:
        spend = Spend(wallet, command.operation, command.model, command.tags)
        tight = budgets.tightest(account, spend, case.at)
        if tight is not None and tight.left < units:
            return over_budget(case, tight, units, wallet)
    postings, missing = draw(account, wallet, command.operation, units, case.at, "used")
    if missing:
        return insufficient(case, units, wallet, command.operation)
    entry = entry_of(
        case,
        "consume",
        wallet,
        units,
        postings,
        effective_at=effective_at,
        operation=command.operation,
    )
    return _with_work(entry, command.model, command, amount.price, command.feature)


def _with_work(
    entry: Entry,
    model: str | None,
    told: c.Work | c.Settle,
    price: PricedBy | None,
    feature: str | None = None,
) -> Entry:
    """Put in what was told of the work, which mostly is no more than the operation."""
    meters, attributes = told.meters, told.attributes
    if (
        model is None
        and meters is None
        and attributes is None
        and price is None
        and feature is None
    ):
        return entry
    return replace(
        entry, model=model, meters=meters, attributes=attributes, price=price, feature=feature
    )


def _hold(case: Case, command: c.Hold) -> Entry | Refusal:
    account = case.account
    effective_at = _effective(case, command.effective_at)
    life = command.expires_in or HOLD_LIFE
    if life > HOLD_LIFE_MAX:
        raise InvalidInput("a hold may last 24 hours at the most; extend it while the work runs")
    if len(account.holds) >= LIVE_MAX:
        raise InvalidInput(f"an account may have {LIVE_MAX} open holds at the most")
    if command.feature is not None and _is_barred(case, command.feature):
        return not_entitled(case, command.feature)
    amount = _price(case, command)
    if isinstance(amount, Refusal):
        return amount
    units, wallet = amount.units, amount.wallet
    floor = units if command.floor is None else command.floor
    needed = floor or units  # with a floor of nothing anything would do, and all was asked for
    if account.budgets:
        spend = Spend(wallet, command.operation, command.model, command.tags)
        tight = budgets.tightest(account, spend, case.at)
        if tight is not None and tight.left < units:
            if tight.left < floor or tight.left == 0:
                return over_budget(case, tight, needed, wallet)
            units = tight.left
    postings, missing = draw(account, wallet, command.operation, units, case.at, "held")
    if missing:
        units -= missing
        if units < floor or units == 0:
            return insufficient(case, needed, wallet, command.operation)
    entry = entry_of(
        case,
        "hold",
        wallet,
        units,
        postings,
        effective_at=effective_at,
        operation=command.operation,
        deadline=case.at + life,
        ceiling=command.quote.ceiling if command.quote else None,
    )
    return _with_work(entry, command.model, command, amount.price, command.feature)


def _settle(case: Case, command: c.Settle) -> Entry | Refusal | Answer:
    hold = case.account.holds.get(command.hold_id)
    if hold is None:
        return _settle_ended(case, command)
    held = sum(hold.lines.values())
    amount = _settle_amount(case, command, hold, held)
    if isinstance(amount, Refusal):
        return amount
    units = amount.units
    extra = units - held
    if extra > 0 and command.above == "refuse":
        return exceeds_hold(case, units, held)
    postings, rest = take(hold.lines, min(units, held))
    if command.final:
        postings += returns(case.account, rest, case.at)
    shortfall = 0
    if extra > 0:
        drawn, shortfall = draw(
            case.account,
            hold.wallet,
            hold.operation,
            extra,
            case.at,
            "used",
            overdraft=command.above == "overdraft",
        )
        postings += drawn
    entry = entry_of(
        case,
        "settle",
        hold.wallet,
        units - shortfall,
        postings,
        operation=hold.operation,
        tags=hold.tags,
        ref=hold.id,
        final=command.final,
        shortfall=shortfall,
        policy=command.above,
    )
    return _with_work(entry, hold.model, command, amount.price)


def _settle_amount(case: Case, command: c.Settle, hold: Hold, held: int) -> _Amount | Refusal:
    """Return what to settle: the units, the price of the meters, or all that is held."""
    if command.units is not None:
        amount: _Amount | Refusal = _Amount(command.units, hold.wallet, None)
    elif command.meters is None and command.attributes is None:
        amount = _Amount(held, hold.wallet, None)
    else:
        amount = _price_meters(
            case,
            operation=hold.operation or "",
            model=hold.model,
            meters=command.meters,
            attributes=command.attributes or hold.attributes,
            version=hold.price_version or None,
            ceiling=None,
            at=hold.opened_at if hold.effective_at is None else hold.effective_at,
        )
    if isinstance(amount, Refusal) or hold.ceiling is None:
        return amount
    return replace(amount, units=min(amount.units, max(hold.ceiling - hold.settled, 0)))


def _settle_ended(case: Case, command: c.Settle) -> Entry | Refusal | Answer:
    """Answer a settle whose hold is not open: a repeat, a late settlement, or a refusal."""
    story = case.story(command.hold_id)
    ending = ending_of(story)
    if ending is None:
        return no_hold(case, command.hold_id)
    if ending.kind == "settle" and _same_settle(ending, command):
        case.book.replayed.append(
            (case.request.account_id, ending.request_id or command.hold_id, case.at)
        )
        return Answer(ending, replayed=True)
    if ending.kind != "hold_expired":
        return finalized(case, ending)
    if not case.account.settings.late_settlement:
        return hold_expired(case, ending)
    return _settle_late(case, command, story)


def _settle_late(case: Case, command: c.Settle, story: list[Entry]) -> Entry | Refusal:
    """Settle a hold that expired, from what is free now, as if its parts were just settled.

    The policy for what is above the hold is the same; to "refuse", what cannot be paid in full is
    not charged in part either.
    """
    opening = story[0]
    hold = hold_of(opening)
    hold.settled = sum(entry.units for entry in story[1:] if entry.kind == "settle")
    once_held = max(hold.units - hold.settled, 0)
    amount = _settle_amount(case, command, hold, once_held)
    if isinstance(amount, Refusal):
        return amount
    if amount.units > once_held and command.above == "refuse":
        return exceeds_hold(case, amount.units, once_held)
    postings, shortfall = draw(
        case.account,
        opening.wallet,
        opening.operation,
        amount.units,
        case.at,
        "used",
        overdraft=command.above == "overdraft",
    )
    if shortfall and command.above == "refuse":
        free = amount.units - shortfall
        return insufficient(case, amount.units, opening.wallet, opening.operation, free=free)
    return entry_of(
        case,
        "settle",
        opening.wallet,
        amount.units - shortfall,
        postings,
        ref=command.hold_id,
        final=True,
        late=True,
        shortfall=shortfall,
        policy=command.above,
        operation=opening.operation,
        model=opening.model,
        tags=opening.tags,
        meters=command.meters,
        attributes=command.attributes,
        price=amount.price,
        charged_at=opening.at,
        charged_seq=opening.seq,
    )


def _same_settle(ending: Entry, command: c.Settle) -> bool:
    """Return whether a settle asks again for what the final settle of this hold did."""
    if not command.final:
        return False
    if command.units is not None:
        return command.units == ending.units + ending.shortfall
    if command.meters is None and command.attributes is None:
        # All that was held: then no meters were given, nothing came back and nothing fell short.
        whole = all(posting.target == "used" for posting in ending.postings)
        return whole and not ending.shortfall and ending.meters is None
    return command.meters == ending.meters and command.attributes == ending.attributes


def _release(case: Case, command: c.Release) -> Entry | Refusal | Answer:
    hold = case.account.holds.get(command.hold_id)
    if hold is not None:
        units = sum(hold.lines.values())
        return entry_of(
            case,
            "release",
            hold.wallet,
            units,
            returns(case.account, hold.lines, case.at),
            ref=hold.id,
            final=True,
            operation=hold.operation,
            model=hold.model,
            tags=hold.tags,
        )
    ending = ending_of(case.story(command.hold_id))
    if ending is None:
        return no_hold(case, command.hold_id)
    if ending.kind == "release":
        case.book.replayed.append(
            (case.request.account_id, ending.request_id or command.hold_id, case.at)
        )
        return Answer(ending, replayed=True)
    if ending.kind == "hold_expired":
        return hold_expired(case, ending)
    return finalized(case, ending)


def _extend(case: Case, command: c.Extend) -> Entry | Refusal:
    hold = case.account.holds.get(command.hold_id)
    if hold is None:
        return not_open(case, command.hold_id)
    if command.expires_in > HOLD_LIFE_MAX:
        raise InvalidInput("a hold may be extended by 24 hours from now at the most")
    return entry_of(
        case,
        "extend",
        hold.wallet,
        0,
        (),
        ref=hold.id,
        deadline=max(hold.deadline, case.at + command.expires_in),
    )


def _in_doubt(case: Case, command: c.InDoubt) -> Entry | Refusal:
    hold = case.account.holds.get(command.hold_id)
    if hold is None:
        return not_open(case, command.hold_id)
    life = command.deadline_in or DOUBT_LIFE
    if life > DOUBT_LIFE_MAX:
        raise InvalidInput("a hold may stay in doubt for 30 days at the most")
    return entry_of(
        case,
        "in_doubt",
        hold.wallet,
        sum(hold.lines.values()),
        (),
        ref=hold.id,
        deadline=case.at + life,
        at_deadline=command.at_deadline,
        operation=hold.operation,
    )


def _grant(case: Case, command: c.Grant) -> Entry:
    return granted(case, command)


def _void(case: Case, command: c.Void) -> Entry | Refusal | Answer:
    story = case.story(command.grant_id)
    grant = case.account.grants.get(command.grant_id)
    terms = grant.terms if grant else terms_of(story, command.grant_id)
    if terms is None:
        return refuse(case, "grant_not_found", f"the account has no grant {command.grant_id!r}")
    left = grant.remaining if grant else 0
    if command.units is not None:
        if command.origin is not None and grant is not None:
            left = unused(parts_of(grant), left).get(command.origin, 0)
        units = min(command.units, left)
        return _void_part(case, grant, terms, units, command)
    for entry in story:
        if is_void(entry):
            return Answer(entry, replayed=True)
    postings = (Posting("available", "issued", terms.id, left),) if left else ()
    return entry_of(case, "void", terms.wallet, left, postings, ref=terms.id)


def _void_part(case: Case, grant: Grant | None, terms: Terms, units: int, command: c.Void) -> Entry:
    """Take a part of what is left; the grant goes on, and what is missing is on the entry."""
    if grant is not None and grant.scheduled:
        raise InvalidInput("the grant has not begun: void it as a whole, or wait until it has")
    postings = (Posting("available", "issued", terms.id, units),) if units else ()
    return entry_of(
        case,
        "void",
        terms.wallet,
        units,
        postings,
        ref=terms.id,
        shortfall=(command.units or 0) - units,
        policy=PART,
        origin=command.origin,
    )


def _refund(case: Case, command: c.Refund) -> Entry | Refusal:
    story = case.story(command.charge)
    if story and story[0].kind == "settle" and story[0].ref:
        story = case.story(story[0].ref)
    charges = [entry for entry in story if entry.kind in ("consume", "settle")]
    if not charges:
        return refuse(case, "charge_not_found", f"no charge {command.charge!r} on this account")
    paid = paid_lines(story)
    left = sum(paid.values())
    units = left if command.units is None else command.units
    if units > left or left == 0:
        return exceeds_charge(case, units, left)
    first = charges[0]
    root = story[0].request_id or command.charge
    postings: list[Posting] = []
    opens: list[Terms] = []
    for line, n in unwind(paid, units):
        _give_back(case, command, line, n, postings, opens)
    return entry_of(
        case,
        "refund",
        first.wallet,
        units,
        tuple(postings),
        ref=root,
        opens=tuple(opens),
        policy=command.expired,
        operation=first.operation,
        model=first.model,
        tags=first.tags,
        charged_at=story[0].at,
        charged_seq=story[0].seq,
    )


def _give_back(
    case: Case,
    command: c.Refund,
    line: str,
    units: int,
    postings: list[Posting],
    opens: list[Terms],
) -> None:
    """Return units to the line that paid them, or where the policy sends them instead."""
    grant = case.account.grants.get(line)
    if line == OVERDRAFT:
        postings.append(Posting("used", "available", line, units))
        return
    story = case.story(line)
    terms = grant.terms if grant else terms_of(story, line)
    assert terms is not None, f"charge was paid by {line}, which no entry granted"
    voided = any(is_void(entry) for entry in story) or (grant is not None and grant.voided)
    if voided:
        postings.append(Posting("used", "issued", line, units))
    elif not is_over(terms, case.at):
        if grant is None:
            opens.append(terms)
        postings.append(Posting("used", "available", line, units))
    elif command.expired == "expire":
        postings.append(Posting("used", "expired", line, units))
    else:
        nth = sum(1 for posting in postings if posting.source == "issued")
        opened = _replacement(case, command, terms, units, nth)
        opens.append(opened)
        postings.append(Posting("used", "issued", line, units))
        postings.append(Posting("issued", "available", opened.id, units))


def _replacement(case: Case, command: c.Refund, terms: Terms, units: int, nth: int) -> Terms:
    """Return the grant that takes the place of one that expired before its refund."""
    expires_at = None if command.extend_by is None else case.at + command.extend_by
    return replace(
        terms,
        id=case.request.request_id if nth == 0 else f"{RESERVED}{case.request.request_id}#{nth}",
        units=units,
        category="promo" if command.expired == "goodwill" else terms.category,
        effective_at=case.at,
        expires_at=expires_at,
        source=f"refund of {command.charge}",
        recurring=None,
    )


def _adjust(case: Case, command: c.Adjust) -> Entry | Refusal:
    if command.units > 0:
        check_room(case, command.wallet, command.units)
        terms = Terms(
            id=case.request.request_id,
            units=command.units,
            category="adjustment",
            wallet=command.wallet,
            effective_at=case.at,
        )
        postings = issue(case.account, terms)
        return entry_of(case, "adjust", command.wallet, command.units, postings, opens=(terms,))
    units = -command.units
    chosen: list[tuple[str, int]] = []
    missing = units
    for grant in case.account.grants.values():
        if grant.terms.wallet == command.wallet and grant.remaining and missing:
            taken = min(grant.remaining, missing)
            chosen.append((grant.terms.id, taken))
            missing -= taken
    unowed = min(surplus(case.account, command.wallet), missing)
    if unowed:
        chosen.append((OVERDRAFT, unowed))
        missing -= unowed
    if missing:
        return insufficient(case, units, command.wallet, None, free=units - missing)
    postings = tuple(Posting("available", "issued", line, n) for line, n in chosen)
    return entry_of(case, "adjust", command.wallet, command.units, postings)


def _govern(case: Case, command: c.Command) -> Entry:
    """Answer the commands that move nothing: what may happen from now on."""
    account = case.account
    match command:
        case c.SetStatus(to=to):
            return entry_of(case, to, WALLET_DEFAULT, 0, ())
        case c.SetOverdraft():
            return entry_of(case, "overdraft", command.wallet, 0, (), limit=command.limit)
        case c.SetBudget(terms=terms):
            if terms.cap is not None and len(account.budgets) >= LIVE_MAX:
                raise InvalidInput(f"an account may have {LIVE_MAX} budgets at the most")
            return entry_of(case, "budget", terms.wallet, 0, (), budget=terms)
        case c.SetRecurring(terms=recurring):
            return _set_recurring(case, recurring)
        case c.SetAlert(terms=alert):
            _check_alert(account, alert)
            return entry_of(case, "alert", alert.wallet, 0, (), alert=alert)
        case c.Configure():
            if command.time_zone is not None:
                calendar.zone(command.time_zone)
            given = {name: getattr(command, name) for name in Settings.__struct_fields__}
            wanted = {name: value for name, value in given.items() if value is not None}
            settings = replace(account.settings, **wanted)
            return entry_of(case, "settings", WALLET_DEFAULT, 0, (), settings=settings)
        case _:  # pragma: no cover - a verb without a rule is a defect, which no caller can reach
            raise AssertionError(f"no rule for {type(command).__name__}")


def _check_alert(account: Account, alert: AlertTerms) -> None:
    """Refuse one alert too many, or one on a budget that is not there; ours do not count."""
    theirs = [name for name, one in account.alerts.items() if one.terms.on != TOPUP]
    is_more = alert.name not in account.alerts and alert.on != TOPUP and not alert.removed
    if is_more and len(theirs) >= alerts.ALERTS_MAX:
        raise InvalidInput(f"an account may have {alerts.ALERTS_MAX} alerts at the most")
    if alert.budget is not None and alert.budget not in account.budgets:
        known = ", ".join(sorted(account.budgets)[:20]) or "none"
        raise InvalidInput(
            f"the account has no budget {alert.budget!r}; it has {known}. Set it first, or leave "
            "`budget` out to mean all"
        )


def _set_recurring(case: Case, terms: RecurringTerms) -> Entry:
    """Start, change or stop a recurring grant; a new one begins with the period at hand."""
    existing = case.account.recurring.get(terms.name)
    if existing is not None and existing.terms.entitlement is not None:
        raise InvalidInput(
            f"{terms.name!r} is a grant of the entitlement {existing.terms.entitlement!r}; change "
            f"or end that"
        )
    if terms.stopped:
        if existing is None:
            raise InvalidInput(f"the account has no recurring grant {terms.name!r}")
        terms = replace(existing.terms, stopped=True)
    if existing is None and len(case.account.recurring) >= LIVE_MAX:
        raise InvalidInput(f"an account may have {LIVE_MAX} recurring grants at the most")
    return entry_of(case, "recurring", terms.wallet, 0, (), recurring=terms)


def _effective(case: Case, effective_at: int | None) -> int:
    """Return when the work was done, within what the account may still be told of."""
    if effective_at is None:
        return case.at
    settings = case.account.settings
    if effective_at < case.at - settings.late_usage:
        bound = calendar.say_span(settings.late_usage)
        raise InvalidInput(f"effective_at is more than {bound} back; book an adjustment instead")
    if effective_at > case.at + settings.early_usage:
        raise InvalidInput(
            f"effective_at is more than {calendar.say_span(settings.early_usage)} ahead"
        )
    return effective_at


_RULES: dict[type[c.Command], Callable[[Case, Any], Entry | Refusal | Answer]] = {
    c.Consume: _consume,
    c.Hold: _hold,
    c.Settle: _settle,
    c.Release: _release,
    c.Extend: _extend,
    c.InDoubt: _in_doubt,
    c.Grant: _grant,
    c.Void: _void,
    c.Refund: _refund,
    c.Adjust: _adjust,
    **entitle.RULES,
}
