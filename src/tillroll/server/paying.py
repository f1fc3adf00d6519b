"""The desks that the settings ask for, and their rounds as long as the server runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tillroll.api.keys import check_project, ledger_name
from tillroll.ledger.errors import InvalidInput, TillrollError
from tillroll.payments.desk import Desk
from tillroll.payments.rounds import rounds
from tillroll.payments.signed import Signed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tillroll.engine import Engine
    from tillroll.payments.rounds import Round
    from tillroll.server.settings import Settings

MORE_SECONDS = 0.1  # before the next round of one that has more to do


def desks(settings: Settings, engine: Engine) -> list[Desk]:
    """Return a desk for each payment provider that is set up.

    Raises:
        InvalidInput: A secret is none, or the extra [stripe] is missing.
    """
    made = []
    project = check_project(settings.payments_project)
    if settings.stripe_secret_key is not None:
        made.append(_stripe(settings, engine, project))
    if settings.payments_secret is not None:
        secrets = _several(settings.payments_secret)
        ledger = ledger_name(project, settings.payments_mode)
        made.append(Desk(engine, ledger, Signed(secrets, mode=settings.payments_mode)))
    return made


def _stripe(settings: Settings, engine: Engine, project: str) -> Desk:
    try:
        from tillroll.payments.stripe import Stripe, mode_of  # noqa: PLC0415 - an extra
    except ImportError as problem:
        raise InvalidInput(
            f"Stripe needs its package: pip install 'tillroll[stripe]' ({problem})"
        ) from None
    secret_key = settings.stripe_secret_key or ""
    ledger = ledger_name(project, mode_of(secret_key))
    provider = Stripe(
        secret_key,
        _several(settings.stripe_webhook_secret or ""),
        ledger=ledger,
        success_url=settings.stripe_success_url or "",
        cancel_url=settings.stripe_cancel_url or "",
        api_base=settings.stripe_api_base,
    )
    return Desk(engine, ledger, provider)


def _several(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


async def keep(one: Round, tell: Callable[[str, TillrollError], None]) -> None:
    """Do a round again and again until cancelled; one that fails is told and tried again."""
    while True:
        more = False
        try:
            more = bool((await asyncio.to_thread(one.run)).get("more"))
        except TillrollError as problem:
            tell(one.name, problem)
        await asyncio.sleep(MORE_SECONDS if more else one.every)


__all__ = ["desks", "keep", "rounds"]
