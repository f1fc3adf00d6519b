"""What would keep a service from starting, found before anything is made for it.

`tillroll config check` looks at the settings, `tillroll serve` at the address as well: a first key
is shown once, so it is made when nothing is known to be in the way any more.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from tillroll.embedded.opening import check_urls
from tillroll.ledger.errors import InvalidInput
from tillroll.server import paying

if TYPE_CHECKING:
    from tillroll.server.settings import Settings


def check(settings: Settings) -> None:
    """Refuse settings that no service starts with; nothing is opened, nobody is asked.

    Raises:
        InvalidInput: One of them is of no use; the message names it.
    """
    if settings.database_url == "memory://":
        raise InvalidInput(
            "settings: database_url: what is in memory is gone when the first key is made: "
            "name a file or PostgreSQL"
        )
    try:
        check_urls(settings.database_url, settings.read_database_url)
    except InvalidInput as problem:
        raise InvalidInput(f"settings: {problem}") from None
    paying.listeners(settings)
    if settings.tls_certificate is not None:
        _check_certificate(settings.tls_certificate, settings.tls_key)


def _check_certificate(certificate: str, key: str | None) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as problem:  # an SSLError is one
        raise InvalidInput(
            f"settings: tls_certificate and tls_key cannot be used: {problem.strerror or problem}"
        ) from None


def look_at_address(settings: Settings) -> None:
    """Make sure that one can listen where the settings say.

    A name may stand for several addresses, of which this machine need not have all.

    Raises:
        OSError: Another process listens there, or nobody can.
    """
    if settings.socket is not None:
        _look_at_socket(settings.socket, settings.workers)
        return
    found = _addresses(settings)
    problems = [problem for one in found if (problem := _problem_at(one)) is not None]
    taken = [problem for problem in problems if problem.errno == errno.EADDRINUSE]
    if taken or len(problems) == len(found):
        raise (taken or problems)[0]


def with_port(settings: Settings) -> Settings:
    """Return the settings with a port that is free, where any will do, so that it can be told.

    That there is an address to listen at was looked at before.
    """
    if settings.port or settings.socket is not None:
        return settings
    usable = (one for one in _addresses(settings) if _problem_at(one) is None)
    family, kind, protocol, _, address = next(usable)
    with socket.socket(family, kind, protocol) as one:
        one.bind(address)
        return replace(settings, port=one.getsockname()[1])


def _addresses(settings: Settings) -> list[tuple[Any, ...]]:
    found = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return list(found)


def _problem_at(found: tuple[Any, ...]) -> OSError | None:
    """Return what keeps one from listening at an address; it is bound as the server will."""
    family, kind, protocol, _, address = found
    try:
        with socket.socket(family, kind, protocol) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
    except OSError as problem:
        return problem
    return None


def _look_at_socket(path: str, workers: int) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        try:
            one.connect(path)
        except FileNotFoundError:
            one.bind(path)
            Path(path).unlink()
        except ConnectionRefusedError:
            if not Path(path).is_socket():
                raise FileExistsError(errno.EEXIST, "there is a file that is no socket") from None
            if workers > 1:  # of one that was killed; a single worker takes its place by itself
                Path(path).unlink()
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


__all__ = ["check", "look_at_address", "with_port"]
