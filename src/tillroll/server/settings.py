"""What can be set, by environment or in a TOML file; the environment wins.

`TILLROLL_` and the name in capitals is the variable of a setting; in the file the names are as
they are here. What is unknown in the file is an error, so that a misspelt setting is not lost.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from tillroll.api.app import PER_KEY_MAX
from tillroll.engine import WAITING_MAX
from tillroll.ledger.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "TILLROLL_"
FILE = "TILLROLL_CONFIG"

SECRETS = ("stripe_secret_key", "stripe_webhook_secret", "payments_secret")

Positive = Annotated[int, Meta(ge=1)]


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that can be set, and what it is where nobody sets it.

    Attributes:
        database_url: Where the ledgers are: a SQLite file or PostgreSQL.
        read_database_url: PostgreSQL: a standby to read from; it may be behind.
        host: The address to listen at; only this machine can reach the default.
        port: The port; 0 for any that is free.
        socket: Listen at a Unix socket of this path instead.
        workers: How many processes serve; they share the address.
        tls_certificate: A PEM file: serve HTTPS by itself. A proxy in front can do it as well.
        tls_key: The certificate's key, a PEM file.
        topup_url: Where an account's owner buys units, shown with refusals; {project}, {mode}
            and {account} are filled in.
        per_key_max: How many calls of one API key may be under way in a process.
        waiting_max: How many writes may wait in a process before new ones get a 503.
        request_seconds: How long a request may take to arrive, head and body.
        shutdown_seconds: How long a stop waits for calls under way.
        upkeep_seconds: How often what fell due is booked and measured.
        event_days: How long events are kept that do not wait any more, with their deliveries.
        webhooks_private: Whether webhooks may go to private addresses and over plain HTTP, for
            receivers in one's own network.
        metrics: Whether anybody who reaches the address may read /metrics.
        mcp: Whether agents may read at /mcp, where the extra [mcp] is installed.
        payments_project: Whose payments the following are about.
        stripe_secret_key: Stripe: `sk_test_...` or `sk_live_...`, which says the mode as well.
        stripe_webhook_secret: Stripe: `whsec_...` of the endpoint at
            /v1/payments/stripe/webhook; several, with commas, while one is replaced.
        stripe_success_url: Stripe: where a customer comes back to once he paid.
        stripe_cancel_url: Stripe: where one comes back to who changed his mind.
        stripe_api_base: Stripe: where its API is, if not at its own address.
        payments_secret: `whsec_...` of whoever sends signed payments to
            /v1/payments/signed/webhook; several, with commas, while one is replaced.
        payments_mode: The mode that signed payments are about.
        log_level: What is logged at least.
        log_format: One JSON object a line, or text for people.
        access_log: Whether every call is logged; refusals and failures are in any case.
    """

    database_url: str = "sqlite:///tillroll.db"
    read_database_url: str | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8000
    socket: str | None = None
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    tls_certificate: str | None = None
    tls_key: str | None = None
    topup_url: str | None = None
    per_key_max: Positive = PER_KEY_MAX
    waiting_max: Positive = WAITING_MAX
    request_seconds: Annotated[float, Meta(gt=0)] = 30.0
    shutdown_seconds: Annotated[int, Meta(ge=0)] = 30
    upkeep_seconds: Annotated[float, Meta(gt=0)] = 15.0
    event_days: Annotated[float, Meta(gt=0)] = 30.0
    webhooks_private: bool = False
    metrics: bool = True
    mcp: bool = True
    payments_project: str = "default"
    stripe_secret_key: str | None = None
    stripe_webhook_secret: str | None = None
    stripe_success_url: str | None = None
    stripe_cancel_url: str | None = None
    stripe_api_base: str | None = None
    payments_secret: str | None = None
    payments_mode: Literal["test", "live"] = "live"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"
    access_log: bool = False


def load(
    file: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    given: Mapping[str, object] | None = None,
) -> Settings:
    """Return the settings: what is given, over the environment, over the file, over the defaults.

    Args:
        file: The TOML file; `TILLROLL_CONFIG` of the environment if left out.
        environ: The environment; the process's own if left out.
        given: Settings from elsewhere, such as a command line; None for what is not given.

    Raises:
        InvalidInput: The file cannot be read, or a setting is unknown or makes no sense. The
            message names the place.
    """
    environ = os.environ if environ is None else environ
    file = file or environ.get(FILE)
    values = {} if file is None else _read(Path(file))
    for name in Settings.__struct_fields__:
        value = environ.get(PREFIX + name.upper())
        if value:
            values[name] = _plain(value)
    values.update({name: value for name, value in (given or {}).items() if value is not None})
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as problem:
        raise InvalidInput(f"settings: {problem}") from None
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        raise InvalidInput("settings: tls_certificate and tls_key go together")
    if settings.stripe_secret_key is not None and settings.stripe_success_url is None:
        raise InvalidInput("settings: stripe_secret_key needs stripe_success_url")
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise InvalidInput(f"settings: {path} cannot be read: {problem.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise InvalidInput(f"settings: {path} is not TOML: {problem}") from None


def _plain(value: str) -> str | bool:
    """Return yes and no as such, in any of the usual words."""
    word = value.strip().lower()
    if word in ("true", "yes", "on"):
        return True
    return False if word in ("false", "no", "off") else value


def shown(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain values, without secrets and the passwords of URLs."""
    plain: dict[str, Any] = msgspec.to_builtins(settings)
    for name in SECRETS:
        if plain[name] is not None:
            plain[name] = "***"
    for name in ("database_url", "read_database_url"):
        if plain[name] is not None:
            plain[name] = without_password(plain[name])
    return plain


def without_password(url: str) -> str:
    """Return a URL with its password starred out."""
    scheme, separator, rest = url.partition("://")
    place, at, tail = rest.rpartition("@")
    user, colon, _ = place.partition(":")
    if not (separator and at and colon):
        return url
    return f"{scheme}://{user}:***@{tail}"
