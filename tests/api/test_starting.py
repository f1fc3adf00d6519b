"""What keeps a service from starting is said before anything is made for it, with its exit code."""

import base64
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.servers.certificates import make_certificates
from tillroll.ledger.errors import InvalidInput
from tillroll.server import checking
from tillroll.server.settings import Settings

SECRET = "whsec_" + base64.b64encode(b"x" * 24).decode()


def tillroll(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder of its own, with these settings of the service."""
    environ = {f"TILLROLL_{name.upper()}": value for name, value in settings.items()}
    return subprocess.run(
        [str(Path(sys.executable).with_name("tillroll")), *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "NO_COLOR": "1", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextlib.contextmanager
def taken() -> Iterator[int]:
    """Listen at a port, and give it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"payments_secret": "whsec_short"}, "payments_secret"),
        ({"payments_secret": f"{SECRET},other"}, "payments_secret"),
        ({"payments_secret": " , "}, "payments_secret"),
        ({"payments_project": "no name"}, "payments_project"),
        ({"database_url": "mysql://db/credits"}, "mysql"),
        ({"database_url": "memory://"}, "database_url"),
        ({"read_database_url": "postgresql://db/credits"}, "read_url"),
        ({"tls_certificate": "none.pem", "tls_key": "none.pem"}, "tls_certificate"),
    ],
)
def test_what_serve_refuses_the_check_refuses_too(
    tmp_path: Path, settings: dict[str, str], named: str
):
    checked = tillroll(tmp_path, "config", "check", **settings)
    served = tillroll(tmp_path, "serve", "--port", "0", **settings)
    for done in (checked, served):
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert named in done.stderr
        assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_settings_that_serve_takes_are_taken(tmp_path: Path):
    files = make_certificates(tmp_path)
    certificate, key = str(files.certificate), str(files.key)
    checking.check(
        Settings(
            database_url="postgresql://db/credits",
            read_database_url="postgresql://standby/credits",
            payments_secret=f"{SECRET}, {SECRET}",
            stripe_secret_key="sk_test_x",
            stripe_success_url="https://shop.test/",
            tls_certificate=certificate,
            tls_key=key,
        )
    )
    with pytest.raises(InvalidInput, match="tls_certificate"):
        checking.check(Settings(tls_certificate=key, tls_key=certificate))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_at_a_port_that_is_taken_no_key_is_made(tmp_path: Path, workers: str):
    with taken() as port:
        done = tillroll(tmp_path, "serve", "--port", str(port), "--workers", workers)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"127.0.0.1:{port}: Address already in use" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_at_an_address_that_is_none_no_key_is_made(tmp_path: Path):
    done = tillroll(tmp_path, "serve", "--host", "192.0.2.1", "--json")
    assert done.returncode == 1
    assert '"written": "nothing"' in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_name_needs_one_address_that_this_machine_has(monkeypatch: pytest.MonkeyPatch):
    found = socket.getaddrinfo("127.0.0.1", 0, type=socket.SOCK_STREAM)
    other = socket.getaddrinfo("192.0.2.1", 0, type=socket.SOCK_STREAM)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [*other, *found])
    both = Settings(host="both.test", port=0)
    checking.look_at_address(both)
    assert checking.with_port(both).port > 0
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: other)
    with pytest.raises(OSError, match="assign"):
        checking.look_at_address(Settings(host="other.test", port=0))


def test_a_socket_is_somebody_elses_as_long_as_he_listens(tmp_path: Path):
    path = tmp_path / "tillroll.sock"
    settings = Settings(socket=str(path), workers=2)
    checking.look_at_address(settings)
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        with pytest.raises(OSError, match="in use"):
            checking.look_at_address(settings)
    checking.look_at_address(settings)
    assert not path.exists(), "what a killed process left is in nobody's way"
    path.write_text("somebody's notes")
    with pytest.raises(FileExistsError):
        checking.look_at_address(settings)
    assert path.read_text() == "somebody's notes"


SERVING = """\
from tillroll.server import running, settings

if __name__ == "__main__":
    store = "sqlite:////nowhere/credits.db"
    print(running.serve(settings.Settings(database_url=store, port=0, workers={workers})))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_that_cannot_start_are_told_from_those_that_were_stopped(
    tmp_path: Path, workers: int
):
    program = tmp_path / "serving.py"
    program.write_text(SERVING.format(workers=workers))
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.split()[-1]) == (0, "False"), done.stderr
    assert "cannot start" in done.stderr


def test_the_port_that_was_found_is_told(tmp_path: Path):
    command = [str(Path(sys.executable).with_name("tillroll")), "serve", "--port", "0"]
    environ = {"PATH": "/usr/bin:/bin", "TILLROLL_LOG_LEVEL": "warning"}
    served = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True)
    try:
        assert served.stdout is not None
        told = next(line for line in served.stdout if "Serving" in line)
        until = time.monotonic() + 60
        status = None
        while status is None and time.monotonic() < until:
            with contextlib.suppress(httpx2.TransportError):
                status = httpx2.get(f"{told.split()[-1]}/livez", timeout=5).status_code
        assert status == 200
    finally:
        served.terminate()
        served.wait(60)
        assert served.stdout is not None
        served.stdout.close()
