"""What is known of one payment: a set that only grows, so that no order of telling matters.

A provider tells of a purchase, of refunds and of disputes, at any time, in any order, any number
of times. `merge` puts one telling into what is known; `owed` says how many units the payment
demands back. Both are pure, and `merge` of any two orders gives the same.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field
from msgspec.structs import replace

from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.types import WALLET_DEFAULT

AMOUNT_MAX = 10**15  # of the currency's smallest unit: ten trillion dollars
PARTS_MAX = 1_000  # refunds of one payment, and disputes: about 100 bytes each
# How many decimals a currency has, where it is not two (ISO 4217, as card networks use them).
_DECIMALS = {
    **dict.fromkeys(("bhd", "jod", "kwd", "omr", "tnd"), 3),
    **dict.fromkeys(("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf"), 0),
    **dict.fromkeys(("vnd", "vuv", "xaf", "xof", "xpf"), 0),
}

RefundState = Literal["pending", "done", "failed"]
DisputeState = Literal["inquiry", "open", "won", "lost"]
# A refund that was paid may still fail afterwards; nothing follows a failure.
_REFUND_RANK = {"pending": 0, "done": 1, "failed": 2}
# The two ends of a dispute may follow each other: then the one that was told of later counts.
_DISPUTE_RANK = {"inquiry": 0, "open": 1, "won": 2, "lost": 2}


class Bought(Struct, frozen=True, omit_defaults=True, gc=False):
    """A purchase that was paid: whose units, how many, for what money.

    Attributes:
        account: Whose they are.
        units: In the ledger's smallest unit.
        amount: In the currency's smallest unit, such as cents.
        product: The pack that was bought, in `version` of the catalog, `quantity` times; or only
            what to call it, where `version` is 0.
        expires_in: How long the units are good for, in microseconds; for ever if left out.
        lasts: Microseconds of a time pass, which brings no units.
    """

    account: str
    units: int
    amount: int
    currency: str
    product: str | None = None
    wallet: str = WALLET_DEFAULT
    expires_in: int | None = None
    applies_to: tuple[str, ...] = ()
    version: int = 0
    quantity: int = 1
    lasts: int | None = None

    @property
    def worth(self) -> int:
        """What the money is for: units, or the microseconds of a time pass."""
        return self.units if self.lasts is None else self.lasts


class Refunded(Struct, frozen=True, tag=True, gc=False):
    """A refund of a part or all of a payment."""

    id: str
    amount: int
    state: RefundState = "done"


class Disputed(Struct, frozen=True, tag=True, gc=False):
    """A dispute over a part or all of a payment; `at` is when the provider said so."""

    id: str
    amount: int
    state: DisputeState
    at: int = 0


class Failed(Struct, frozen=True, tag=True, omit_defaults=True, gc=False):
    """A payment that was under way, such as a bank transfer, and did not come.

    Attributes:
        account: Whose purchase it was to be.
        amount: What was to be paid, in the currency's smallest unit.
        product: What for.
    """

    account: str
    amount: int
    currency: str
    product: str | None = None


Fact = Bought | Refunded | Disputed | Failed


class Payment(Struct, frozen=True, omit_defaults=True):
    """What is known of a payment, and how far the ledger was brought to it.

    Attributes:
        bought: The purchase; None as long as only a refund or a dispute of it is known.
        contradicted: Whether the provider told of two different purchases; the first counts.
        lines: The grants that hold its units: the purchase's own, then what was given back.
        steps: How many corrections were booked; each has its number in its request id.
        taken: Units that were taken back and not given back since.
        short: Units that are demanded back and were not there any more.
        until: When the units bought end, in microseconds since 1970; None for never.
        taken_at: When units were last taken back.
        refused: What the ledger answered, where it could not be brought to what is known: such as
            that the account is closed. Then it is left alone.
        invoice: What it paid, where that was a period of a subscription.
        failed: What was to be paid and was not; one that comes all the same is `bought` as well.
    """

    provider: str
    id: str
    bought: Bought | None = None
    refunds: dict[str, Refunded] = field(default_factory=dict)
    disputes: dict[str, Disputed] = field(default_factory=dict)
    contradicted: bool = False
    lines: tuple[str, ...] = ()
    steps: int = 0
    taken: int = 0
    short: int = 0
    until: int | None = None
    taken_at: int = 0
    refused: str | None = None
    invoice: str | None = None
    failed: Failed | None = None

    @property
    def account(self) -> str:
        """Whose it is; empty as long as nobody knows."""
        known = self.bought or self.failed
        return "" if known is None else known.account

    @property
    def ref(self) -> str:
        """What the purchase's grant is called, and what its corrections begin with."""
        return f"{self.provider}:{self.id}"


def merge(payment: Payment, fact: Fact) -> Payment:
    """Return what is known of a payment once this is known, too.

    Raises:
        InvalidInput: More refunds or disputes than anybody makes, or an amount out of bounds.
    """
    if not 0 <= fact.amount <= AMOUNT_MAX:
        raise InvalidInput(f"the amount {fact.amount} of payment {payment.id!r} is out of bounds")
    if isinstance(fact, Bought):
        if payment.bought is None:
            return replace(payment, bought=fact)
        return replace(payment, contradicted=payment.contradicted or payment.bought != fact)
    if isinstance(fact, Failed):
        return replace(payment, failed=payment.failed or fact)
    if isinstance(fact, Refunded):
        refunds = payment.refunds | {fact.id: _later_refund(payment.refunds.get(fact.id), fact)}
        payment = replace(payment, refunds=refunds)
    else:
        known = payment.disputes.get(fact.id)
        payment = replace(
            payment, disputes=payment.disputes | {fact.id: _later_dispute(known, fact)}
        )
    if max(len(payment.refunds), len(payment.disputes)) > PARTS_MAX:
        raise InvalidInput(f"payment {payment.id!r} has more than {PARTS_MAX} refunds or disputes")
    return payment


def _later_refund(known: Refunded | None, told: Refunded) -> Refunded:
    if known is None:
        return told
    return max(known, told, key=lambda one: (_REFUND_RANK[one.state], one.amount))


def _later_dispute(known: Disputed | None, told: Disputed) -> Disputed:
    if known is None:
        return told
    return max(
        known, told, key=lambda one: (_DISPUTE_RANK[one.state], one.at, one.state, one.amount)
    )


def returned(payment: Payment) -> int:
    """Return how much of the money went back or is withheld, at most what was paid.

    A refund counts from when it is asked for until it fails, a dispute while it is open or lost.
    """
    if payment.bought is None:
        return 0
    return min(demanded(payment), payment.bought.amount)


def demanded(payment: Payment) -> int:
    """Return the sum of what was refunded and is disputed, whatever was paid."""
    back = sum(one.amount for one in payment.refunds.values() if one.state != "failed")
    return back + sum(
        one.amount for one in payment.disputes.values() if one.state in ("open", "lost")
    )


def owed(payment: Payment) -> int:
    """Return what is demanded back, units or time: the same part of it as of the money.

    It is rounded down, and a sum over all that is known, so three refunds of a third are the
    whole, in any order.
    """
    bought = payment.bought
    if bought is None or bought.amount == 0:
        return 0
    return bought.worth * returned(payment) // bought.amount


def decimals_of(currency: str) -> int:
    """Return how many decimals a currency's amounts have."""
    return _DECIMALS.get(currency.lower(), 2)


__all__ = [
    "Bought",
    "Disputed",
    "Fact",
    "Failed",
    "Payment",
    "Refunded",
    "decimals_of",
    "demanded",
    "merge",
    "owed",
    "returned",
]
