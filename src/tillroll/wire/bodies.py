"""The bodies of requests, one struct a shape. Unknown fields and floats for units are refused.

The fields have the names of the verbs' arguments: what a struct holds is handed to the verb as it
is, and the verb checks what a type cannot say.
"""

from __future__ import annotations

import functools
import json
import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import asdict

from tillroll.ledger import types
from tillroll.ledger.commands import Above, Change, ExpiredPolicy
from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.products import PRIORITY_MAX
from tillroll.ledger.types import AlertOn, Category, EntitlementKind, Every, Period
from tillroll.ledger.values import (
    BULK_MAX,
    ENTITLEMENT_NAME_MAX,
    FEATURE_NAME_MAX,
    FEATURES_MAX,
    GRANTS_MAX,
    ID_MAX,
    QUANTITY_MAX,
    REASON_MAX,
    TAGS_MAX,
)
from tillroll.ledger.webhooks import FILTERS_MAX, Format

B = TypeVar("B", bound=Struct)

Id = Annotated[str, Meta(min_length=1, max_length=ID_MAX, description="1 to 255 characters.")]
Exact = Annotated[str, Meta(pattern=r"^[+-]?[0-9]{1,30}(\.[0-9]{1,30})?$", examples=["12.5"])]
Units = Annotated[
    int | Exact,
    Meta(description="An exact amount: a whole number or a decimal string. No float is exact."),
]
Quantities = Annotated[
    dict[str, int | Exact],
    Meta(description="Raw quantities.", examples=[{"input_tokens": 1200}], max_length=TAGS_MAX),
]
Labels = Annotated[dict[str, str], Meta(max_length=TAGS_MAX)]
Span = Annotated[
    str,
    Meta(description="A length of time: seconds to weeks.", examples=["15m", "24h", "90d"]),
]
When = Annotated[str, Meta(description="ISO 8601 with a zone.", examples=["2026-07-31T12:00:00Z"])]
Expiry = Annotated[
    str,
    Meta(
        description="An instant, or a date: good through that day in the account's time zone.",
        examples=["2026-07-31"],
    ),
]
Anchor = Annotated[
    str,
    Meta(description="A date, or a local date and time without a zone.", examples=["2026-01-31"]),
]
Filters = Annotated[
    list[str],
    Meta(
        description="Types of events, or their beginnings.",
        examples=[["grant.*", "usage.consumed"]],
        min_length=1,
        max_length=FILTERS_MAX,
    ),
]
Reason = Annotated[str, Meta(min_length=1, max_length=REASON_MAX, description="Why.")]
Feature = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=FEATURE_NAME_MAX,
        description="What the account must be entitled to, checked in the same step.",
    ),
]
Values = Annotated[
    dict[str, bool | int | str],
    Meta(
        max_length=FEATURES_MAX,
        description="Feature to value: a switch, a limit, a setting.",
        examples=[{"hd": True, "seats": 5}],
    ),
]
End = Annotated[
    str,
    Meta(
        description='ISO 8601 with a zone; "never" takes it back.',
        examples=["2026-07-31T12:00:00Z", "never"],
    ),
]
Product = Annotated[str, Meta(min_length=1, max_length=64, description="Its name in the catalog.")]
EntitlementName = Annotated[
    str, Meta(min_length=1, max_length=ENTITLEMENT_NAME_MAX, description="What it is called.")
]
Version = Annotated[int, Meta(ge=1, lt=2**31, description="Of the catalog; the one in force.")]
Priority = Annotated[int, Meta(ge=-PRIORITY_MAX, le=PRIORITY_MAX, description="Lower burns first")]


