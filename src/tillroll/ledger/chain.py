"""The hash chain of one account, and the canonical bytes that it covers.

An entry is encoded once; those bytes are stored, hashed, and are what a repeat is answered from.
Verification hashes the stored bytes, never a re-encoding, so a later version of this code cannot
break an old chain. Lengths are hashed with the bytes, so no two histories can hash alike.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import msgspec

from tillroll.ledger.types import Account, Entry, Refusal

GENESIS = bytes(32)

_encoder = msgspec.json.Encoder(order="deterministic")
# Grants, and what a hold took of them, stand in burn order: sorting their names would lose it.
_states = msgspec.json.Encoder()
_entries = msgspec.json.Decoder(Entry)
_refusals = msgspec.json.Decoder(Refusal)
_accounts = msgspec.json.Decoder(Account)


def encode(value: object) -> bytes:
    """Return the canonical bytes of a struct or of plain values: JSON, keys in a fixed order."""
    return _encoder.encode(value)


def encode_state(account: Account) -> bytes:
    """Return an account as its state document: JSON, everything in the order it stands in."""
    return _states.encode(account)


def decode_entry(body: bytes | str) -> Entry:
    """Return the entry that these canonical bytes hold."""
    return _entries.decode(body)


def decode_refusal(body: bytes | str) -> Refusal:
    """Return the refusal that these canonical bytes hold."""
    return _refusals.decode(body)


def decode_account(state: bytes | str) -> Account:
    """Return the account that this state document holds."""
    return _accounts.decode(state)


def link(head: bytes, account_id: bytes, body: bytes) -> bytes:
    """Return the hash of an entry's bytes on top of the hash of the entry before.

    The account's id is part of it, so a history cannot be passed off as another account's.
    """
    size = len(body).to_bytes(8, "big")
    return sha256(b"".join((head or GENESIS, account_id, size, body))).digest()


def digest(value: Any) -> bytes:
    """Return the SHA-256 of a value's canonical bytes."""
    return sha256(_encoder.encode(value)).digest()
