"""`tillroll serve`, and what goes with it: projects, API keys, settings."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TypeVar

from rich.markup import escape

import tillroll
from tillroll.cli import terminal as c
from tillroll.cli.views import table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from tillroll.api.keys import ApiKey, Mode
    from tillroll.engine import Engine
    from tillroll.server.settings import Settings
    from tillroll.stores.base import Writer

T = TypeVar("T")

_NEEDS = "the service needs more packages: pip install 'tillroll[server]'"


def serve(common: c.Common, config: str | None, given: Mapping[str, object]) -> int:
    """Make the first key where there is none, then serve until told to stop."""
    try:
        from tillroll.server import checking, running  # noqa: PLC0415 - an extra, slow to import
        from tillroll.server import settings as known  # noqa: PLC0415
    except ImportError as problem:
        raise tillroll.InvalidInput(f"{_NEEDS} ({problem})") from None
    settings = known.load(config, given={"database_url": _chosen(common), **given})
    checking.check(settings)
    try:
        checking.look_at_address(settings)
        settings = checking.with_port(settings)
    except OSError as problem:
        said = OSError(f"cannot listen at {_url(settings)}: {problem.strerror or problem}")
        c.show_failure("address", said, written="nothing", as_json=common.json)
        return c.FAILED
    secret = running.first_key(settings)
    url = _url(settings)
    if common.json:
        c.print_json({"url": url, "api_key": secret, "settings": known.shown(settings)})
    else:
        if secret is not None:
            c.say("[bold]API key[/] (admin, live mode of the project default; shown once):")
            c.out.print(f"  {secret}", style="bold green", soft_wrap=True)
        where = known.without_password(settings.database_url)
        c.say(f"Serving [bold]{escape(where)}[/] at {escape(url)}")
    sys.stdout.flush()
    return c.OK if running.serve(settings) else c.FAILED


def _url(settings: Settings) -> str:
    """Return where the service is, or its socket."""
    if settings.socket is not None:
        return settings.socket
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{'https' if settings.tls_key else 'http'}://{host}:{settings.port}"


def config_check(common: c.Common, config: str | None) -> int:
    """Read the settings as `serve` does, and show what they come to."""
    from tillroll.server import checking  # noqa: PLC0415 - an extra
    from tillroll.server import settings as known  # noqa: PLC0415

    settings = known.load(config, given={"database_url": _chosen(common)})
    checking.check(settings)
    shown = known.shown(settings)
    if common.json:
        c.print_json({"ok": True, "settings": shown})
        return c.OK
    lines = table("setting", "value", "variable")
    for name, value in shown.items():
        lines.add_row(name, "" if value is None else str(value), known.PREFIX + name.upper())
    c.out.print(lines)
    c.say("[bold green]ok[/] the settings make sense")
    return c.OK


def _chosen(common: c.Common) -> str | None:
    """Return where the ledger is by the command line or its variable, None where neither says."""
    return None if common.db == c.Common.db else common.db


def with_engine(common: c.Common, act: Callable[[Writer, Engine], T]) -> T:
    """Do something in the ledger's registry."""
    from tillroll.embedded import open_engine  # noqa: PLC0415 - for these commands only

    engine = open_engine(common.db)
    try:
        return engine.perform(lambda tx: act(tx, engine))
    finally:
        engine.close()


def create_project(common: c.Common, name: str) -> int:
    """Make a project and an admin key for its live mode."""
    from tillroll.api import keys  # noqa: PLC0415 - for these commands only

    keys.check_project(name)

    def act(tx: Writer, engine: Engine) -> tuple[ApiKey, str]:
        if tx.document("project", name) is not None:
            raise tillroll.InvalidInput(f"there is a project {name!r}; see tillroll keys create")
        keys.put_project(tx, name, engine.clock())
        key, secret = keys.new_key(name, "live", name="first", scopes=["admin"], at=engine.clock())
        return keys.put_key(tx, key), secret

    return show_made(with_engine(common, act), common)


