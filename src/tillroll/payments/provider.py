"""The seam: what a payment provider has to be able to do, and the words in which it tells.

A provider is one module. It checks what it receives, and puts it into the plain values below, which
say nothing of the provider's own shapes; it decides nothing and knows no ledger. What it is told to
do again under the same key it must do once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, Protocol

from msgspec import Struct

from tillroll.ledger.errors import InvalidInput
from tillroll.payments.facts import Disputed, Failed, Refunded

Standing = Literal["incomplete", "trialing", "active", "past_due", "paused", "ended"]
SessionState = Literal["open", "complete", "expired"]


class Sold(Struct, frozen=True, kw_only=True, tag=True):
    """A purchase that was paid: a product of the catalog, or so many units.

    Attributes:
        version: Of the catalog, as it was when the product was offered; 0 for the one in force.
        units: An exact decimal text, where no product is named.
        amount: In the currency's smallest unit.
        expires_in: How long the units are good for, in microseconds.
    """

    account: str
    amount: int
    currency: str
    product: str | None = None
    version: int = 0
    quantity: int = 1
    units: str | None = None
    wallet: str = "credits"
    expires_in: int | None = None


class PaymentTold(Struct, frozen=True, kw_only=True, tag=True):
    """Something about one payment."""

    id: str
    facts: tuple[Sold | Refunded | Disputed | Failed, ...]


class SubscriptionTold(Struct, frozen=True, kw_only=True, tag=True):
    """A subscription as it stood at `at`.

    Attributes:
        account: Whose it is; None where the provider was never told.
        price: The provider's own id of what is paid for, which a plan of the catalog names.
        plan: The plan's name, where the provider was told it.
        version: Of the catalog, as it was when the plan was offered.
    """

    id: str
    at: int
    status: Standing
    account: str | None = None
    price: str | None = None
    plan: str | None = None
    version: int = 0
    period_start: int | None = None
    period_end: int | None = None
    trial_ends_at: int | None = None
    ends_at: int | None = None


class InvoiceTold(Struct, frozen=True, kw_only=True, tag=True):
    """Whether a period of a subscription was paid, and what for.

    Attributes:
        amount: What was paid, in the currency's smallest unit.
        part: Whether it is for a change within a period alone, which brings no units of its own.
        due: What was to be paid; None where the provider does not say.
    """

    id: str
    subscription: str
    paid: bool
    at: int
    period_start: int
    period_end: int
    price: str | None = None
    amount: int = 0
    part: bool = False
    due: int | None = None
    currency: str | None = None


class ReturnTold(Struct, frozen=True, kw_only=True, tag=True):
    """Refunds and disputes of a payment that paid an invoice of a subscription."""

    subscription: str
    invoice: str
    payment: str
    facts: tuple[Refunded | Disputed, ...]


class SessionTold(Struct, frozen=True, kw_only=True, tag=True):
    """What became of a checkout."""

    id: str
    account: str
    product: str
    state: SessionState


class ChargeTold(Struct, frozen=True, kw_only=True, tag=True):
    """What became of an attempt to top up.

    Attributes:
        attempt: Its number, of this account and wallet.
        state: "pending" as long as the provider itself does not know.
        payment: The provider's id of the payment, where there is one.
        reason: Why it was declined, in the provider's word.
        final: Whether trying again with the same means of payment is of no use.
    """

    account: str
    wallet: str
    attempt: int
    state: Literal["succeeded", "pending", "declined"]
    payment: str | None = None
    reason: str | None = None
    final: bool = False


Told = PaymentTold | SubscriptionTold | InvoiceTold | ReturnTold | SessionTold | ChargeTold


class Origin(Struct, frozen=True, kw_only=True):
    """What a payment of this ledger is for: the invoice that it paid, or else a purchase."""

    invoice: InvoiceTold | None = None


class Order(Struct, frozen=True, kw_only=True):
    """What an account is to pay.

    Attributes:
        plan: Whether the product is paid again and again.
        price: The provider's own id of the price; amount and currency where there is none.
        trial: How long nothing is paid, in microseconds.
        attempt: The number of a top-up's attempt; 0 for a checkout.
        card: The provider's own id of what is charged; None for a checkout.
    """

    account: str
    product: str | None
    version: int
    customer: str | None = None
    quantity: int = 1
    plan: bool = False
    price: str | None = None
    amount: int | None = None
    currency: str | None = None
    trial: int | None = None
    units: str | None = None
    wallet: str = "credits"
    attempt: int = 0
    card: str | None = None


class Session(Struct, frozen=True, kw_only=True):
    """A checkout that was opened: where its page is, and until when."""

    id: str
    url: str
    expires_at: int


class Usage(Struct, frozen=True, kw_only=True):
    """Usage that a customer is billed for afterwards."""

    meter: str
    customer: str
    value: int
    identifier: str
    at: int


class Listener(Protocol):
    """A provider that tells us, and that is all.

    Attributes:
        name: Short, such as "stripe"; what it tells of is called by it.
        ledger_mode: Which of the project's ledgers it is about.
        hears_conflicts: Whether whoever tells two different purchases under one id is to be told
            so, since he made the id; anybody else would only send it again.
    """

    name: str
    ledger_mode: Literal["test", "live"]
    hears_conflicts: bool

    def read(self, headers: Mapping[str, str], body: bytes, at: int) -> list[Told]:
        """Return what a webhook tells.

        Args:
            headers: By their names in small letters.
            body: The bytes as they were received: the signature is over them.
            at: The time.

        Raises:
            BadSignature: It is not the provider's, or it is an old one sent again.
            InvalidInput: It is the provider's, and cannot be understood.
        """


class Provider(Listener, Protocol):
    """A provider that can be asked as well."""

    def pull(self, since: int, until: int) -> Iterator[tuple[int, list[Told] | InvalidInput]]:
        """Yield what happened from one instant to another, the oldest first, with its time.

        What cannot be read comes as the problem with it.

        Raises:
            ProviderUnavailable: Ask again from the last one that came.
        """

    def customer(self, account: str, key: str) -> str:
        """Return the provider's customer for an account, made where this key never asked."""

    def checkout(self, order: Order, key: str) -> Session:
        """Open a page where an order is paid; the same key gives the same page."""

    def page(self, session_id: str) -> list[Told] | None:
        """Return what there is to tell of a checkout as it stands; None where it is not there.

        Raises:
            ProviderUnavailable: Ask again.
            ProviderRefused: It does not say, such as for lack of a right.
        """

    def card(self, customer: str) -> str | None:
        """Return what a customer has on file to be charged; None where there is nothing."""

    def charge(self, order: Order, key: str) -> ChargeTold:
        """Charge an order to the card that it names; the same order and key charge once."""

    def attempt(self, order: Order, since: int) -> ChargeTold | None:
        """Return what became of an attempt whose key may be forgotten; None where it never was.

        Args:
            order: What was asked.
            since: When, by our clock, which may have been ahead by up to a day.
        """

    def origin(self, payment_id: str) -> Origin | None:
        """Return what a payment is for; None where it is not this ledger's.

        Raises:
            ProviderUnavailable: Ask again.
            ProviderRefused: It does not say, such as for lack of a right.
        """

    def subscription(self, subscription_id: str) -> SubscriptionTold:
        """Return a subscription as it stands."""

    def report(self, usage: Usage) -> None:
        """Add usage to a customer's bill; the same identifier counts once."""


__all__ = [
    "ChargeTold",
    "InvoiceTold",
    "Listener",
    "Order",
    "Origin",
    "PaymentTold",
    "Provider",
    "ReturnTold",
    "Session",
    "SessionTold",
    "Sold",
    "SubscriptionTold",
    "Told",
    "Usage",
]
