"""Payments from the command line: what is known, checkouts, the pull, top-ups, overage.

Who is paid is told by the settings of the service, such as TILLROLL_STRIPE_SECRET_KEY.
"""

from __future__ import annotations

from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

import tillroll
from tillroll.cli import terminal as c
from tillroll.cli.options import RequestId
from tillroll.cli.terminal import Common
from tillroll.cli.views import table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tillroll.payments.desk import Desk, Kept
    from tillroll.payments.facts import Payment
    from tillroll.payments.overage import Overage
    from tillroll.payments.subscribing import Subscription
    from tillroll.payments.topups import TopUp
    from tillroll.stores.base import Reader

payments_app = App(name="payments", help="What payment providers told; checkouts; the pull.")
topup_app = App(name="topup", help="Auto top-up: set, show, pause, resume.")
overage_app = App(name="overage", help="Usage reported to a provider's meters.")
APPS = (payments_app, topup_app, overage_app)

LISTED_MAX = 1_000  # of each kind

Wallet = Annotated[str, Parameter(help="The kind of credits.")]
Money = Annotated[str | None, Parameter(help='Of the currency, such as "50".')]


@contextmanager
def _desk(common: Common) -> Iterator[Desk]:
    """Open the desk of the provider that the settings name."""
    from tillroll.embedded import open_engine  # noqa: PLC0415 - for these commands only
    from tillroll.server import paying, settings  # noqa: PLC0415

    known = settings.load(given={"database_url": common.db})
    engine = open_engine(common.db)
    try:
        desks = [one for one in paying.desks(known, engine) if hasattr(one.provider, "checkout")]
        if not desks:
            raise tillroll.InvalidInput(
                "no payment provider is set up: set TILLROLL_STRIPE_SECRET_KEY and "
                "TILLROLL_STRIPE_SUCCESS_URL"
            )
        [desk, *_] = desks
        if common.project not in (Common.project, desk.ledger):
            raise tillroll.InvalidInput(
                f"payments are set up for project {desk.ledger!r}, not for {common.project!r}"
            )
        yield desk
        desk.close()
    finally:
        engine.close()


# ---------------------------------------------------------------- payments


@payments_app.command(name="list")
def list_payments(
    account: Annotated[
        str, Parameter(help="Whose; what is nobody's or was refused if left out.")
    ] = "",
    /,
    *,
    common: Common | None = None,
) -> int:
    """List payments with refunds, disputes and what they took back."""
    from tillroll.api import payments as shown  # noqa: PLC0415 - for these commands only

    common = common or Common()
    with common.known() as ledger, ledger.store.read() as reader:
        paid, subscribed, kept = _known(reader, ledger.project, account)
        scale = ledger.store.scale
    payments = [shown.shown_payment(one, scale) for one in paid]
    subscriptions = [shown.shown_subscription(one, scale) for one in subscribed]
    if common.json:
        events = [shown.shown_kept(*one) for one in kept]
        c.print_json({"payments": payments, "subscriptions": subscriptions, "events": events})
        return c.OK
    columns = ("payment", "product", "paid", "units", "taken back", "short", "state")
    lines = table(*columns, whole=("paid", "taken back", "short"))
    for one in payments:
        money = _money(one["amount"], one["currency"])
        lines.add_row(
            *(f"{one['provider']}:{one['id']}", one["product"] or "-", money),
            *(one["units"] or "-", one["taken"], one["shortfall"], _state(one)),
        )
    c.out.print(lines)
    for name, told, again in kept:
        if told.problem is not None:
            c.say(f"{name}: {told.problem}{'' if again else ' (not tried again)'}")
    for one in subscriptions:
        c.say(f"{one['provider']}:{one['id']} {one['status']} on {one['plan'] or 'nothing'}")
        for period in one["periods"]:
            if period["returned"]:
                returned, paid_for = (
                    _money(period[name], period["currency"]) for name in ("returned", "paid")
                )
                money = f"{returned} of {paid_for} went back"
                units = f"{period['taken']} of {period['units']} taken back"
                c.say(f"  {period['invoice']}: {money}, {units}, {period['shortfall']} short")
    return c.OK


