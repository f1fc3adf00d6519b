"""The server that other tests stand on: it starts, is reached, dies, recovers and is copied."""

import os

import psycopg
import pytest

from tests.servers.cluster import Cluster, NoServer, children, gone, owner


def test_it_keeps_what_postgresql_does_about_durability(postgres: Cluster) -> None:
    settings = ("fsync", "full_page_writes", "synchronous_commit", "data_checksums")
    assert {name: postgres.show(name) for name in settings} == dict.fromkeys(settings, "on")


def test_it_does_not_run_as_root(postgres: Cluster) -> None:
    user = owner()
    wanted = user.uid if user else os.geteuid()
    assert (postgres.data / "postmaster.pid").stat().st_uid == wanted != 0


@pytest.mark.parametrize("tcp", [False, True], ids=["socket", "tcp"])
def test_it_is_reached(postgres: Cluster, postgres_database: str, *, tcp: bool) -> None:
    with psycopg.connect(postgres.url(postgres_database, tcp=tcp)) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == (postgres_database,)
        assert connection.info.hostaddr == ("127.0.0.1" if tcp else "")
        assert postgres.backend_pids(postgres_database) == [connection.info.backend_pid]


def test_each_test_has_an_empty_database(postgres: Cluster, postgres_url: str) -> None:
    other = postgres.create_database()
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE kept (id int)")
    assert not postgres.run("SELECT 1 FROM pg_tables WHERE tablename = 'kept'", database=other)
    postgres.drop_database(other)
    assert not postgres.run("SELECT 1 FROM pg_database WHERE datname = %s", other)


def test_clients_can_be_disconnected(postgres: Cluster, postgres_database: str) -> None:
    with psycopg.connect(postgres.url(postgres_database)) as connection:
        assert postgres.terminate_backends(postgres_database) == 1
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_what_was_committed_survives_every_end(own_postgres: Cluster) -> None:
    own_postgres.run("CREATE TABLE kept (id int)")
    with psycopg.connect(own_postgres.url()) as connection:
        connection.execute("INSERT INTO kept VALUES (0)")
        own_postgres.kill9()  # before the commit
        with pytest.raises(psycopg.OperationalError):
            connection.commit()
    own_postgres.start()
    own_postgres.run("INSERT INTO kept VALUES (1)")
    family = [own_postgres.pid, *children(own_postgres.pid)]
    own_postgres.kill9()
    assert len(family) > 3
    assert all(map(gone, family))
    own_postgres.start()
    assert "was not properly shut down" in own_postgres.said()
    own_postgres.run("INSERT INTO kept VALUES (2)")
    own_postgres.restart("immediate")
    own_postgres.run("INSERT INTO kept VALUES (3)")
    own_postgres.restart("fast")
    assert own_postgres.run("SELECT id FROM kept ORDER BY id") == [(1,), (2,), (3,)]


def test_a_server_that_does_not_start_says_why() -> None:
    cluster = Cluster(settings={"shared_buffers": "no"})
    with pytest.raises(NoServer, match="shared_buffers"), cluster:
        pass
    assert not cluster.folder.exists()


def test_tls_is_verified_in_full_and_demanded(postgres: Cluster) -> None:
    if not postgres.show("ssl_library"):
        pytest.skip("needs a PostgreSQL built with TLS, as a distribution's is")
    with Cluster(tls=True) as cluster:
        for host in ("127.0.0.1", "localhost"):
            with psycopg.connect(cluster.url(tcp=True, host=host)) as connection:
                assert connection.pgconn.ssl_in_use
        with pytest.raises(psycopg.OperationalError, match="no encryption"):
            psycopg.connect(cluster.url(tcp=True, sslmode="disable"))
        with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
            psycopg.connect(cluster.url(tcp=True, sslrootcert="system"))


def test_a_synchronous_standby_has_what_was_committed_and_can_take_over(
    own_postgres: Cluster,
) -> None:
    own_postgres.run("CREATE TABLE kept (id int)")
    standby = own_postgres.standby(synchronous=True)
    own_postgres.run("INSERT INTO kept VALUES (1)")
    own_postgres.catch_up(standby)
    assert standby.run("SELECT id FROM kept") == [(1,)]
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        standby.run("INSERT INTO kept VALUES (2)")
    own_postgres.run("INSERT INTO kept VALUES (3)")
    own_postgres.kill9()
    standby.promote()
    standby.run("INSERT INTO kept VALUES (4)")
    assert standby.run("SELECT id FROM kept ORDER BY id") == [(1,), (3,), (4,)]
