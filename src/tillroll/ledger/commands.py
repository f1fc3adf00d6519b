"""What may be asked of a ledger: one frozen struct a verb, and the request that carries it.

A command holds what the caller decided and nothing that we invent: its canonical bytes are the
fingerprint that tells a repeat from a conflict. `verbs` builds commands from callers' values.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from typing import Literal

from msgspec import Struct

from tillroll.ledger.types import (
    WALLET_DEFAULT,
    AlertTerms,
    BudgetTerms,
    Category,
    EntitlementKind,
    Every,
    Feature,
    Meters,
    PlanGrant,
    RecurringTerms,
    Standing,
)

Above = Literal["available", "refuse", "overdraft"]
ExpiredPolicy = Literal["expire", "extend", "goodwill"]
Change = Literal["now", "period_end"]


class Command(Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True, gc=False):
    """What every command may carry."""

    reason: str | None = None
    tags: dict[str, str] | None = None
    metadata_digest: bytes | None = None


class Grant(Command, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Put units in."""

    units: int
    wallet: str = WALLET_DEFAULT
    category: Category = "paid"
    priority: int = 0
    effective_at: int | None = None
    expires_at: int | None = None
    expires_on: str | None = None
    expires_in: int | None = None
    applies_to: tuple[str, ...] = ()
    cost_basis: str | None = None
    source: str | None = None


class Void(Command, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Cancel what is left of a grant, or a part of it: of what had come with the grant `origin`."""

    grant_id: str
    units: int | None = None
    origin: str | None = None


class QuoteClaims(Struct, frozen=True, omit_defaults=True, gc=False):
    """What a signed quote promises: this version, at most this much, until then."""

    account: str
    operation: str
    version: int
    ceiling: int
    wallet: str
    expires_at: int
    model: str | None = None
    id: str = ""


class Work(Command, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What a consume and a hold share: something was or will be done, and it has a price."""

    operation: str | None = None
    units: int | None = None
    model: str | None = None
    meters: Meters | None = None
    attributes: dict[str, str] | None = None
    wallet: str | None = None
    quote: QuoteClaims | None = None
    effective_at: int | None = None
    feature: str | None = None


class Consume(Work, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Take units in one step."""


class Hold(Work, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Reserve units before the work."""

    floor: int | None = None
    expires_in: int | None = None


class Extend(Command, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Prolong an open hold."""

    hold_id: str
    expires_in: int


class Settle(Command, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Take from a hold what was really used."""

    hold_id: str
    units: int | None = None
    meters: Meters | None = None
    attributes: dict[str, str] | None = None
    final: bool = True
    above: Above = "available"


class Release(Command, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Give all of a hold back."""

    hold_id: str


class InDoubt(Command, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Say that nobody knows whether the work was done."""

    hold_id: str
    deadline_in: int | None = None
    at_deadline: Literal["release", "settle"] = "release"


class Refund(Command, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Give back part or all of a charge, to the grants that paid."""

    charge: str
    units: int | None = None
    expired: ExpiredPolicy = "expire"
    extend_by: int | None = None


class Adjust(Command, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An operator's correction, up or down."""

    units: int
    wallet: str = WALLET_DEFAULT


class SetStatus(Command, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Freeze, unfreeze or close the account."""

    to: Literal["freeze", "unfreeze", "close"]


class SetOverdraft(Command, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Allow a wallet to owe up to a limit."""

    limit: int
    wallet: str = WALLET_DEFAULT


class SetBudget(Command, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Set or, with a cap of None, remove a budget."""

    terms: BudgetTerms


class SetRecurring(Command, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Start, change or stop a recurring grant."""

    terms: RecurringTerms


class SetAlert(Command, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Set or remove an alert."""

    terms: AlertTerms


class Configure(Command, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Change the account's settings; what is None stays."""

    time_zone: str | None = None
    late_settlement: bool | None = None
    late_usage: int | None = None
    early_usage: int | None = None


class Buy(Command, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Give what a pack or a pass of the catalog says: units, or time."""

    product: str
    quantity: int = 1
    version: int | None = None
    cost_basis: str | None = None
    source: str | None = None


class Redeem(Command, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Give what a coupon of the catalog says."""

    coupon: str


class Subscribe(Command, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Put an entitlement on a plan of the catalog, or move it to another plan or version."""

    plan: str
    name: str
    when: Change = "now"
    version: int | None = None
    status: Standing | None = None
    started_at: int | None = None
    trial: bool = True
    trial_ends_at: int | None = None
    ends_at: int | None = None
    paid_until: int | None = None
    source: str | None = None


class Entitle(Command, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Give an entitlement on terms of the caller's own."""

    name: str
    kind: EntitlementKind
    features: dict[str, Feature] = {}
    grants: tuple[PlanGrant, ...] = ()
    every: Every = "month"
    count: int = 1
    status: Standing | None = None
    product: str | None = None
    started_at: int | None = None
    trial_ends_at: int | None = None
    ends_at: int | None = None
    lasts: int | None = None
    paid_until: int | None = None
    source: str | None = None


class ChangeEntitlement(Command, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Change how an entitlement stands or when it ends; what is None stays, `NEVER` removes."""

    name: str
    status: Standing | None = None
    trial_ends_at: int | None = None
    ends_at: int | None = None
    paid_until: int | None = None


class EndEntitlement(Command, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """End an entitlement; what it granted stays until it expires."""

    name: str
    when: Change = "now"


class Request(Struct, frozen=True, gc=False):
    """A command on its way to one account's history.

    Attributes:
        project: The isolation boundary that the account is in.
        account_id: The 16 bytes that the account is stored under.
        metadata: Canonical JSON; kept beside the entry, outside the hashed part, so that it can
            be erased.
        is_new: Whether its id was made for it, at random: then nothing can be known of it.
    """

    project: str
    account_id: bytes
    account: str
    request_id: str
    command: Command
    fingerprint: bytes
    actor: str | None = None
    metadata: str | None = None
    retry_refused: bool = False
    is_new: bool = False


@lru_cache(maxsize=65_536)
def account_id(project: str, account: str) -> bytes:
    """Return the 128-bit key of an account: no look-up, no sequence, the same everywhere."""
    name = project.encode()
    return sha256(b"%d:%b%b" % (len(name), name, account.encode())).digest()[:16]
