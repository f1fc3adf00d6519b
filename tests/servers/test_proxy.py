"""The proxy loses what it is told to lose, and the server's rows show which it was."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import generators

from tests.servers.cluster import Cluster, wait_for
from tests.servers.proxy import Proxy

Act = Callable[[str, int], None]
LOST = psycopg.OperationalError


@pytest.fixture
def proxy(postgres: Cluster) -> Iterator[Proxy]:
    with Proxy(postgres.port) as proxy:
        yield proxy


@pytest.fixture
def url(postgres: Cluster, postgres_database: str, proxy: Proxy) -> str:
    postgres.run("CREATE TABLE kept (id int)", database=postgres_database)
    return postgres.url(postgres_database, port=proxy.port)


def kept(cluster: Cluster, database: str) -> list[int]:
    """Return what is in the table once nobody else is in the database any more."""
    wait_for(lambda: not cluster.backend_pids(database), 30, "the end of the cut connection")
    return [row for (row,) in cluster.run("SELECT id FROM kept ORDER BY id", database=database)]


def insert(url: str, *ids: int) -> None:
    """Insert each in a transaction of its own."""
    with psycopg.connect(url) as connection:
        for row in ids:
            connection.execute("INSERT INTO kept VALUES (%s)", (row,))
            connection.commit()


def pipeline(url: str, row: int) -> None:
    """Insert by the extended protocol, with a Sync before the one that follows the COMMIT."""
    with psycopg.connect(url, autocommit=True) as connection, connection.pipeline() as queue:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO kept VALUES (%s)", (row,))
        queue.sync()
        connection.execute("COMMIT")


def copy(url: str, row: int) -> None:
    """Insert by COPY, and commit."""
    with psycopg.connect(url) as connection:
        with connection.cursor().copy("COPY kept FROM STDIN") as rows:
            rows.write_row((row,))
        connection.commit()


def test_it_passes_everything_on(proxy: Proxy, url: str) -> None:
    insert(url, 1)
    pipeline(url, 2)
    copy(url, 3)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT id FROM kept ORDER BY id").fetchall() == [
            (1,),
            (2,),
            (3,),
        ]
        assert connection.execute("SELECT repeat('x', 1000000)").fetchall()
        connection.cancel_safe()
        assert proxy.connections == 1
    assert not proxy.lost.is_set()


@pytest.mark.parametrize("act", [insert, pipeline, copy])
def test_a_lost_answer_was_committed(
    postgres: Cluster, postgres_database: str, proxy: Proxy, url: str, act: Act
) -> None:
    proxy.lose_answer()
    with pytest.raises(LOST):
        act(url, 1)
    assert proxy.lost.is_set()
    assert kept(postgres, postgres_database) == [1]


@pytest.mark.parametrize("act", [insert, pipeline, copy])
def test_a_lost_request_was_not_committed(
    postgres: Cluster, postgres_database: str, proxy: Proxy, url: str, act: Act
) -> None:
    proxy.lose_request()
    with pytest.raises(LOST):
        act(url, 1)
    assert proxy.lost.is_set()
    assert kept(postgres, postgres_database) == []


def test_the_nth_is_lost(postgres: Cluster, postgres_database: str, proxy: Proxy, url: str) -> None:
    proxy.lose_answer(nth=3)
    with pytest.raises(LOST):
        insert(url, 1, 2, 3, 4)
    assert kept(postgres, postgres_database) == [1, 2, 3]
    proxy.lose_request(rb"INSERT INTO kept", nth=2)
    with pytest.raises(LOST):
        insert(url, 5, 6)
    assert kept(postgres, postgres_database) == [1, 2, 3, 5]


def test_a_copy_by_the_extended_protocol_is_counted(
    postgres: Cluster, postgres_database: str, proxy: Proxy, url: str
) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("BEGIN", prepare=True)
        link = connection.pgconn
        link.send_query_params(b"COPY kept FROM STDIN", [])
        [begun] = connection.wait(generators.execute(link))
        assert begun.status == psycopg.pq.ExecStatus.COPY_IN
        connection.wait(generators.copy_to(link, b"1\n"))
        connection.wait(generators.copy_end(link, None))
        proxy.lose_answer()
        with pytest.raises(LOST):
            connection.commit()
    assert kept(postgres, postgres_database) == [1]


def test_every_connection_is_cut_and_new_ones_can_be_refused(proxy: Proxy, url: str) -> None:
    with psycopg.connect(url) as one, psycopg.connect(url) as two:
        proxy.refuse()
        assert proxy.cut() == 2
        for connection in (one, two):
            with pytest.raises(LOST):
                connection.execute("SELECT 1")
    with pytest.raises(LOST):
        psycopg.connect(url)
    proxy.heal()
    insert(url, 1)
    assert proxy.connections <= 1


def test_a_black_hole_keeps_connections_and_says_nothing(
    postgres: Cluster, postgres_database: str, proxy: Proxy, url: str
) -> None:
    with psycopg.connect(url) as connection, ThreadPoolExecutor(1) as pool:
        connection.execute("INSERT INTO kept VALUES (1)")
        proxy.black_hole()
        committed = pool.submit(connection.commit)
        with pytest.raises(TimeoutError):
            committed.result(0.05)
        proxy.heal()
        assert committed.result(30) is None
    assert kept(postgres, postgres_database) == [1]


def test_it_delays(proxy: Proxy, url: str) -> None:
    with psycopg.connect(url) as connection:
        proxy.delay(0.01)
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_through_tls_it_can_cut_but_not_read(postgres: Cluster) -> None:
    if not postgres.show("ssl_library"):
        pytest.skip("needs a PostgreSQL built with TLS, as a distribution's is")
    with (
        Cluster(tls=True) as cluster,
        Proxy(cluster.port) as proxy,
        psycopg.connect(cluster.url(port=proxy.port)) as connection,
    ):
        proxy.lose_answer()
        assert connection.pgconn.ssl_in_use
        connection.execute("SELECT 1")
        connection.commit()
        assert not proxy.lost.is_set()
        assert proxy.cut() == 1
        with pytest.raises(LOST):
            connection.execute("SELECT 1")
