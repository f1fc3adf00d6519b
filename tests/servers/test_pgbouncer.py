"""PgBouncer shares the server's connections between transactions."""

import psycopg

from tests.servers.cluster import Cluster
from tests.servers.pgbouncer import PgBouncer


def test_clients_share_connections_by_the_transaction(
    postgres: Cluster, postgres_database: str, pgbouncer: PgBouncer
) -> None:
    url = pgbouncer.url(postgres_database)
    clients = [psycopg.connect(url, prepare_threshold=None) for _ in range(8)]
    served = set()
    for client in clients * 2:
        [(pid,)] = client.execute("SELECT pg_backend_pid()").fetchall()
        client.commit()
        served.add(pid)
    assert len(served) <= 2
    assert served == set(postgres.backend_pids(postgres_database))
    for client in clients:
        client.close()


def test_what_is_set_for_a_session_meets_the_next_client(
    postgres_database: str, pgbouncer: PgBouncer
) -> None:
    url = pgbouncer.url(postgres_database)
    with psycopg.connect(url, autocommit=True) as one, psycopg.connect(url) as two:
        one.execute("SET lock_timeout = '1234ms'")
        assert two.execute("SHOW lock_timeout").fetchone() == ("1234ms",)