class Who(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What every write takes: who acts for the key, and what is kept beside the entry."""

    actor: Id | UnsetType | None = UNSET
    metadata: dict[str, Any] | UnsetType | None = UNSET
    retry_refused: bool | UnsetType = UNSET


class Write(Who, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What a write takes that has no arguments of its own."""

    reason: Reason | UnsetType | None = UNSET


class Grant(Write, kw_only=True, forbid_unknown_fields=True, gc=False):
    """Units put into an account. The grant is known by the request's id from then on."""

    units: Units
    wallet: str | UnsetType = UNSET
    category: Category | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    effective_at: When | UnsetType | None = UNSET
    expires_at: Expiry | UnsetType | None = UNSET
    expires_in: Span | UnsetType | None = UNSET
    applies_to: list[Id] | UnsetType = UNSET
    cost_basis: Units | UnsetType | None = UNSET
    source: Id | UnsetType | None = UNSET
    tags: Labels | UnsetType = UNSET


class Void(Write, kw_only=True, forbid_unknown_fields=True, gc=False):
    """How much of what is left of a grant to cancel; all of it, without units."""

    units: Units | UnsetType | None = UNSET


class Adjust(Who, kw_only=True, forbid_unknown_fields=True, gc=False):
    """An operator's correction, up or down, with its reason."""

    units: Units
    reason: Reason
    wallet: str | UnsetType = UNSET
    tags: Labels | UnsetType = UNSET


class Consume(Write, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What was done, priced by the price book, or units."""

    operation: Id | UnsetType | None = UNSET
    units: Units | UnsetType | None = UNSET
    meters: Quantities | UnsetType | None = UNSET
    model: Id | UnsetType | None = UNSET
    attributes: Labels | UnsetType | None = UNSET
    wallet: str | UnsetType | None = UNSET
    quote: str | UnsetType | None = UNSET
    effective_at: When | UnsetType | None = UNSET
    feature: Feature | UnsetType | None = UNSET
    tags: Labels | UnsetType | None = UNSET


class Hold(Consume, kw_only=True, forbid_unknown_fields=True, gc=False):
    """The most that the work can cost, reserved before it is done."""

    floor: Units | UnsetType | None = UNSET
    expires_in: Span | UnsetType | None = UNSET


class Extend(Write, kw_only=True, forbid_unknown_fields=True, gc=False):
    """How long a hold is to live from now."""

    expires_in: Span


class Settle(Write, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What was really used; all that is held, where neither units nor meters are given."""

    units: Units | UnsetType | None = UNSET
    meters: Quantities | UnsetType | None = UNSET
    attributes: Labels | UnsetType | None = UNSET
    final: bool | UnsetType = UNSET
    above: Above | UnsetType = UNSET


class InDoubt(Write, kw_only=True, forbid_unknown_fields=True, gc=False):
    """How long nobody may know whether the work was done, and what happens then."""

    deadline_in: Span | UnsetType | None = UNSET
    at_deadline: Annotated[str, Meta(pattern="^(release|settle)$")] | UnsetType = UNSET


class Resolve(Write, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What a probe found: done, with what was used, or not done."""

    outcome: Annotated[str, Meta(pattern="^(done|not_done)$")]
    units: Units | UnsetType | None = UNSET
    meters: Quantities | UnsetType | None = UNSET


class Refund(Write, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What of a charge goes back to the grants that paid; all that is left, without units."""

    charge: Id
    units: Units | UnsetType | None = UNSET
    expired: ExpiredPolicy | UnsetType = UNSET
    extend_by: Span | UnsetType | None = UNSET


class Overdraft(Write, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What a wallet may owe."""

    limit: Units
    wallet: str | UnsetType = UNSET


class Budget(Write, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A cap per period at one node of the account."""

    cap: Units
    period: Period | UnsetType = UNSET
    window: Span | UnsetType | None = UNSET
    match: Labels | UnsetType = UNSET
    wallet: str | UnsetType = UNSET


class Alert(Write, kw_only=True, forbid_unknown_fields=True, gc=False):
    """When to tell that the account comes near an end."""

    on: AlertOn
    threshold: Units | UnsetType | None = UNSET
    budget: Id | UnsetType | None = UNSET
    wallet: str | UnsetType = UNSET


class Recurring(Write, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A grant that comes back, counted from its anchor."""

    units: Units
    anchor: Anchor
    every: Every | UnsetType = UNSET
    count: Annotated[int, Meta(ge=1, le=1_000)] | UnsetType = UNSET
    rollover_min: Units | UnsetType = UNSET
    rollover_max: Units | UnsetType = UNSET
    category: Category | UnsetType = UNSET
    wallet: str | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    applies_to: list[Id] | UnsetType = UNSET
    ends_at: When | UnsetType | None = UNSET


class Settings(Write, kw_only=True, forbid_unknown_fields=True, gc=False):
    """How the account wants to be treated; what is left out stays."""

    time_zone: Id | UnsetType | None = UNSET
    late_settlement: bool | UnsetType | None = UNSET
    late_usage: Span | UnsetType | None = UNSET
    early_usage: Span | UnsetType | None = UNSET


class Buy(Write, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A pack or a pass of the catalog."""

    product: Product
    quantity: Annotated[int, Meta(ge=1, le=QUANTITY_MAX)] | UnsetType = UNSET
    version: Version | UnsetType | None = UNSET
    cost_basis: Units | UnsetType | None = UNSET
    source: Id | UnsetType | None = UNSET
    tags: Labels | UnsetType = UNSET


class Redeem(Write, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A coupon of the catalog."""

    coupon: Product
    tags: Labels | UnsetType = UNSET


class Standing(Write, kw_only=True, forbid_unknown_fields=True, gc=False):
    """How an entitlement stands and when it ends; what is left out stays."""

    status: types.Standing | UnsetType | None = UNSET
    trial_ends_at: When | UnsetType | None = UNSET
    ends_at: End | UnsetType | None = UNSET
    paid_until: End | UnsetType | None = UNSET


class Subscribe(Standing, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A plan of the catalog to be on, or to move to."""

    plan: Product
    name: EntitlementName | UnsetType = UNSET
    when: Change | UnsetType = UNSET
    version: Version | UnsetType | None = UNSET
    started_at: When | UnsetType | None = UNSET
    trial: bool | UnsetType = UNSET
    source: Id | UnsetType | None = UNSET


class PlanGrant(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """Units that an entitlement brings again and again."""

    units: Units
    name: Product | UnsetType = UNSET
    every: Every | UnsetType = UNSET
    count: Annotated[int, Meta(ge=1, le=1_000)] | UnsetType = UNSET
    rollover_min: Units | UnsetType = UNSET
    rollover_max: Units | UnsetType = UNSET
    wallet: str | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    applies_to: list[Id] | UnsetType = UNSET


class Entitle(Standing, kw_only=True, forbid_unknown_fields=True, gc=False):
    """An entitlement on terms of your own."""

    kind: EntitlementKind | UnsetType = UNSET
    features: Values | UnsetType | None = UNSET
    grants: Annotated[list[PlanGrant], Meta(max_length=GRANTS_MAX)] | UnsetType = UNSET
    every: Every | UnsetType = UNSET
    count: Annotated[int, Meta(ge=1, le=1_000)] | UnsetType = UNSET
    product: Id | UnsetType | None = UNSET
    started_at: When | UnsetType | None = UNSET
    lasts: Span | UnsetType | None = UNSET
    source: Id | UnsetType | None = UNSET


class EndEntitlement(Write, kw_only=True, forbid_unknown_fields=True, gc=False):
    """When it is to end."""

    when: Change | UnsetType = UNSET


class AccessTo(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What would be done: a feature, work, both, or nothing in particular."""

    operation: Id | UnsetType | None = UNSET
    feature: Feature | UnsetType | None = UNSET
    units: Units | UnsetType | None = UNSET
    meters: Quantities | UnsetType | None = UNSET
    model: Id | UnsetType | None = UNSET
    attributes: Labels | UnsetType | None = UNSET
    wallet: str | UnsetType | None = UNSET
    tags: Labels | UnsetType | None = UNSET
    at: When | UnsetType | None = UNSET


class QuoteFor(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What would be done; `lock_for` has the price signed and good for so long."""

    operation: Id
    meters: Quantities | UnsetType | None = UNSET
    model: Id | UnsetType | None = UNSET
    attributes: Labels | UnsetType | None = UNSET
    lock_for: Span | UnsetType | None = UNSET


class Item(Consume, kw_only=True, forbid_unknown_fields=True, gc=False):
    """One consume of a batch, with its own account and its own id."""

    account: Id
    request_id: Id


class Batch(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """Many consumes, each on its own merits."""

    items: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=BULK_MAX)]


class NewPrices(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """Rules for the price book, who applies them and why."""

    prices: list[dict[str, Any]]
    author: Id
    reason: Reason
    overrides: dict[str, list[dict[str, Any]]] | UnsetType = UNSET
    products: (
        Annotated[dict[str, Any], Meta(description="What is sold; as in force, if left out.")]
        | UnsetType
    ) = UNSET


class NewKey(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What a new API key may do, and for how long."""

    name: Id
    scopes: Annotated[list[str], Meta(min_length=1, max_length=4)]
    mode: Annotated[str, Meta(pattern="^(test|live)$")] | UnsetType = UNSET
    accounts: Annotated[list[Id], Meta(max_length=1_000)] | UnsetType = UNSET
    expires_in: Span | UnsetType | None = UNSET


class Rotate(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """How long the old key still works beside the new one."""

    overlap: Span | UnsetType = UNSET


class NewEndpoint(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """Where events are sent, which, and in whose words."""

    url: str
    events: Filters | UnsetType = UNSET
    format: Format | UnsetType = UNSET
    description: str | UnsetType | None = UNSET


class ChangedEndpoint(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What of an endpoint is to be otherwise."""

    url: str | UnsetType = UNSET
    events: Filters | UnsetType = UNSET
    format: Format | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    disabled: bool | UnsetType = UNSET


class SendAgain(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What is to be sent again: all that is dead, of an endpoint, or one event to an endpoint."""

    endpoint: Id | UnsetType = UNSET
    event: Id | UnsetType = UNSET


class LicenzyConsume(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """Whose units, and how many."""

    subject_ref: Id
    units: Annotated[int, Meta(gt=0)]


class LicenzySubject(AccessTo, kw_only=True, forbid_unknown_fields=True, gc=False):
    """Whose access; with anything more, the answer says why."""

    subject_ref: Id


class Checkout(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """Who pays, by either name, and for which product of the catalog, by either name."""

    subject_ref: Id | UnsetType = UNSET
    account: Id | UnsetType = UNSET
    product_code: Id | UnsetType = UNSET
    product: Id | UnsetType = UNSET


class OpenCheckout(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What an account is to pay for."""

    product: Id


class PaymentWebhook(Struct, kw_only=True, gc=False):
    """What a payment provider sends, in its own shape, signed in its own way."""


class SetTopUp(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """When an account is topped up, up to what, and within which bounds of money."""

    threshold: Units
    target: Units
    product: Id | UnsetType | None = UNSET
    unit_price: Units | UnsetType | None = UNSET
    currency: Annotated[str, Meta(pattern="^[A-Za-z]{3}$")] | UnsetType | None = UNSET
    daily_cap: Units | UnsetType | None = UNSET
    monthly_cap: Units | UnsetType | None = UNSET
    cool_down: Span | UnsetType | None = UNSET


class SetOverage(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """To which of the provider's meters usage beyond the units is reported."""

    meter: Annotated[str, Meta(min_length=1, max_length=100)]


class Arrived(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """Whether a batch in doubt arrived at the provider."""

    arrived: bool


class Nothing(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """Nothing more than the address says."""


def parse(shape: type[B], body: bytes) -> B:
    """Return the body of a request; an empty one is an empty object.

    Raises:
        InvalidInput: It is not JSON, or not of this shape; the message names the place. Or a name
            comes twice in an object: whoever read it before us may have taken the other value.
    """
    found = _decoded(shape, body)
    if isinstance(found, Batch):
        _refuse_other_lists([bytes(raw) for raw in found.items], body)
    elif body.count(b":") > 1:
        _refuse_doubled(body)
    return found


def parse_arguments(shape: type[B], body: bytes) -> dict[str, Any]:
    """Return what a body gives, as arguments of the verb; as quick as may be.

    Raises:
        InvalidInput: As for `parse`.
    """
    given = arguments(_decoded(shape, body))
    # Each name is followed by a colon. Where there are no more of them than names that were found,
    # none came twice: 0.1 us, where looking for the names takes two.
    colons = body.count(b":")
    if colons > len(given) and colons > len(given) + sum(
        [len(value) for value in given.values() if type(value) is dict]
    ):
        _refuse_doubled(body)
    return given


def _decoded(shape: type[B], body: bytes) -> B:
    try:
        decoder: msgspec.json.Decoder[B] = _decoder(shape)
        return decoder.decode(body or b"{}")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise InvalidInput(str(problem)) from None


# Every text, and whether it is a name: where no two names are alike, no object has one twice.
_TEXTS = re.compile(rb'"([^"\\]*)"\s*(:?)').findall
_BEFORE_ITEMS = re.compile(rb'\s*\{\s*"items"\s*:\s*\[\s*').fullmatch


def _refuse_doubled(body: bytes) -> None:
    """Refuse a body, known to be JSON, in which an object has a name twice.

    RFC 8259 (4) leaves it open which one counts, so two readers may understand two things.
    """
    if b"\\" not in body:
        names = [text for text, colon in _TEXTS(body) if colon]
        if len(names) == len(set(names)):
            return
    try:
        json.loads(body, object_pairs_hook=_once, parse_int=str, parse_float=str)
    except RecursionError as problem:
        raise InvalidInput(str(problem)) from None


def _refuse_other_lists(items: list[bytes], body: bytes) -> None:
    """Refuse a batch that has its list twice: before the one that counts is only its beginning.

    Its items are parsed, and looked at, one by one, so here nothing is parsed again.
    """
    end = _before(body, len(body)) - 1  # the brace
    end = _before(body, end) - 1  # the bracket
    for item in reversed(items):
        end = _before(body, end) - len(item)
    if not _BEFORE_ITEMS(body[:end]):
        raise InvalidInput("the body must be an object with one list of items, and nothing else")


def _before(body: bytes, end: int) -> int:
    """Return where what stands before `end` ends, but for white space and a comma."""
    while body[end - 1] in b" \t\r\n,":
        end -= 1
    return end


def _once(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise InvalidInput(f"the name {name!r:.80} comes twice in an object of the body")
        seen.add(name)


def arguments(body: Struct) -> dict[str, Any]:
    """Return what a body gives, as arguments of the verb."""
    given = {name: value for name, value in asdict(body).items() if value is not UNSET}
    if isinstance(body, Entitle) and "grants" in given:
        given["grants"] = [arguments(grant) for grant in given["grants"]]
    return given


@functools.cache
def _decoder(shape: type[B]) -> msgspec.json.Decoder[B]:
    return msgspec.json.Decoder(shape)
