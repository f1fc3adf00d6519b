"""Receipts: an entry as a caller sees it, in exact decimals and aware times."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tillroll.ledger.calendar import show_instant, to_datetime
from tillroll.ledger.entitlements import shown as entitlement_shown
from tillroll.ledger.moves import available_before
from tillroll.ledger.units import show_units, to_decimal

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal

    from tillroll.ledger.types import Entry


def sold(entry: Entry, scale: int) -> dict[str, object]:
    """Return what few entries have: the feature of the work, what was bought, an entitlement."""
    found: dict[str, object] = {}
    if entry.feature is not None:
        found["feature"] = entry.feature
    if entry.coupon is not None:
        found["coupon"] = entry.coupon
    if entry.opens and entry.opens[0].product is not None:
        found["product"] = entry.opens[0].product
        found["catalog_version"] = entry.opens[0].version
    if entry.entitlement is not None:
        found["entitlement"] = entitlement_shown(entry.entitlement, scale)
    return found


class Receipt:
    """What a write answers, and a line of a statement: one entry of an account's history.

    Attributes:
        entry: The entry itself, amounts as integers of 10^-scale.
        account: The balance owner.
        replayed: True when this is the first answer to a repeated request.
        due: True where it is not in the history yet: the clock brought it, and the next write
            on the account books it. Its place and its amounts are certain, its `recorded_at` is
            when it was looked at.
        provisional: False: it is an entry. A client that lets a request through while its service
            is away answers with a `ProvisionalReceipt`, where it is True.
    """

    provisional: ClassVar[bool] = False

    __slots__ = ("_scale", "account", "due", "entry", "replayed")

    def __init__(
        self,
        entry: Entry,
        scale: int,
        account: str,
        *,
        replayed: bool = False,
        due: bool = False,
    ) -> None:
        """Show this entry at this scale."""
        self.due = due
        self.entry = entry
        self.account = account
        self.replayed = replayed
        self._scale = scale

    def _units(self, units: int) -> Decimal:
        return to_decimal(units, self._scale)

    @property
    def request_id(self) -> str | None:
        """The request that led to it; None where the clock did."""
        return self.entry.request_id

    @property
    def seq(self) -> int:
        """Its place in the account's history, counted from 1 without gaps."""
        return self.entry.seq

    @property
    def kind(self) -> str:
        """What it is, such as "consume" or "grant_expired"."""
        return self.entry.kind

    @property
    def ref(self) -> str | None:
        """The id that it acts on: a hold, a charge or a grant."""
        return self.entry.ref

    @property
    def units(self) -> Decimal:
        """What it is about: granted, charged, held, given back."""
        return self._units(self.entry.units)

    @property
    def wallet(self) -> str:
        """The kind of credits."""
        return self.entry.wallet

    @property
    def operation(self) -> str | None:
        """What was done."""
        return self.entry.operation

    @property
    def available(self) -> Decimal:
        """Free units of the wallet afterwards; negative while an overdraft is owed."""
        return self._units(self.entry.available)

    @property
    def held(self) -> Decimal:
        """Units of the wallet reserved by open holds afterwards."""
        return self._units(self.entry.held)

    @property
    def used(self) -> Decimal:
        """Units of the wallet ever used, refunds taken off."""
        return self._units(self.entry.used)

    @property
    def expired(self) -> Decimal:
        """Units of the wallet ever expired."""
        return self._units(self.entry.expired)

    @property
    def issued(self) -> Decimal:
        """Units of the wallet ever put in: available + held + used + expired."""
        return self._units(self.entry.issued)

    @property
    def available_before(self) -> Decimal:
        """Free units of the wallet before it."""
        return self._units(available_before(self.entry))

    @property
    def shortfall(self) -> Decimal:
        """Units that were used but could not be charged."""
        return self._units(self.entry.shortfall)

    @property
    def grants(self) -> list[tuple[str, Decimal]]:
        """The grants it touched, in order, with the units that moved on each."""
        return [(p.line, self._units(p.units)) for p in self.entry.postings]

    @property
    def recorded_at(self) -> datetime:
        """When it was written, by our clock."""
        return to_datetime(self.entry.at)

    @property
    def effective_at(self) -> datetime:
        """When it happened, by the caller's word or when it fell due."""
        return to_datetime(self.entry.effective_at)

    @property
    def expires_at(self) -> datetime | None:
        """The deadline of a hold, or the end of what was granted."""
        if self.entry.deadline is not None:
            return to_datetime(self.entry.deadline)
        if self.entry.opens and self.entry.opens[0].expires_at is not None:
            return to_datetime(self.entry.opens[0].expires_at)
        return None

    @property
    def product(self) -> str | None:
        """What was bought, or what the entitlement is on; None where it is nothing of a catalog."""
        if self.entry.entitlement is not None:
            return self.entry.entitlement.product
        return self.entry.opens[0].product if self.entry.opens else None

    @property
    def entitlement(self) -> dict[str, object] | None:
        """The entitlement as it stands from then on; None where the entry is about none."""
        held = self.entry.entitlement
        return None if held is None else entitlement_shown(held, self._scale)

    @property
    def price_version(self) -> int | None:
        """The price version that made the amount; None where the caller gave units."""
        return self.entry.price.version if self.entry.price else None

    def to_dict(self) -> dict[str, object]:
        """Return it as plain values for JSON: units as decimal strings, times as ISO 8601."""
        entry, scale = self.entry, self._scale
        expires_at = self.expires_at
        shown: dict[str, object] = {
            "account": self.account,
            "seq": entry.seq,
            "kind": entry.kind,
            "request_id": entry.request_id,
            "ref": entry.ref,
            "wallet": entry.wallet,
            "units": show_units(entry.units, scale),
            "operation": entry.operation,
            "model": entry.model,
            "meters": {k: v if type(v) is int else str(v) for k, v in (entry.meters or {}).items()},
            "attributes": entry.attributes or {},
            "tags": entry.tags or {},
            "available_before": format(self.available_before, "f"),
            "available": show_units(entry.available, scale),
            "held": show_units(entry.held, scale),
            "used": show_units(entry.used, scale),
            "expired": show_units(entry.expired, scale),
            "issued": show_units(entry.issued, scale),
            "shortfall": show_units(entry.shortfall, scale),
            "postings": [
                {
                    "from": p.source,
                    "to": p.target,
                    "line": p.line,
                    "units": show_units(p.units, scale),
                }
                for p in entry.postings
            ],
            "price": None
            if entry.price is None
            else {
                "version": entry.price.version,
                "rule": entry.price.rule,
                "exact": format(entry.price.exact, "f"),
            },
            "recorded_at": show_instant(entry.at),
            "effective_at": show_instant(entry.effective_at),
            "expires_at": None
            if expires_at is None
            else expires_at.isoformat().replace("+00:00", "Z"),
            "final": entry.final,
            "late": entry.late,
            "reason": entry.reason,
            "actor": entry.actor,
            "replayed": self.replayed,
        }
        return shown | sold(entry, scale)

    def __repr__(self) -> str:
        """Show what a person debugging wants to see first."""
        mark = " replayed" if self.replayed else " due" if self.due else ""
        return (
            f"<Receipt {self.account} #{self.seq} {self.kind} {self.units} {self.wallet}"
            f" available={self.available} request_id={self.request_id!r}{mark}>"
        )

    def __eq__(self, other: object) -> bool:
        """Two receipts of the same entry are equal, a replay and its first answer too."""
        if not isinstance(other, Receipt):
            return NotImplemented
        return self.account == other.account and self.entry == other.entry

    def __hash__(self) -> int:
        """Hash by account and place in its history."""
        return hash((self.account, self.entry.seq))
