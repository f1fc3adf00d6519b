"""PgBouncer in front of a server of the tests, pooling by transaction as hosted databases do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlencode

import psycopg

from tests.servers.cluster import (
    SUPERUSER,
    NoServer,
    as_owner,
    free_port,
    hand_over,
    new_folder,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.servers.cluster import Cluster

START_SECONDS = 30


def program() -> str | None:
    """Return PgBouncer's program, None where it is not installed; `TILLROLL_PGBOUNCER` chooses."""
    chosen = os.environ.get("TILLROLL_PGBOUNCER")
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    return chosen or shutil.which("pgbouncer", path=path)


class PgBouncer:
    """A PgBouncer that shares a few connections to a cluster among many clients.

    Args:
        cluster: The server behind it, which it reaches by the socket.
        pool_size: How many connections it keeps to each database.
        mode: When a client gives its connection back: after each `transaction`, or `session`.
        users: Roles that may come in, besides the superuser.
        settings: Further ones of its section `[pgbouncer]`.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        pool_size: int = 2,
        mode: str = "transaction",
        users: Sequence[str] = (),
        settings: dict[str, str] | None = None,
    ) -> None:
        self.cluster = cluster
        self.port = free_port()
        self.folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._users = (SUPERUSER, *users)
        self._settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "trust",
            "admin_users": SUPERUSER,
            "pool_mode": mode,
            "default_pool_size": str(pool_size),
            "max_client_conn": "2000",
            **(settings or {}),
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            NoServer: It is not installed, or did not start.
        """
        found = program()
        if not found:
            raise NoServer("PgBouncer is not installed")
        self.folder = new_folder("tillroll-bouncer-")
        users, config, log = (self.folder / name for name in ("users", "config", "log"))
        users.write_text("".join(f'"{name}" ""\n' for name in self._users), encoding="utf-8")
        settings = {"auth_file": str(users), **self._settings}
        lines = [f"{name} = {value}" for name, value in settings.items()]
        behind = f"* = host={self.cluster.folder} port={self.cluster.port}"
        config.write_text("\n".join(["[databases]", behind, "[pgbouncer]", *lines, ""]))
        hand_over(users, config)
        with log.open("wb") as said:
            self._process = subprocess.Popen(
                [found, config],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
                **as_owner(),
            )
        try:
            wait_for(self._answers, START_SECONDS, "PgBouncer's first answer")
        except NoServer as error:
            text = log.read_text(encoding="utf-8", errors="replace")
            self.stop()
            raise NoServer(f"{error}\n{text}") from error

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise NoServer(f"PgBouncer ended with {self._process.returncode}")
        try:
            psycopg.connect(self.url("pgbouncer"), autocommit=True).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """End it at once, with every connection through it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str = "postgres", **parameters: str) -> str:
        """Return where a database is reached through it."""
        query = f"?{urlencode(parameters)}" if parameters else ""
        return f"postgresql://{SUPERUSER}@127.0.0.1:{self.port}/{database}{query}"