def list_projects(common: c.Common) -> int:
    """Print the projects."""
    from tillroll.api import keys  # noqa: PLC0415 - for these commands only
    from tillroll.ledger.calendar import show_instant  # noqa: PLC0415

    with common.known() as ledger, ledger.store.read() as reader:
        found = keys.projects_in(reader)
    rows = [{"name": one.name, "created_at": show_instant(one.created_at)} for one in found]
    if common.json:
        c.print_json({"projects": rows})
        return c.OK
    lines = table("project", "created at")
    for row in rows:
        lines.add_row(*row.values())
    c.out.print(lines)
    return c.OK


def create_key(
    common: c.Common,
    name: str,
    scopes: list[str],
    mode: Mode,
    accounts: list[str],
    expires_in: str | None,
) -> int:
    """Make an API key for the project of the options."""
    from tillroll.api import keys  # noqa: PLC0415 - for these commands only
    from tillroll.ledger import calendar  # noqa: PLC0415

    life = None if expires_in is None else calendar.span(expires_in, "expires_in")

    def act(tx: Writer, engine: Engine) -> tuple[ApiKey, str]:
        at = engine.clock()
        keys.put_project(tx, keys.check_project(common.project), at)
        key, secret = keys.new_key(
            common.project,
            mode,
            name=name,
            scopes=scopes,
            accounts=accounts,
            at=at,
            expires_at=None if life is None else at + life,
        )
        return keys.put_key(tx, key), secret

    return show_made(with_engine(common, act), common)


def list_keys(common: c.Common) -> int:
    """Print every key of every project."""
    from tillroll.api import keys  # noqa: PLC0415 - for these commands only

    with common.known() as ledger, ledger.store.read() as reader:
        return show_keys(keys.keys_in(reader), common)


def revoke_key(common: c.Common, key_id: str) -> int:
    """End a key, and return when no server takes it any more."""
    from tillroll.api import keys  # noqa: PLC0415 - for these commands only

    def act(tx: Writer, engine: Engine) -> ApiKey:
        return keys.end_key(tx, key_id, engine.clock(), ledger=None)

    key = with_engine(common, act)
    time.sleep(keys.LEASE_SECONDS)
    if common.json:
        c.print_json(plain(key))
    else:
        c.say(f"[bold green]ok[/] {key.id} ({key.shown}) opens nothing any more")
    return c.OK


def show_made(made: tuple[ApiKey, str], common: c.Common) -> int:
    """Print a key that was just made, with its secret."""
    key, secret = made
    if common.json:
        c.print_json({**plain(key), "secret": secret})
        return c.OK
    c.say(f"[bold green]ok[/] {key.id}, {', '.join(key.scopes)}; the key, shown once:")
    c.out.print(f"  {secret}", style="bold green", soft_wrap=True)
    return c.OK


def show_keys(found: Iterable[ApiKey], common: c.Common) -> int:
    """Print keys as they may be shown."""
    if common.json:
        c.print_json({"keys": [plain(key) for key in found]})
        return c.OK
    lines = table("id", "name", "project", "mode", "key", "scopes", "accounts", "state")
    for key in found:
        shown = plain(key)
        state = "revoked" if key.revoked_at else f"until {shown['expires_at'] or 'revoked'}"
        accounts = ", ".join(key.accounts) or "all"
        lines.add_row(
            *(key.id, key.name, key.project, key.mode, key.shown, ", ".join(key.scopes)),
            *(accounts, state),
        )
    c.out.print(lines)
    return c.OK


def plain(key: ApiKey) -> dict[str, Any]:
    """Return a key as it may be shown."""
    from tillroll.api.administration import shown  # noqa: PLC0415 - for these commands only

    found: dict[str, Any] = shown(key)
    del found["secret"]
    return found | {"scopes": list(key.scopes), "accounts": list(key.accounts)}
