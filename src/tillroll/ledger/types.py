"""The nouns of the ledger: entries, and the account that is folded from them.

Amounts are signed integers of 10^-scale, times are microseconds since 1970 in UTC. An `Entry` is
immutable; an `Account` belongs to whoever loaded it and is changed only by `core.apply`.
"""

from __future__ import annotations

import sys
from decimal import Decimal
from typing import Literal

from msgspec import Struct, field
from msgspec.structs import force_setattr

Kind = Literal[
    "grant",
    "grant_activated",
    "grant_renewed",
    "grant_expired",
    "void",
    "consume",
    "hold",
    "extend",
    "settle",
    "release",
    "in_doubt",
    "hold_expired",
    "refund",
    "adjust",
    "freeze",
    "unfreeze",
    "close",
    "overdraft",
    "budget",
    "recurring",
    "settings",
    "alert",
    "grant_expiring",
    "entitlement",
    "entitlement_ended",
]
Bucket = Literal["issued", "available", "held", "used", "expired"]
Category = Literal["paid", "promo", "plan", "adjustment"]
Period = Literal["day", "week", "month", "total", "rolling"]
Every = Literal["day", "week", "month", "year"]
AlertOn = Literal["balance", "percent", "days_left", "depleted", "budget", "expiring"]
# What an account is watched for: an alert, or (ours alone) a balance that is to be topped up.
Watched = Literal[AlertOn, "topup"]
TOPUP: Watched = "topup"
EntitlementKind = Literal["subscription", "time_pass", "feature"]
Standing = Literal["trialing", "active", "past_due", "paused"]
Feature = bool | int | str

Meters = dict[str, int | Decimal]

# Ids that begin with this are ours; callers' ids may not.
RESERVED = "~"
# The line that is not a grant: what the account may owe, burnt last (decisions/0008).
OVERDRAFT = "~overdraft"
WALLET_DEFAULT = "credits"
NEVER = 2**62
# Kept among the refusals, though it is none: the id of a request that was answered with what an
# earlier one did, such as a settle of a hold that was settled so before.
ANSWERED_BEFORE = "answered_before"
# The policy of a void that took a part of what was left: the grant goes on.
PART = "part"

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def intern_texts(struct: Struct, *names: str) -> None:
    """Make texts that equal a default be that default.

    `omit_defaults` compares texts by identity: without this the canonical bytes would differ
    between a text that was written in the source and the same one read from JSON.
    """
    for name in names:
        text = getattr(struct, name)
        if text is not sys.intern(text):
            force_setattr(struct, name, sys.intern(text))


class Posting(Struct, frozen=True, array_like=True, gc=False):
    """One movement inside the account: units from one bucket to another, on one line.

    The line is the grant (or `OVERDRAFT`) whose units move. Source and target take opposite
    signs, so every entry sums to zero by construction.
    """

    source: Bucket
    target: Bucket
    line: str
    units: int


class PricedBy(Struct, frozen=True, omit_defaults=True, gc=False):
    """Which rule of which price version made the amount, and the amount before rounding."""

    version: int
    rule: str
    exact: Decimal
    residual: Decimal | None = None
    quote: str | None = None


class Terms(Struct, frozen=True, omit_defaults=True, gc=False):
    """What a grant is: fixed when it is made, never edited."""

    id: str
    units: int
    category: Category = "paid"
    wallet: str = WALLET_DEFAULT
    priority: int = 0
    effective_at: int = 0
    expires_at: int | None = None
    applies_to: tuple[str, ...] = ()
    cost_basis: str | None = None
    source: str | None = None
    recurring: str | None = None
    warn_days: tuple[int, ...] = ()
    product: str | None = None
    version: int = 0

    def __post_init__(self) -> None:
        intern_texts(self, "category", "wallet")


class BudgetTerms(Struct, frozen=True, omit_defaults=True, gc=False):
    """A cap per period at one node of the account, such as one member or every key."""

    name: str
    cap: int | None
    period: Period = "month"
    window: int = 0
    match: dict[str, str] = {}
    wallet: str = WALLET_DEFAULT

    def __post_init__(self) -> None:
        intern_texts(self, "period", "wallet")


class RecurringTerms(Struct, frozen=True, omit_defaults=True, gc=False):
    """Grants that come back: the n-th falls due n periods after the anchor date."""

    name: str
    units: int
    every: Every = "month"
    count: int = 1
    anchor: str = ""
    rollover_min: int = 0
    rollover_max: int = 0
    category: Category = "plan"
    wallet: str = WALLET_DEFAULT
    priority: int = 0
    applies_to: tuple[str, ...] = ()
    ends_at: int | None = None
    stopped: bool = False
    entitlement: str | None = None

    def __post_init__(self) -> None:
        intern_texts(self, "every", "category", "wallet")


