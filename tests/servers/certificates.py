"""A certificate authority and a server's certificate, made by the program openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SERVER = """\
subjectAltName = DNS:localhost, IP:127.0.0.1
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
"""
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Certificates:
    """The files of one server."""

    authority: Path  # who clients trust: `sslrootcert`
    certificate: Path
    key: Path


def make_certificates(folder: Path) -> Certificates:
    """Make an authority, and a certificate by it for localhost and 127.0.0.1, for one day."""
    files = Certificates(folder / "ca.crt", folder / "server.crt", folder / "server.key")
    ca_key, request, extensions = folder / "ca.key", folder / "server.csr", folder / "server.ext"
    extensions.write_text(SERVER, encoding="utf-8")
    _openssl(
        "req", "-x509", *KEY, "-keyout", ca_key, "-out", files.authority, "-days", "1",
        "-subj", "/CN=tillroll tests", "-addext", "keyUsage = critical, keyCertSign",
    )  # fmt: skip
    _openssl("req", *KEY, "-keyout", files.key, "-out", request, "-subj", "/CN=localhost")
    _openssl(
        "x509", "-req", "-in", request, "-CA", files.authority, "-CAkey", ca_key,
        "-CAcreateserial", "-days", "1", "-extfile", extensions, "-out", files.certificate,
    )  # fmt: skip
    files.key.chmod(0o600)
    for public in (files.authority, files.certificate):
        public.chmod(0o644)
    return files


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