def _known(
    reader: Reader, project: str, account: str
) -> tuple[list[Payment], list[Subscription], list[tuple[str, Kept, bool]]]:
    """Return what is known of an account's money, or what needs a look where none is named."""
    from tillroll.payments import settling, subscribing  # noqa: PLC0415 - for these commands only
    from tillroll.payments.desk import kept_of  # noqa: PLC0415

    if account:
        paid = settling.payments_of(reader, project, account, limit=LISTED_MAX)
        return paid, subscribing.subscriptions_of(reader, project, account), []
    return (
        settling.unfollowed(reader, project, limit=LISTED_MAX),
        subscribing.unfollowed(reader, project, limit=LISTED_MAX),
        kept_of(reader, project, limit=LISTED_MAX),
    )


@payments_app.command
def checkout(
    account: str,
    product: str,
    /,
    *,
    request_id: RequestId = None,
    common: Common | None = None,
) -> int:
    """Open the page where an account pays for a pack, a pass or a plan."""
    from tillroll.embedded.answers import new_id  # noqa: PLC0415 - for these commands only

    common = common or Common()
    with _desk(common) as desk:
        url = desk.checkout(account, product, request_id or new_id())
    if common.json:
        c.print_json({"checkout_url": url})
    else:
        c.out.print(url, soft_wrap=True)
    return c.OK


@payments_app.command
def pull(*, common: Common | None = None) -> int:
    """Hear what happened at the provider, whatever webhooks were lost."""
    common = common or Common()
    with _desk(common) as desk:
        found = desk.pull()
    if common.json:
        c.print_json({"heard": found.heard, "kept": found.kept, "more": found.more})
    else:
        c.say(f"[bold green]ok[/] {c.counted(found.heard, 'event')} heard")
        if found.kept:
            c.say(f"   {c.counted(found.kept, 'event')} cannot be followed yet: tried again hourly")
    return c.OK


# ---------------------------------------------------------------- top-ups


@topup_app.command(name="set")
def set_topup(
    account: str,
    /,
    *,
    threshold: Annotated[str, Parameter(help="At or below so many units it is topped up.")],
    target: Annotated[str, Parameter(help="Up to so many units.")],
    product: Annotated[str | None, Parameter(help="The pack that is bought.")] = None,
    unit_price: Annotated[
        str | None, Parameter(help="What one unit costs, without a pack.")
    ] = None,
    currency: Annotated[str | None, Parameter(help="Of the unit price.")] = None,
    daily_cap: Money = None,
    monthly_cap: Money = None,
    cool_down: Annotated[str | None, Parameter(help='Between two, such as "1h".')] = None,
    wallet: Wallet = "credits",
    common: Common | None = None,
) -> int:
    """Have an account topped up when it runs low."""
    from tillroll.payments import topups  # noqa: PLC0415 - for these commands only

    common = common or Common()
    with _desk(common) as desk:
        made = topups.set_top_up(
            desk,
            account,
            threshold=threshold,
            target=target,
            wallet=wallet,
            product=product,
            unit_price=unit_price,
            currency=currency,
            daily_cap=daily_cap,
            monthly_cap=monthly_cap,
            cool_down=cool_down,
        )
        return _show_topup(made, desk.engine.store.scale, common)


@topup_app.command
def show(account: str, /, *, wallet: Wallet = "credits", common: Common | None = None) -> int:
    """Show what tops an account up, and how it stands."""
    from tillroll.payments import topups  # noqa: PLC0415 - for these commands only

    common = common or Common()
    with common.known() as ledger, ledger.store.read() as reader:
        found = topups.top_up_of(reader, ledger.project, account, wallet)
        return _show_topup(found, ledger.store.scale, common)


@topup_app.command
def pause(account: str, /, *, wallet: Wallet = "credits", common: Common | None = None) -> int:
    """Charge nothing more until it is resumed."""
    from tillroll.payments import topups  # noqa: PLC0415 - for these commands only

    common = common or Common()
    with _desk(common) as desk:
        made = topups.pause(desk, account, wallet)
        return _show_topup(made, desk.engine.store.scale, common)


