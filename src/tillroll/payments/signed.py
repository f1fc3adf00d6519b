"""A provider that only tells: payments as signed webhooks of a plain shape of ours.

For any shop, bank or billing system that can send one POST. Signed as Standard Webhooks say
(webhook-id, webhook-timestamp, webhook-signature: `v1,` and the HMAC-SHA256 over id, timestamp and
body). Each call tells all that is known of one payment; told again, in any order, it is one.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from tillroll.ledger import calendar
from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.types import SECOND
from tillroll.payments.facts import (
    AMOUNT_MAX,
    Disputed,
    DisputeState,
    Refunded,
    RefundState,
)
from tillroll.payments.provider import PaymentTold, Sold, Told
from tillroll.wire.problems import BadSignature

TOLERANCE = 300 * SECOND
PREFIX = "whsec_"
SECRET_BYTES = range(24, 65)  # of a secret, as the specification has it

Amount = Annotated[int, Meta(ge=0, le=AMOUNT_MAX)]
Id = Annotated[str, Meta(min_length=1, max_length=200)]


class RefundBody(Struct, forbid_unknown_fields=True):
    """A refund: how much, in the currency's smallest unit, and whether it was paid out."""

    amount: Amount
    state: RefundState = "done"


class DisputeBody(Struct, forbid_unknown_fields=True):
    """A dispute; `at` tells which of two endings is the later one."""

    amount: Amount
    state: DisputeState
    at: str | None = None


class Body(Struct, forbid_unknown_fields=True):
    """All that is known of one payment.

    Attributes:
        paid: False as long as the money is not there: then only refunds and disputes are taken in.
        product: A pack or pass of the catalog; or say `units`.
        units: An exact decimal text.
    """

    payment_id: Id
    account: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    amount: Amount = 0
    currency: Annotated[str, Meta(pattern="^[A-Za-z]{3}$")] = "usd"
    paid: bool = True
    product: str | None = None
    version: Annotated[int, Meta(ge=0)] = 0
    quantity: Annotated[int, Meta(ge=1, le=10_000)] = 1
    units: str | None = None
    wallet: str = "credits"
    expires_in: str | None = None
    refunds: dict[Id, RefundBody] = {}
    disputes: dict[Id, DisputeBody] = {}


class Signed:
    """Payments told by whoever knows one of these secrets.

    Args:
        secrets: `whsec_` and 24 to 64 random bytes in base64; several while one is replaced.
        mode: Which of the project's ledgers they are about.

    Raises:
        InvalidInput: There is no secret, or one is none.
    """

    name = "signed"
    hears_conflicts = True

    def __init__(self, secrets: tuple[str, ...], *, mode: Literal["test", "live"] = "live") -> None:
        """Take in what these secrets sign."""
        if not secrets:
            raise InvalidInput("there is no secret")
        self.ledger_mode: Literal["test", "live"] = mode
        self._keys = [_key(secret) for secret in secrets]

    def __repr__(self) -> str:
        """Show which it is, and no secret."""
        return f"<Signed {self.ledger_mode}>"

    def read(self, headers: Mapping[str, str], body: bytes, at: int) -> list[Told]:
        """Return what a webhook tells; see `Listener.read`."""
        name, sent = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
        signed = b".".join((name.encode(), sent.encode(), body))
        given = [
            signature.encode()
            for version, _, signature in (
                one.partition(",") for one in headers.get("webhook-signature", "").split(" ")
            )
            if version == "v1"
        ]
        ours = [base64.b64encode(hmac.digest(key, signed, "sha256")) for key in self._keys]
        if not any(hmac.compare_digest(one, other) for one in ours for other in given):
            raise BadSignature("the signature is not made with a secret of this endpoint")
        if not sent.isascii() or not sent.isdecimal() or abs(at - int(sent) * SECOND) > TOLERANCE:
            raise BadSignature("the signature was made more than five minutes from now")
        try:
            told = msgspec.json.decode(body, type=Body)
            json.loads(body, object_pairs_hook=_once)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
            raise InvalidInput(str(problem)) from None
        return [PaymentTold(id=told.payment_id, facts=tuple(_facts(told)))]


def _once(pairs: list[tuple[str, Any]]) -> None:
    """Refuse an object that has a name twice: two readers may understand two amounts."""
    if len(dict(pairs)) != len(pairs):
        raise InvalidInput("a name comes twice in an object of the body")


def _facts(told: Body) -> list[Sold | Refunded | Disputed]:
    facts: list[Sold | Refunded | Disputed] = []
    if told.paid:
        if told.account is None or (told.product is None and told.units is None):
            raise InvalidInput("a payment needs account, and product or units")
        if told.product is not None and told.units is not None:
            raise InvalidInput("a payment is for a product or for units, not for both")
        if (told.refunds or told.disputes) and not told.amount:
            raise InvalidInput("what is refunded or disputed is a part of amount, which is missing")
        life = None if told.expires_in is None else calendar.span(told.expires_in, "expires_in")
        facts.append(
            Sold(
                account=told.account,
                amount=told.amount,
                currency=told.currency.lower(),
                product=told.product,
                version=told.version,
                quantity=told.quantity,
                units=told.units,
                wallet=told.wallet,
                expires_in=life,
            )
        )
    facts += [Refunded(name, one.amount, one.state) for name, one in told.refunds.items()]
    for name, one in told.disputes.items():
        at = 0 if one.at is None else calendar.instant(one.at, "at")
        facts.append(Disputed(name, one.amount, one.state, at))
    return facts


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(PREFIX) or len(key) not in SECRET_BYTES:
        raise InvalidInput("a secret is whsec_ and 24 to 64 bytes in base64")
    return key


__all__ = ["Signed"]
