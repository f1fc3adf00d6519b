"""Units in: what a grant becomes, whether a caller or the catalog says its terms."""

from __future__ import annotations

from tillroll.ledger import calendar
from tillroll.ledger import commands as c
from tillroll.ledger.book import Case
from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.moves import entry_of, issue
from tillroll.ledger.types import Entry, Terms
from tillroll.ledger.units import UNITS_MAX

# One state document holds all of these (decisions/0007): 350 bytes a plain hold, so about 3.5 MB;
# a hold with all the tags and attributes it may have is much larger.
LIVE_MAX = 10_000


def granted(
    case: Case,
    grant: c.Grant,
    *,
    product: str | None = None,
    version: int = 0,
    coupon: str | None = None,
) -> Entry:
    """Return the entry that puts a grant's units in, at once or when it begins."""
    zone = case.account.settings.time_zone
    effective_at = case.at if grant.effective_at is None else grant.effective_at
    expires_at = grant.expires_at
    if grant.expires_on is not None:
        expires_at = calendar.end_of_day(grant.expires_on, zone)
    elif grant.expires_in is not None:
        expires_at = effective_at + grant.expires_in
    if expires_at is not None and expires_at <= max(case.at, effective_at):
        raise InvalidInput("the grant would be over before it begins")
    if expires_at is not None and expires_at >= calendar.INSTANT_END:
        raise InvalidInput("the grant would last beyond the year 9999; leave its end out")
    terms = Terms(
        id=case.request.request_id,
        units=grant.units,
        category=grant.category,
        wallet=grant.wallet,
        priority=grant.priority,
        effective_at=effective_at,
        expires_at=expires_at,
        applies_to=grant.applies_to,
        cost_basis=grant.cost_basis,
        source=grant.source,
        product=product,
        version=version,
    )
    check_room(case, grant.wallet, grant.units)
    postings = issue(case.account, terms) if effective_at <= case.at else ()
    return entry_of(
        case,
        "grant",
        terms.wallet,
        terms.units,
        postings,
        opens=(terms,),
        effective_at=max(effective_at, case.at) if not postings else effective_at,
        coupon=coupon,
    )


def check_room(case: Case, wallet: str, units: int) -> None:
    """Refuse what would carry the wallet beyond what every reader can hold exactly."""
    if case.account.wallet(wallet).issued + units > UNITS_MAX:
        raise InvalidInput("the wallet would hold 2^53 of the smallest unit or more")
    if len(case.account.grants) >= LIVE_MAX:
        raise InvalidInput(f"an account may have {LIVE_MAX} live grants at the most")