@topup_app.command
def resume(account: str, /, *, wallet: Wallet = "credits", common: Common | None = None) -> int:
    """Look at the balance again, whatever it was paused or waited for."""
    from tillroll.payments import topups  # noqa: PLC0415 - for these commands only

    common = common or Common()
    with _desk(common) as desk:
        made = topups.resume(desk, account, wallet)
        return _show_topup(made, desk.engine.store.scale, common)


def _show_topup(found: TopUp, scale: int, common: Common) -> int:
    facts = found.shown(scale)
    if not common.json:
        for name in ("daily_cap", "monthly_cap", "pending_amount"):
            if facts[name] is not None:
                facts[name] = _money(facts[name], found.currency)
    return _show(facts, common)


# ---------------------------------------------------------------- overage


@overage_app.command(name="set")
def set_overage(
    account: str,
    meter: Annotated[str, Parameter(help="The event name of the provider's meter.")],
    /,
    *,
    wallet: Wallet = "credits",
    common: Common | None = None,
) -> int:
    """Report what an account uses beyond its units, from now on."""
    from tillroll.payments import overage  # noqa: PLC0415 - for these commands only

    common = common or Common()
    with _desk(common) as desk:
        made = overage.set_overage(desk, account, meter, wallet=wallet)
        return _show_overage(made, desk.engine.store.scale, common)


@overage_app.command(name="show")
def show_overage(
    account: str, /, *, wallet: Wallet = "credits", common: Common | None = None
) -> int:
    """Show what is reported of an account, and how far that is."""
    from tillroll.payments import overage  # noqa: PLC0415 - for these commands only

    common = common or Common()
    with common.known() as ledger, ledger.store.read() as reader:
        found = overage.overage_of(reader, ledger.project, account, wallet)
        return _show_overage(found, ledger.store.scale, common)


@overage_app.command
def stop(account: str, /, *, wallet: Wallet = "credits", common: Common | None = None) -> int:
    """Report nothing more of an account."""
    from tillroll.payments import overage  # noqa: PLC0415 - for these commands only

    common = common or Common()
    with _desk(common) as desk:
        made = overage.stop_overage(desk, account, wallet)
        return _show_overage(made, desk.engine.store.scale, common)


@overage_app.command
def resolve(
    account: str,
    /,
    *,
    arrived: Annotated[bool, Parameter(help="Whether the provider has the batch.")],
    wallet: Wallet = "credits",
    common: Common | None = None,
) -> int:
    """Say whether a batch in doubt arrived; then go on."""
    from tillroll.payments import overage  # noqa: PLC0415 - for these commands only

    common = common or Common()
    with _desk(common) as desk:
        made = overage.resolve(desk, account, arrived=arrived, wallet=wallet)
        return _show_overage(made, desk.engine.store.scale, common)


def _show_overage(found: Overage, scale: int, common: Common) -> int:
    from tillroll.api.payments import shown_overage  # noqa: PLC0415 - for these commands only

    return _show(shown_overage(found, scale), common)


def _show(facts: dict[str, Any], common: Common) -> int:
    if common.json:
        c.print_json(facts)
        return c.OK
    lines = table("what", "value")
    for name, value in facts.items():
        if value is not None:
            lines.add_row(name.replace("_", " "), str(value))
    c.out.print(lines)
    return c.OK


def _money(amount: Any, currency: str | None) -> str:
    """Return money as people write it: of 1999 of the smallest unit, "19.99 USD"."""
    from tillroll.payments.facts import decimals_of  # noqa: PLC0415 - for these commands only

    if amount is None or currency is None:
        return "-" if amount is None else str(amount)
    decimals = decimals_of(currency)
    return f"{Decimal(amount).scaleb(-decimals):,.{decimals}f} {currency.upper()}"


def _state(payment: dict[str, Any]) -> str:
    if payment["refused"]:
        return f"{payment['refused']} ({payment['account']})"
    return "told otherwise since" if payment["contradicted"] else "ok"
