"""What an operator does to the tables in PostgreSQL: steps, rights of a role, row-level security.

The rights are what the statements of `postgres_rows` need and nothing else: a role that holds them
cannot change or delete what is in the history, whatever runs under it. Each group of statements is
one database transaction that gives up where it does not get a lock.
"""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Literal

import psycopg
from psycopg import errors, sql

from tillroll.ledger.errors import InvalidInput, StoreBusy, StoreReadOnly
from tillroll.stores.base import Migrated, migrations, pending
from tillroll.stores.postgres import (
    MIGRATE_LOCK_SECONDS,
    PostgresStore,
    applied_steps,
    connect,
    known_if_lost,
    parsed,
    spread_steps,
    translated,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from psycopg.sql import Composed

    from tillroll.stores.postgres import Connection

# What the application does to each table. Erasing metadata (UPDATE of entries) is the owner's, as
# is marking a ledger as back from elsewhere (DELETE from meta).
RIGHTS = {
    "tillroll_accounts": "SELECT, INSERT, UPDATE",
    "tillroll_entries": "SELECT, INSERT",
    "tillroll_refusals": "SELECT, INSERT, UPDATE, DELETE",
    "tillroll_replays": "SELECT, INSERT, UPDATE, DELETE",
    "tillroll_price_versions": "SELECT, INSERT",
    "tillroll_meta": "SELECT, INSERT, UPDATE",
    "tillroll_registry": "SELECT, INSERT, UPDATE, DELETE",
    "tillroll_outbox": "SELECT, INSERT, UPDATE, DELETE",
    "tillroll_deliveries": "SELECT, INSERT, UPDATE, DELETE",
    "tillroll_leases": "SELECT, INSERT, UPDATE",
    "tillroll_notes": "SELECT, INSERT, UPDATE, DELETE",
    "tillroll_migrations": "SELECT",
    "tillroll_postings": "SELECT",
}
FUNCTIONS = ("tillroll_keep()", "tillroll_fix()")
POLICY = "tillroll_project"
# Asked once a statement, not once a row. No setting, no rows.
_MINE = "project = (SELECT current_setting('tillroll.project', true))"
# Accounts are seen through their own policy here.
_MY_ACCOUNT = "EXISTS (SELECT 1 FROM tillroll_accounts AS a WHERE a.account_id = {}.account_id)"
# The registry and the leases have none: what a server keeps there is about all projects.
POLICIES = {
    "tillroll_accounts": _MINE,
    "tillroll_entries": _MY_ACCOUNT.format("tillroll_entries"),
    "tillroll_refusals": _MINE,
    "tillroll_replays": _MY_ACCOUNT.format("tillroll_replays"),
    "tillroll_price_versions": _MINE,
    "tillroll_outbox": _MINE,
    "tillroll_deliveries": _MINE,
    "tillroll_notes": _MINE,
}
INVOKER_VERSION_MIN = 150_000  # where a view can look at tables with the rights of who asks
_SCHEMA = """
SELECT coalesce(
    (SELECT relnamespace::regnamespace::text FROM pg_class
     WHERE oid = to_regclass('tillroll_entries')),
    quote_ident(current_schema())
)
"""
_ROLE = """
SELECT pg_has_role(r.oid, coalesce(
    (SELECT relowner FROM pg_class WHERE oid = to_regclass('tillroll_entries')),
    (SELECT oid FROM pg_roles WHERE rolname = current_user)
), 'USAGE') FROM pg_roles AS r WHERE r.rolname = %s
"""
_OWNED = """
SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass('tillroll_entries')
"""
_SECURED = """
SELECT relrowsecurity FROM pg_class WHERE oid = to_regclass('tillroll_entries')
"""


def migrate(
    url: str,
    *,
    plan: bool = False,
    scale: int | None = None,
    role: str | None = None,
    row_level_security: bool | None = None,
    writing: Literal["locks", "append"] | None = None,
    distributed: Literal["citus"] | None = None,
) -> Migrated:
    """Apply what is pending, then do the rest that is asked for; see `tillroll.migrate`."""
    dsn, shown = parsed(url)
    known = migrations("postgres")
    with _connected(dsn, shown) as connection:
        applied = applied_steps(connection)
        steps = tuple(pending(known, applied))
        spread = spread_steps(connection) if applied else 0
        extra: list[Composed] = []
        if row_level_security is not None:
            extra += _policies(connection, on=row_level_security)
        if role is not None:
            secured = row_level_security
            if secured is None:
                secured = bool(connection.execute(_SECURED).fetchone() == (True,))
            extra += _rights(connection, role, shown, secured=secured)
        if not plan:
            with closing(PostgresStore(url, scale=scale)) as store:
                if distributed is not None:
                    store.distribute()
                if writing is not None:
                    store.set_writing(writing)
            if extra:
                _run(connection, extra, shown)
        texts = [statement.as_string(connection) for statement in extra]
    if distributed is not None or spread:
        lacking = [step for step in migrations("citus") if step.number > spread]
        texts = [step.sql.rstrip().removesuffix(";") for step in lacking] + texts
    return Migrated(shown, plan, steps, tuple(texts), known[-1].number)


@contextmanager
def _connected(dsn: str, shown: str) -> Iterator[Connection]:
    connection = connect(dsn, shown)
    try:
        yield connection
    except psycopg.Error as problem:
        raise translated(shown, problem) from problem
    finally:
        connection.close()


def _run(connection: Connection, statements: Sequence[Composed], shown: str) -> None:
    if connection.execute(_OWNED).fetchone() != (True,):
        # PostgreSQL would only warn that nothing was granted.
        raise StoreReadOnly(
            f"{shown}: rights and policies are the owner's to give: migrate under that role; "
            f"nothing of them was written"
        )
    try:
        with known_if_lost(connection, shown, "giving rights"), connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = '{MIGRATE_LOCK_SECONDS}s'".encode())
            for statement in statements:
                connection.execute(statement)
    except errors.LockNotAvailable as problem:
        raise StoreBusy(
            f"{shown}: somebody keeps a table locked. Migrate again; of the rights and policies "
            f"nothing was written"
        ) from problem


def _rights(connection: Connection, role: str, shown: str, *, secured: bool) -> list[Composed]:
    """Return the statements that give a role what the application needs, and nothing else."""
    found = connection.execute(_ROLE, (role,)).fetchone()
    if found is None:
        raise InvalidInput(f"{shown} has no role {role!r}: CREATE ROLE makes one")
    if found[0]:
        raise InvalidInput(
            f"the role {role!r} may do what the owner may, so rights cannot limit it: "
            f"name another one"
        )
    rights = dict(RIGHTS)
    if secured and connection.info.server_version < INVOKER_VERSION_MIN:
        del rights["tillroll_postings"]  # it would show all projects
    schema = connection.execute(_SCHEMA).fetchall()[0][0]
    parts = {
        "role": sql.Identifier(role),
        "schema": sql.SQL(schema),
        "all": sql.SQL(", ".join(RIGHTS)),
        "functions": sql.SQL(", ".join(FUNCTIONS)),
    }
    lines = [
        "REVOKE ALL ON {all} FROM PUBLIC",
        "REVOKE ALL ON FUNCTION {functions} FROM PUBLIC",
        "REVOKE ALL ON {all} FROM {role}",
        "GRANT USAGE ON SCHEMA {schema} TO {role}",
        *(f"GRANT {rights[table]} ON {table} TO {{role}}" for table in rights),
    ]
    return [sql.SQL(line).format(**parts) for line in lines]


def _policies(connection: Connection, *, on: bool) -> list[Composed]:
    """Return the statements that show each session the rows of its project only, or end that."""
    lines = []
    for table, condition in POLICIES.items():
        lines.append(f"DROP POLICY IF EXISTS {POLICY} ON {table}")
        if on:
            lines.append(f"CREATE POLICY {POLICY} ON {table} USING ({condition})")
        lines.append(f"ALTER TABLE {table} {'ENABLE' if on else 'DISABLE'} ROW LEVEL SECURITY")
    if connection.info.server_version >= INVOKER_VERSION_MIN:
        lines.append(f"ALTER VIEW tillroll_postings SET (security_invoker = {str(on).lower()})")
    elif on:
        lines.append("REVOKE SELECT ON tillroll_postings FROM PUBLIC")
    return [sql.SQL(line).format() for line in lines]


__all__ = ["RIGHTS", "migrate"]
