"""Letting requests through while the service is away, up to a bound: how much, and what is told.

What is let through is journalled first, and asked for real when the service is back. Until then
nobody knows whether the account can pay: the bound is what the house is ready to lose.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import ClassVar, NoReturn

from msgspec import Struct

from tillroll.client.conversation import Call
from tillroll.ledger import calendar
from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.receipts import Receipt
from tillroll.ledger.types import SECOND, WALLET_DEFAULT, Entry, Kind
from tillroll.ledger.units import Units, parse_decimal, parse_signed


class FailOpen(Struct, frozen=True, kw_only=True):
    """How much may be let through while the service is away.

    Attributes:
        per_account: Units that one account may have been let through and not yet been asked for.
        total: The same over all accounts of the journal; no bound if left out.
        wallet: Only requests for this wallet are let through.
        estimate: What a request without `units` is taken to cost: one amount, or one an operation.
            Without it such a request is not let through.
        patience: How long a consume or hold tries to reach the service before it is let through.
    """

    per_account: Units
    total: Units | None = None
    wallet: str = WALLET_DEFAULT
    estimate: Units | Mapping[str, Units] | None = None
    patience: calendar.Span = "2s"

    def __post_init__(self) -> None:
        """Check every amount.

        Raises:
            InvalidInput: One is no exact amount greater than zero.
        """
        amounts = {"per_account": self.per_account, "total": self.total}
        if isinstance(self.estimate, Mapping):
            amounts |= {f"estimate.{name}": units for name, units in self.estimate.items()}
        else:
            amounts["estimate"] = self.estimate
        for name, units in amounts.items():
            if units is not None and parse_decimal(units, name) <= 0:
                raise InvalidInput(f"{name} must be greater than zero")
        calendar.span(self.patience, "patience")

    @property
    def seconds(self) -> float:
        """The patience in seconds."""
        return calendar.span(self.patience, "patience") / SECOND

    def exposure(self, call: Call) -> Decimal | None:
        """Return what a call would cost; None where it is not to be let through."""
        if call.wallet not in (None, self.wallet):
            return None
        if call.units is not None:
            return Decimal(call.units)
        estimate = self.estimate
        if isinstance(estimate, Mapping):
            estimate = estimate.get(call.operation or "")
        return None if estimate is None else parse_decimal(estimate, "estimate")

    def fits(self, account: Decimal, everywhere: Decimal) -> bool:
        """Return whether exposures of an account and of all, the new one included, are allowed."""
        within = account <= parse_decimal(self.per_account)
        return within and (self.total is None or everywhere <= parse_decimal(self.total))


class ProvisionalReceipt(Receipt):
    """What is known of a request that is in the journal and has not been answered yet.

    It has `request_id`, `account`, `kind`, `operation`, `wallet`, `recorded_at` (when it was
    journalled) and `units` where they were given or estimated. It is no entry: what only the
    ledger can know (balances, grants, prices, its place in the history) is an `AttributeError`.

    Attributes:
        provisional: True.
    """

    provisional: ClassVar[bool] = True

    __slots__ = ("_known",)

    def __init__(self, call: Call, units: Decimal | None, at: int, *, replayed: bool) -> None:
        """Tell of this call, journalled at this moment."""
        scale = 0 if units is None else max(-int(units.as_tuple().exponent), 0)
        entry = Entry(
            seq=0,
            kind=_KINDS.get(call.verb, "settle"),
            at=at,
            effective_at=at,
            request_id=call.request_id,
            ref=None if call.queue == call.request_id else call.queue,
            wallet=call.wallet or WALLET_DEFAULT,
            units=0 if units is None else parse_signed(units, scale),
            operation=call.operation,
        )
        super().__init__(entry, scale, call.account, replayed=replayed)
        self._known = units is not None

    def _unknown(self) -> NoReturn:
        raise AttributeError(
            "a provisional receipt does not know this: the service has not answered yet"
        )

    @property
    def units(self) -> Decimal:
        """What it is about, as given or estimated."""
        return super().units if self._known else self._unknown()

    seq = property(_unknown, doc="Not known yet.")
    effective_at = property(_unknown, doc="Not known yet.")
    available = property(_unknown, doc="Not known yet.")
    held = property(_unknown, doc="Not known yet.")
    used = property(_unknown, doc="Not known yet.")
    expired = property(_unknown, doc="Not known yet.")
    issued = property(_unknown, doc="Not known yet.")
    available_before = property(_unknown, doc="Not known yet.")
    shortfall = property(_unknown, doc="Not known yet.")
    grants = property(_unknown, doc="Not known yet.")

    def to_dict(self) -> dict[str, object]:
        """Return what is known as plain values for JSON, with `provisional` among them."""
        return {
            "account": self.account,
            "kind": self.kind,
            "request_id": self.request_id,
            "ref": self.ref,
            "wallet": self.wallet,
            "units": format(self.units, "f") if self._known else None,
            "operation": self.operation,
            "recorded_at": calendar.show_instant(self.entry.at),
            "replayed": self.replayed,
            "provisional": True,
        }

    def __repr__(self) -> str:
        """Show that it is provisional before anything else."""
        return (
            f"<ProvisionalReceipt {self.account} {self.kind} "
            f"{self.units if self._known else '?'} {self.wallet} request_id={self.request_id!r}>"
        )


_KINDS: dict[str, Kind] = {
    "consume": "consume",
    "hold": "hold",
    "settle": "settle",
    "resolve": "settle",
    "release": "release",
    "mark_in_doubt": "in_doubt",
}
