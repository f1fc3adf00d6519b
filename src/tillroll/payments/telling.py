"""Events of money: what is newly known of a payment or an invoice, told with what notes it.

What there is to tell follows from all that is known, so an event is made where the transaction
knows more than was known before it, and never again: however often, and in whatever order, the
provider tells. Of money that nobody knows the owner of nothing is told; once he is known, all is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tillroll.ledger.commands import account_id
from tillroll.ledger.events import PaymentData, event
from tillroll.ledger.types import Entry
from tillroll.ledger.units import show_units
from tillroll.payments.facts import Disputed, Refunded
from tillroll.stores.outbox import Waiting

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from msgspec import Struct

    from tillroll.ledger.book import Answer
    from tillroll.ledger.commands import Request
    from tillroll.payments.facts import Payment
    from tillroll.payments.provider import InvoiceTold
    from tillroll.stores.base import Writer

Topic = tuple[str, "Struct"]  # a type of the catalog, and its data
_DISPUTES = {"won": "payment.dispute_closed", "lost": "payment.dispute_closed"}


class Source(NamedTuple):
    """What events are about: the ledger, the note that is written, and whose money it is.

    Attributes:
        note: The kind and name of the note, which no account can be called by.
        version: Of the note, as this transaction writes it: no other one has the same.
        seq: Of the last entry that this transaction wrote for the account; 0 where it wrote none.
    """

    project: str
    note: str
    version: int
    account: str
    at: int
    seq: int = 0


def last_of(requests: Iterable[Request], answers: Iterable[Answer], account: str) -> int:
    """Return the seq of an account's last entry among answers; 0 where there is none."""
    both = zip(requests, answers, strict=False)  # who was answered less was interrupted
    found = (answer.outcome for request, answer in both if request.account == account)
    return max((one.seq for one in found if isinstance(one, Entry)), default=0)


def tell(tx: Writer, source: Source, told: Sequence[Topic]) -> None:
    """Put events of money into the outbox, those that somebody wants to hear of."""
    if not told:
        return
    topics = tx.topics(source.project)
    wanted = [one for one in told if one[0] in topics]
    if not wanted:
        return
    project, account = source.project, source.account
    owner = account_id(project, account)
    # What this transaction appended may not be there to be read before its end.
    after = max(tx.accounts([(owner, account)])[owner].seq, source.seq)
    place = account_id(project, f"\n{source.note}")
    made = [
        event(project, place, source.version, n, topic, data, account, source.at, after=after)
        for n, (topic, data) in enumerate(wanted)
    ]
    tx.add_events([Waiting(one, spread=False) for one in made])


# ---------------------------------------------------------------- payments


def of_payment(before: Payment, after: Payment, scale: int) -> list[Topic]:
    """Return what is to be told of a payment that is known better than before."""
    known = dict(_facts(before))
    new = [(key[0], part) for key, part in _facts(after) if key not in known]
    return [
        (topic, _failed(after) if topic == "payment.failed" else _payment(after, part, scale))
        for topic, part in new
    ]


def _facts(payment: Payment) -> Iterator[tuple[tuple[str, ...], Refunded | Disputed | None]]:
    """Yield what is to be told of all that is known, each with what makes it another."""
    if payment.failed is not None:
        yield ("payment.failed",), None
    if payment.bought is None:
        return
    yield ("payment.succeeded",), None
    yield from _returned(payment)


def _returned(payment: Payment) -> Iterator[tuple[tuple[str, ...], Refunded | Disputed]]:
    """Yield what is to be told of money that goes back or is withheld."""
    for refund in payment.refunds.values():
        failed = refund.state == "failed"
        yield ("payment.refund_failed" if failed else "payment.refunded", refund.id), refund
    for dispute in payment.disputes.values():
        topic = _DISPUTES.get(dispute.state, "payment.disputed")
        yield (topic, dispute.id, dispute.state), dispute


def _failed(payment: Payment) -> PaymentData:
    failed = payment.failed
    assert failed is not None, "it is told because it did not come"
    return PaymentData(
        provider=payment.provider,
        payment=payment.id,
        product=failed.product,
        amount=failed.amount,
        currency=failed.currency,
    )


def _payment(payment: Payment, part: Refunded | Disputed | None, scale: int) -> PaymentData:
    bought = payment.bought
    assert bought is not None, "what nobody bought is not told"
    timed = bought.lasts is not None
    return PaymentData(
        provider=payment.provider,
        payment=payment.id,
        product=bought.product,
        units=None if timed else show_units(bought.units, scale),
        amount=bought.amount if part is None else part.amount,
        currency=bought.currency,
        refund=part.id if isinstance(part, Refunded) else None,
        dispute=part.id if isinstance(part, Disputed) else None,
        state=None if part is None else part.state,
        taken=None if timed else show_units(payment.taken, scale),
        shortfall=None if timed else show_units(payment.short, scale),
        refused=payment.refused,
    )


# ---------------------------------------------------------------- subscriptions


class Bill(NamedTuple):
    """What invoices are for: a subscription and its plan."""

    provider: str
    subscription: str
    plan: str | None


def of_invoices(
    bill: Bill, before: Mapping[str, InvoiceTold], after: Mapping[str, InvoiceTold]
) -> list[Topic]:
    """Return what is to be told of a subscription's invoices that are known better than before.

    Each try that failed is told; of two, the one that is heard of first and happened later stands
    for both. An invoice over nothing, such as a trial's, is no payment; one that was asked for and
    not told of, at no time that is known, is no try.
    """
    known = {_tried(one) for one in before.values()}
    return [
        (
            "payment.succeeded" if one.paid else "payment.failed",
            PaymentData(
                provider=bill.provider,
                payment=one.id,
                subscription=bill.subscription,
                product=bill.plan,
                amount=one.amount if one.paid else one.due,
                currency=one.currency,
            ),
        )
        for one in after.values()
        if _tried(one) not in known and (one.amount if one.paid else one.at)
    ]


def of_returns(
    bill: Bill, before: Mapping[str, Payment], after: Mapping[str, Payment]
) -> list[Topic]:
    """Return what is to be told of money for invoices that goes back, known better than before."""
    return [
        (
            key[0],
            PaymentData(
                provider=bill.provider,
                payment=payment.invoice,
                subscription=bill.subscription,
                product=bill.plan,
                amount=part.amount,
                refund=part.id if isinstance(part, Refunded) else None,
                dispute=part.id if isinstance(part, Disputed) else None,
                state=part.state,
            ),
        )
        for name, payment in after.items()
        for key, part in _returned(payment)
        if name not in before or key not in dict(_returned(before[name]))
    ]


def _tried(invoice: InvoiceTold) -> tuple[str, int | None]:
    """Return what makes one try to collect an invoice another; paid it is only once."""
    return invoice.id, None if invoice.paid else invoice.at


__all__ = ["Bill", "Source", "last_of", "of_invoices", "of_payment", "of_returns", "tell"]
