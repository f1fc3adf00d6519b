"""Price-locked quotes: a promise signed with the store's secret, carried by the caller.

The text is `trq1.` + base64url(claims as canonical JSON) + `.` + base64url(HMAC-SHA256). Nothing
is stored for a quote; whoever holds the secret can check it.
"""

from __future__ import annotations

import binascii
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode

import msgspec

from tillroll.ledger import chain
from tillroll.ledger.commands import QuoteClaims
from tillroll.ledger.errors import InvalidInput

_PREFIX = "trq1"
_LENGTH_MAX = 4096
_claims = msgspec.json.Decoder(QuoteClaims)


def sign(secret: bytes, claims: QuoteClaims) -> str:
    """Return the text of a quote that promises these claims."""
    body = urlsafe_b64encode(chain.encode(claims)).decode().rstrip("=")
    return f"{_PREFIX}.{body}.{_seal(secret, body)}"


def read(secret: bytes, quote: str) -> QuoteClaims:
    """Return what a quote promises.

    Raises:
        InvalidInput: It was not signed with this secret, or is no quote at all.
    """
    body, seal = _parts(quote)
    if not hmac.compare_digest(_seal(secret, body).encode(), seal.encode()):
        raise InvalidInput("the quote was not made here, or was altered")
    return _opened(body)


def read_unsealed(quote: str) -> QuoteClaims:
    """Return what a quote says it promises, for who cannot check it and sends it to who can.

    Raises:
        InvalidInput: It is no quote at all.
    """
    return _opened(_parts(quote)[0])


def _parts(quote: str) -> tuple[str, str]:
    parts = quote.split(".") if isinstance(quote, str) and len(quote) <= _LENGTH_MAX else []
    if len(parts) != len(("prefix", "body", "seal")) or parts[0] != _PREFIX:
        raise InvalidInput("that is not a quote")
    return parts[1], parts[2]


def _opened(body: str) -> QuoteClaims:
    try:
        return _claims.decode(urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (msgspec.MsgspecError, binascii.Error) as problem:
        raise InvalidInput("the quote cannot be read") from problem


def _seal(secret: bytes, body: str) -> str:
    key = f"{_PREFIX}.{body}".encode()
    return urlsafe_b64encode(hmac.digest(secret, key, "sha256")).decode().rstrip("=")