class AlertTerms(Struct, frozen=True, omit_defaults=True, gc=False):
    """When to tell that an account comes near an end: one threshold.

    What `threshold` counts depends on `on`: units for "balance"; percent for "percent" (of what is
    granted and live) and "budget" (of the cap); days for "days_left" and "expiring"; nothing for
    "depleted". `budget` names the one budget that is meant; without it, every one is. What is on
    `TOPUP` is ours: no alert, but where a balance in units is topped up.
    """

    name: str
    on: Watched = "balance"
    threshold: int = 0
    wallet: str = WALLET_DEFAULT
    budget: str | None = None
    removed: bool = False

    def __post_init__(self) -> None:
        intern_texts(self, "on", "wallet")


class PlanGrant(Struct, frozen=True, omit_defaults=True, gc=False):
    """Units that an entitlement brings again and again, under a name of its own within it."""

    name: str
    units: int
    every: Every = "month"
    count: int = 1
    rollover_min: int = 0
    rollover_max: int = 0
    wallet: str = WALLET_DEFAULT
    priority: int = 0
    applies_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        intern_texts(self, "every", "wallet")


class Entitlement(Struct, frozen=True, omit_defaults=True, gc=False):
    """What an account may use until it ends: a copy of the terms that it was given on.

    An entry carries it whole as it is from then on. Its periods are counted from the anchor, a
    local time in the account's zone. At `next_at` the terms of `next` take the place of its own;
    how it stands and when it ends stay. Grants are renewed before `paid_until` alone, where set.
    """

    name: str
    kind: EntitlementKind = "subscription"
    status: Standing = "active"
    product: str | None = None
    version: int = 0
    features: dict[str, Feature] = {}
    grants: tuple[PlanGrant, ...] = ()
    every: Every = "month"
    count: int = 1
    anchor: str = ""
    starts_at: int = 0
    trial_ends_at: int | None = None
    ends_at: int | None = None
    paid_until: int | None = None
    source: str | None = None
    next: Entitlement | None = None
    next_at: int | None = None

    def __post_init__(self) -> None:
        intern_texts(self, "kind", "status", "every")

    @property
    def ref(self) -> str:
        """What entries about it refer to: no request, grant or hold can be called so."""
        return entitlement_ref(self.name)


def entitlement_ref(name: str) -> str:
    """Return what entries about the entitlement of that name refer to.

    Ids of grants that come back end in a slash and digits, those of replaced ones in a number sign
    and digits, and callers' ids do not begin so.
    """
    return f"{RESERVED}{name}/entitlement"


# How far from now a consume or hold may say that its work was done, unless an account is set so.
LATE_USAGE = 35 * DAY
EARLY_USAGE = 5 * MINUTE


class Settings(Struct, frozen=True, omit_defaults=True, gc=False):
    """How the account wants to be treated; every change is an entry."""

    time_zone: str = "UTC"
    late_settlement: bool = False
    late_usage: int = LATE_USAGE
    early_usage: int = EARLY_USAGE

    def __post_init__(self) -> None:
        intern_texts(self, "time_zone")


