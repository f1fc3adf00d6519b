"""The payment providers that the settings ask for, their desks, and their rounds as jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tillroll.api.keys import check_project, ledger_name
from tillroll.jobs import Job
from tillroll.ledger.errors import InvalidInput
from tillroll.payments.desk import Desk
from tillroll.payments.rounds import rounds
from tillroll.payments.signed import Signed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tillroll.engine import Engine
    from tillroll.payments.provider import Listener
    from tillroll.server.settings import Settings


def desks(settings: Settings, engine: Engine) -> list[Desk]:
    """Return a desk for each payment provider that is set up.

    Raises:
        InvalidInput: A secret is none, or the extra [stripe] is missing.
    """
    return [Desk(engine, ledger, listener) for ledger, listener in listeners(settings)]


def listeners(settings: Settings) -> list[tuple[str, Listener]]:
    """Return each payment provider that is set up, after the ledger that it is about.

    Raises:
        InvalidInput: A secret is none, or the extra [stripe] is missing.
    """
    try:
        project = check_project(settings.payments_project)
    except InvalidInput as problem:
        raise InvalidInput(f"settings: payments_project: {problem}") from None
    made: list[tuple[str, Listener]] = []
    if settings.stripe_secret_key is not None:
        made.append(_stripe(settings, project))
    if settings.payments_secret is not None:
        mode = settings.payments_mode
        try:
            signed = Signed(_several(settings.payments_secret), mode=mode)
        except InvalidInput as problem:
            raise InvalidInput(f"settings: payments_secret: {problem}") from None
        made.append((ledger_name(project, mode), signed))
    return made


def _stripe(settings: Settings, project: str) -> tuple[str, Listener]:
    try:
        from tillroll.payments.stripe import Stripe, mode_of  # noqa: PLC0415 - an extra
    except ImportError as problem:
        raise InvalidInput(
            f"Stripe needs its package: pip install 'tillroll[stripe]' ({problem})"
        ) from None
    secret_key = settings.stripe_secret_key or ""
    ledger = ledger_name(project, mode_of(secret_key))
    return ledger, Stripe(
        secret_key,
        _several(settings.stripe_webhook_secret or ""),
        ledger=ledger,
        success_url=settings.stripe_success_url or "",
        cancel_url=settings.stripe_cancel_url or "",
        api_base=settings.stripe_api_base,
    )


def _several(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def jobs(found: Sequence[Desk]) -> list[Job]:
    """Return the rounds of desks as jobs; a provider that is away is no reason to serve nobody."""
    return [
        Job(one.name, one.every, one.run, vital=False, woken=one.woken)
        for desk in found
        for one in rounds(desk)
    ]


__all__ = ["desks", "jobs", "listeners"]
