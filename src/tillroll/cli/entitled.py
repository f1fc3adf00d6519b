"""What is sold and what may be used: buying, subscribing, ending, and asking about access."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from tillroll.cli import terminal as c
from tillroll.cli import views
from tillroll.cli.options import (
    Actor,
    Attribute,
    Meter,
    Reason,
    RequestId,
    Tag,
    Units,
)
from tillroll.cli.terminal import Common, print_json, show_receipt

When = Annotated[
    Literal["now", "period_end"], Parameter(help="At once, or with the period at hand.")
]
Status = Annotated[
    Literal["trialing", "active", "past_due", "paused"] | None,
    Parameter(help="past_due may be used and is not renewed, paused is neither."),
]
End = Annotated[str | None, Parameter(help='ISO 8601 with a zone; "never" takes it back.')]
Source = Annotated[str | None, Parameter(help="Where it came from, such as a payment.")]
At = Annotated[str | None, Parameter(help="A moment of the past, ISO 8601.")]


def buy(
    account: str,
    product: str,
    /,
    *,
    quantity: int = 1,
    version: Annotated[int | None, Parameter(help="Of the catalog; the one in force.")] = None,
    cost_basis: str | None = None,
    source: Source = None,
    tag: Tag = None,
    request_id: RequestId = None,
    reason: Reason = None,
    actor: Actor = None,
    common: Common | None = None,
) -> None:
    """Give what a pack or a pass of the catalog says: units, or time."""
    common = common or Common()
    with common.open() as ledger:
        receipt = ledger.buy(
            account,
            product,
            quantity=quantity,
            version=version,
            cost_basis=cost_basis,
            source=source,
            tags=c.pairs(tag or (), "--tag"),
            request_id=request_id,
            reason=reason,
            actor=actor,
        )
    show_receipt(receipt, common)


def redeem(
    account: str,
    coupon: str,
    /,
    *,
    request_id: RequestId = None,
    reason: Reason = None,
    actor: Actor = None,
    common: Common | None = None,
) -> None:
    """Give what a coupon of the catalog says."""
    common = common or Common()
    with common.open() as ledger:
        receipt = ledger.redeem(account, coupon, request_id=request_id, reason=reason, actor=actor)
    show_receipt(receipt, common)


def subscribe(
    account: str,
    plan: str,
    /,
    *,
    name: str = "subscription",
    when: When = "now",
    version: Annotated[int | None, Parameter(help="Of the catalog; the one in force.")] = None,
    status: Status = None,
    started_at: str | None = None,
    no_trial: Annotated[bool, Parameter(negative=(), help="Begin without the trial.")] = False,
    trial_ends_at: str | None = None,
    ends_at: End = None,
    paid_until: End = None,
    source: Source = None,
    request_id: RequestId = None,
    reason: Reason = None,
    actor: Actor = None,
    common: Common | None = None,
) -> None:
    """Put an account on a plan of the catalog, or move it to another plan or version."""
    common = common or Common()
    with common.open() as ledger:
        receipt = ledger.subscribe(
            account,
            plan,
            name=name,
            when=when,
            version=version,
            status=status,
            started_at=started_at,
            trial=not no_trial,
            trial_ends_at=trial_ends_at,
            ends_at=ends_at,
            paid_until=paid_until,
            source=source,
            request_id=request_id,
            reason=reason,
            actor=actor,
        )
        available = ledger.balance(account).available  # what it brings came after the entry
    show_receipt(receipt, common, available)


def entitle(
    account: str,
    name: str,
    /,
    *,
    kind: Literal["feature", "subscription", "time_pass"] = "feature",
    feature: Annotated[
        list[str] | None,
        Parameter(negative=(), help="NAME, or NAME=VALUE: true, false, a number, a text."),
    ] = None,
    status: Status = None,
    product: str | None = None,
    ends_at: End = None,
    lasts: Annotated[str | None, Parameter(help="How long, such as 30d.")] = None,
    source: Source = None,
    request_id: RequestId = None,
    reason: Reason = None,
    actor: Actor = None,
    common: Common | None = None,
) -> None:
    """Give an entitlement on terms of your own; by its name alone, the feature of that name."""
    common = common or Common()
    with common.open() as ledger:
        receipt = ledger.entitle(
            account,
            name,
            kind=kind,
            features=_features(feature) if feature else None,
            status=status,
            product=product,
            ends_at=ends_at,
            lasts=lasts,
            source=source,
            request_id=request_id,
            reason=reason,
            actor=actor,
        )
        available = ledger.balance(account).available
    show_receipt(receipt, common, available)


def _features(texts: list[str]) -> dict[str, bool | int | str]:
    found: dict[str, bool | int | str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or value in ("true", "false"):
            found[name] = value != "false"
        else:
            found[name] = int(value) if value.isdecimal() else value
    return found


def change_entitlement(
    account: str,
    name: str,
    /,
    *,
    status: Status = None,
    trial_ends_at: str | None = None,
    ends_at: End = None,
    paid_until: End = None,
    request_id: RequestId = None,
    reason: Reason = None,
    actor: Actor = None,
    common: Common | None = None,
) -> None:
    """Change how an entitlement stands or when it ends; what is left out stays."""
    common = common or Common()
    with common.known() as ledger:
        receipt = ledger.change_entitlement(
            account,
            name,
            status=status,
            trial_ends_at=trial_ends_at,
            ends_at=ends_at,
            paid_until=paid_until,
            request_id=request_id,
            reason=reason,
            actor=actor,
        )
    show_receipt(receipt, common)


def end_entitlement(
    account: str,
    name: str,
    /,
    *,
    when: When = "now",
    request_id: RequestId = None,
    reason: Reason = None,
    actor: Actor = None,
    common: Common | None = None,
) -> None:
    """End an entitlement; what it granted stays until it expires."""
    common = common or Common()
    with common.known() as ledger:
        receipt = ledger.end_entitlement(
            account, name, when=when, request_id=request_id, reason=reason, actor=actor
        )
    show_receipt(receipt, common)


def access(
    account: str,
    operation: str | None = None,
    /,
    *,
    feature: Annotated[str | None, Parameter(help="What it must be entitled to.")] = None,
    units: Units = None,
    meter: Meter = None,
    model: str | None = None,
    attribute: Attribute = None,
    wallet: str | None = None,
    tag: Tag = None,
    at: At = None,
    common: Common | None = None,
) -> int:
    """Show whether an account may do something, why, until when, and what would help."""
    common = common or Common()
    with common.known() as ledger:
        found = ledger.access(
            account,
            operation,
            feature=feature,
            units=units,
            meters=c.pairs(meter or (), "--meter"),
            model=model,
            attributes=c.pairs(attribute or (), "--attribute"),
            wallet=wallet,
            tags=c.pairs(tag or (), "--tag"),
            at=at,
        )
    if common.json:
        print_json(found.to_dict())
    else:
        views.show_access(found)
    return c.OK if found.allowed else c.REFUSED


def entitlements(account: str, /, *, at: At = None, common: Common | None = None) -> None:
    """Show all that an account may use: subscriptions, time passes, features, usage packs."""
    common = common or Common()
    with common.known() as ledger:
        found = ledger.entitlements(account, at=at)
    if common.json:
        print_json(found)
    else:
        views.show_entitlements(found)


COMMANDS = (
    buy,
    redeem,
    subscribe,
    entitle,
    change_entitlement,
    end_entitlement,
    access,
    entitlements,
)

__all__ = ["COMMANDS"]
