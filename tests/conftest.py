"""Servers that tests ask for by name; each worker that is asked starts its own, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.cluster import Cluster
    from tests.servers.pgbouncer import PgBouncer


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A PostgreSQL server that all tests of one worker share: it is not stopped, only used."""
    from tests.servers.cluster import Cluster  # noqa: PLC0415 - only where a server is asked for

    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def postgres_database(postgres: Cluster) -> Iterator[str]:
    """The name of a new, empty database on the shared server."""
    name = postgres.create_database()
    yield name
    postgres.drop_database(name)


@pytest.fixture
def postgres_url(postgres: Cluster, postgres_database: str) -> str:
    """The URL of a new, empty database on the shared server, by its socket."""
    return postgres.url(postgres_database)


@pytest.fixture
def postgres_role(postgres: Cluster, postgres_database: str) -> Iterator[str]:
    """The name of a new role, which may log in and has no rights."""
    name = f"role_of_{postgres_database}"
    postgres.run(f"CREATE ROLE {name} LOGIN")
    yield name
    postgres.run(f"DROP OWNED BY {name}", database=postgres_database)
    postgres.run(f"DROP ROLE {name}")


@pytest.fixture(scope="session")
def kept_postgres_url(postgres: Cluster) -> str:
    """The URL of a database that tests share, each with accounts of its own."""
    return postgres.url(postgres.create_database())


@pytest.fixture(scope="session")
def kept_appending_url(postgres: Cluster) -> str:
    """The same of a database that is written by appending."""
    return appending(postgres.url(postgres.create_database()))


@pytest.fixture
def appending_url(postgres_url: str) -> str:
    """The URL of a new database that is written by appending."""
    return appending(postgres_url)


def appending(url: str) -> str:
    """Have a database written by appending from now on."""
    from tillroll.stores.postgres import PostgresStore  # noqa: PLC0415 - as above

    store = PostgresStore(url)
    store.set_writing("append")
    store.close()
    return url


@pytest.fixture
def own_postgres() -> Iterator[Cluster]:
    """A PostgreSQL server of this test alone, which may stop, kill and reconfigure it."""
    from tests.servers.cluster import Cluster  # noqa: PLC0415 - only where a server is asked for

    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def pgbouncer(postgres: Cluster) -> Iterator[PgBouncer]:
    """PgBouncer before the shared server, pooling by transaction, two connections a database."""
    from tests.servers.pgbouncer import PgBouncer, program  # noqa: PLC0415 - as above

    if not program():
        pytest.skip("needs PgBouncer: apt-get install pgbouncer")
    with PgBouncer(postgres) as bouncer:
        yield bouncer
