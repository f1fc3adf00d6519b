"""Which grants pay, in which order, and where units go when they come back.

The order: priority (lower first), soonest expiry (never last), promo before the rest, oldest
effective time, id. An account keeps its grants sorted so; drawing is one walk. What the account
may owe is burnt last (decisions/0008).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tillroll.ledger.types import NEVER, OVERDRAFT, Bucket, Posting

if TYPE_CHECKING:
    from tillroll.ledger.types import Account, Grant, Terms


def burn_key(terms: Terms) -> tuple[int, int, int, int, str]:
    """Return what grants are sorted by."""
    return (
        terms.priority,
        NEVER if terms.expires_at is None else terms.expires_at,
        0 if terms.category == "promo" else 1,
        terms.effective_at,
        terms.id,
    )


def sort_grants(account: Account) -> None:
    """Put the account's grants back in burn order after one was added."""
    account.grants = dict(sorted(account.grants.items(), key=lambda item: burn_key(item[1].terms)))


def applies(terms: Terms, operation: str | None) -> bool:
    """Return whether a grant may pay for this operation.

    `applies_to` names operations; a name that ends in `.*` stands for everything below it.
    """
    if not terms.applies_to:
        return True
    if operation is None:
        return False
    return any(covers(name, operation) for name in terms.applies_to)


def covers(name: str, operation: str) -> bool:
    """Return whether a name stands for an operation: its own, or all below it where it ends so."""
    return operation == name or (name.endswith(".*") and operation.startswith(name[:-1]))


def is_over(terms: Terms, at: int) -> bool:
    """Return whether the grant's last moment has passed."""
    return terms.expires_at is not None and terms.expires_at <= at


def pays(grant: Grant, wallet: str, operation: str | None, at: int) -> bool:
    """Return whether a grant may pay for this operation now, with whatever it has left."""
    terms = grant.terms
    return (
        terms.wallet == wallet
        and (terms.expires_at is None or at < terms.expires_at)
        and (not terms.applies_to or applies(terms, operation))
    )


def draw(
    account: Account,
    wallet: str,
    operation: str | None,
    units: int,
    at: int,
    target: Literal["used", "held"],
    *,
    overdraft: bool = True,
) -> tuple[tuple[Posting, ...], int]:
    """Choose the lines that pay `units`, in burn order; change nothing.

    Without `overdraft` nothing is owed anew, but what came back to the overdraft's line after a
    grant had repaid it is free like any other units.

    Returns:
        The postings to `target`, and what could not be found: 0 where the account can pay.
    """
    postings: list[Posting] = []
    missing = units
    for line, grant in account.grants.items():
        if missing == 0:
            break
        if grant.remaining and pays(grant, wallet, operation, at):
            taken = min(missing, grant.remaining)
            postings.append(Posting("available", target, line, taken))
            missing -= taken
    if missing:
        most = headroom(account, wallet) if overdraft else surplus(account, wallet)
        taken = min(missing, most)
        if taken > 0:
            postings.append(Posting("available", target, OVERDRAFT, taken))
            missing -= taken
    return tuple(postings), missing


def headroom(account: Account, wallet: str) -> int:
    """Return how much further the wallet's own line may be drawn; never negative."""
    line = account.wallet(wallet)
    return max(line.overdraft + line.overdraft_limit, 0)


def surplus(account: Account, wallet: str) -> int:
    """Return what lies on the wallet's own line without being owed; never negative.

    A grant repays what open holds and charges drew; what these give back afterwards stays here.
    """
    return max(account.wallet(wallet).overdraft, 0)


def spendable(account: Account, wallet: str, operation: str | None, at: int) -> int:
    """Return the units that may pay for this operation now."""
    return headroom(account, wallet) + sum(
        grant.remaining for grant in account.grants.values() if pays(grant, wallet, operation, at)
    )


def home(grant: Grant | None, at: int) -> Bucket:
    """Return the bucket that units go to when they come back to this line.

    Units of a voided grant are taken out of issue, those of an expired grant expire, and the
    line that is not a grant (None) always takes them.
    """
    if grant is None:
        return "available"
    if grant.voided:
        return "issued"
    return "expired" if is_over(grant.terms, at) else "available"