class Entry(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One immutable row of an account's history. Its encoded bytes are what the chain covers.

    `units` is what the entry is about: granted, charged, held, given back. `postings` are what
    moved. `issued` to `expired` are the wallet's buckets afterwards. `origin` is the grant that
    what a void took had come with, before it was carried over.
    """

    seq: int
    kind: Kind
    at: int
    effective_at: int
    request_id: str | None = None
    fingerprint: bytes = b""
    ref: str | None = None
    wallet: str = WALLET_DEFAULT
    units: int = 0
    postings: tuple[Posting, ...] = ()
    issued: int = 0
    available: int = 0
    held: int = 0
    used: int = 0
    expired: int = 0
    operation: str | None = None
    model: str | None = None
    meters: Meters | None = None
    attributes: dict[str, str] | None = None
    tags: dict[str, str] | None = None
    price: PricedBy | None = None
    opens: tuple[Terms, ...] = ()
    deadline: int | None = None
    at_deadline: Literal["release", "settle"] | None = None
    ceiling: int | None = None
    final: bool = False
    late: bool = False
    shortfall: int = 0
    limit: int | None = None
    budget: BudgetTerms | None = None
    recurring: RecurringTerms | None = None
    occurrence: int = 0
    settings: Settings | None = None
    policy: str | None = None
    charged_at: int | None = None
    charged_seq: int = 0
    reason: str | None = None
    actor: str | None = None
    metadata_digest: bytes | None = None
    alert: AlertTerms | None = None
    feature: str | None = None
    entitlement: Entitlement | None = None
    coupon: str | None = None
    origin: str | None = None


class Refusal(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An expected no: a code of the closed list, who asked for what, and what is to be known."""

    code: str
    message: str
    at: int = 0
    seq: int = 0
    request_id: str = ""
    fingerprint: bytes = b""
    operation: str | None = None
    reason: str | None = None
    actor: str | None = None
    needed: int | None = None
    available: int | None = None
    held: int | None = None
    tightest: str | None = None
    ways_out: tuple[dict[str, str], ...] = ()
    details: dict[str, str] = {}


class Wallet(Struct, omit_defaults=True, gc=False):
    """The buckets of one kind of credits, and what it may owe."""

    issued: int = 0
    available: int = 0
    held: int = 0
    used: int = 0
    expired: int = 0
    overdraft: int = 0
    overdraft_limit: int = 0


class Grant(Struct, omit_defaults=True, gc=False):
    """A grant that can still move: something remains, is pinned by a hold, or is to come.

    `told` is for when its owner was last to be warned that it expires. `parts` are for whose sake
    its units came, where that is not itself alone: grant -> units, what came first is used first.
    """

    terms: Terms
    remaining: int = 0
    pinned: int = 0
    scheduled: bool = False
    voided: bool = False
    told: int = 0
    parts: dict[str, int] = field(default_factory=dict)


class Hold(Struct, omit_defaults=True, gc=False):
    """An open reservation and the lines it took its units from, in burn order.

    `effective_at` is when the work began, where that is not `opened_at`: its prices are of then.
    """

    id: str
    seq: int
    wallet: str
    lines: dict[str, int]
    deadline: int
    opened_at: int
    units: int
    effective_at: int | None = None
    operation: str | None = None
    model: str | None = None
    attributes: dict[str, str] | None = None
    tags: dict[str, str] | None = None
    price_version: int = 0
    ceiling: int | None = None
    settled: int = 0
    in_doubt: bool = False
    at_deadline: Literal["release", "settle"] = "release"


class Budget(Struct, omit_defaults=True, gc=False):
    """A cap and what has been counted against it: node -> window start -> units.

    `since` is the seq from which it counts: one batch may set a budget and spend at one instant.
    `swept` is the window in which those long past were last dropped.
    """

    terms: BudgetTerms
    since: int
    counted: dict[str, dict[int, int]] = field(default_factory=dict)
    swept: int = 0


class Recurring(Struct, omit_defaults=True, gc=False):
    """A recurring grant: the occurrence that comes next, and the grant that runs now.

    `until` is when the period that was granted last ends, whatever zone the account moved to since:
    the next begins then. 0 where none was granted, or the next does not follow it. `lost` is what
    that grant lost when it expired at `lost_at`, by the grants that it came with: a renewal that is
    late carries it over as if it were there.
    """

    terms: RecurringTerms
    next: int = 0
    next_at: int = NEVER
    current: str | None = None
    until: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    lost_at: int = 0


class Alert(Struct, omit_defaults=True, gc=False):
    """An alert of the account, and what it has to count: days since 1970 -> units used."""

    terms: AlertTerms
    used: dict[int, int] = field(default_factory=dict)


class Account(Struct, omit_defaults=True, gc=False):
    """The live state of one account: always `fold(apply, entries)`.

    Grants are kept in burn order. What is used up, settled or expired is not live any more; it is
    found in the entries. `tried` are the plans that it had a trial of, and when that was given.
    """

    account: str
    seq: int = 0
    head: bytes = b""
    at: int = 0
    next_due_at: int = NEVER
    status: Literal["open", "frozen", "closed"] = "open"
    settings: Settings = Settings()
    wallets: dict[str, Wallet] = field(default_factory=dict)
    grants: dict[str, Grant] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)
    budgets: dict[str, Budget] = field(default_factory=dict)
    recurring: dict[str, Recurring] = field(default_factory=dict)
    residuals: dict[str, Decimal] = field(default_factory=dict)
    alerts: dict[str, Alert] = field(default_factory=dict)
    entitlements: dict[str, Entitlement] = field(default_factory=dict)
    redeemed: dict[str, int] = field(default_factory=dict)
    tried: dict[str, int] = field(default_factory=dict)

    def wallet(self, name: str) -> Wallet:
        """Return the wallet of that name to read from; an empty one where it is new."""
        return self.wallets.get(name) or Wallet()
