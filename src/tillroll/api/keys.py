"""Projects and API keys: how they are made, what they may do, and how a key is known again.

A key is 256 random bits behind a prefix that says its mode. Only its SHA-256 is stored; a slow
hash would protect nothing, for nobody can guess 256 bits. Projects and keys are documents in the
store's registry, so they move with the ledger.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tillroll.ledger.errors import IdempotencyConflict, InvalidInput, NotFound
from tillroll.ledger.values import ID_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tillroll.stores.base import Reader, Store, Writer

Mode = Literal["test", "live"]
MODES: tuple[Mode, ...] = ("test", "live")
Scope = Literal["consume", "read", "grant", "admin"]
SCOPES: tuple[Scope, ...] = ("consume", "read", "grant", "admin")

# How old what a process knows of the keys may be. Whoever ends a key waits for so long before
# he says that it is done: then no process on any machine takes it any more (decisions/0013).
LEASE_SECONDS = 0.25
ACCOUNTS_MAX = 1_000
_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z", re.ASCII)
_TOKEN = re.compile(r"tr_(test|live)_[A-Za-z0-9_-]{43}\Z", re.ASCII)


class Project(Struct, frozen=True, kw_only=True):
    """A project: its name, and when it was made, in microseconds since 1970."""

    name: str
    created_at: int


class ApiKey(Struct, frozen=True, kw_only=True):
    """An API key as it is stored.

    Attributes:
        digest: SHA-256 of the whole key, hexadecimal.
        shown: Its beginning and its last four characters, to tell keys apart by.
        scopes: Any of `SCOPES`; admin may do everything.
        accounts: The only accounts it is open to; empty for all.
        created_by: The key that made it; None where the machine's own shell did.
        expires_at: Microseconds since 1970, as all times here.
        life: For how long it was made; None for ever. A key that takes its place lives as long.
        asked: SHA-256 of what it was made from, hexadecimal, by which a repeat is told from another
            request of the same id; empty where a version before this one made it.
    """

    id: str
    name: str
    project: str
    mode: Mode
    digest: str
    shown: str
    scopes: tuple[str, ...]
    accounts: tuple[str, ...] = ()
    created_at: int
    created_by: str | None = None
    expires_at: int | None = None
    life: int | None = None
    revoked_at: int | None = None
    asked: str = ""

    @property
    def ledger(self) -> str:
        """The name that the ledger of its project and mode is kept under."""
        return ledger_name(self.project, self.mode)

    def is_good(self, at: int) -> bool:
        """Return whether it opens anything at that time."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)

    def may(self, scopes: frozenset[str]) -> bool:
        """Return whether it has one of these scopes; any key does where none is named."""
        return not scopes or "admin" in self.scopes or not scopes.isdisjoint(self.scopes)

    def is_open_to(self, account: str) -> bool:
        """Return whether it may be used for this account."""
        return not self.accounts or account in self.accounts


def ledger_name(project: str, mode: Mode) -> str:
    """Return the name of a mode's ledger: live is the project itself, test is kept apart."""
    return project if mode == "live" else f"{project}:test"


def check_project(name: str) -> str:
    """Return a project's name.

    Raises:
        InvalidInput: It is not 1 to 63 letters, digits, dots, dashes and underscores.
    """
    if not _PROJECT.match(name):
        raise InvalidInput(
            "a project's name has 1 to 63 letters, digits, dots, dashes and underscores, and "
            "begins with a letter or a digit"
        )
    return name


def digest_of(token: str) -> str:
    """Return what is stored of a key."""
    return sha256(token.encode()).hexdigest()


def new_key(
    project: str,
    mode: Mode,
    *,
    name: str,
    scopes: Iterable[str],
    at: int,
    key_id: str | None = None,
    accounts: Iterable[str] = (),
    created_by: str | None = None,
    expires_at: int | None = None,
) -> tuple[ApiKey, str]:
    """Return a new key as it is stored, and the secret, which is never seen again.

    Raises:
        InvalidInput: No such scope or mode.
    """
    asked = list(scopes)
    wanted = tuple(scope for scope in SCOPES if scope in asked)
    if not wanted or len(wanted) != len(asked):
        raise InvalidInput(f"scopes must be of {', '.join(SCOPES)}, each once")
    if mode not in MODES:
        raise InvalidInput("mode must be test or live")
    names = tuple(sorted(set(accounts)))
    life = None if expires_at is None else expires_at - at
    if len(names) > ACCOUNTS_MAX or any(not 1 <= len(n) <= ID_MAX for n in names):
        raise InvalidInput(f"accounts must be at most {ACCOUNTS_MAX} names of 1 to {ID_MAX}")
    token = f"tr_{mode}_{secrets.token_urlsafe(32)}"
    key = ApiKey(
        id=key_id or f"key_{secrets.token_hex(8)}",
        name=name,
        project=check_project(project),
        mode=mode,
        digest=digest_of(token),
        shown=f"{token[:12]}...{token[-4:]}",
        scopes=wanted,
        accounts=names,
        created_at=at,
        created_by=created_by,
        expires_at=expires_at,
        life=life,
        asked=asked_of(name, wanted, names, life),
    )
    return key, token


def asked_of(*what: object) -> str:
    """Return what is kept of a request to make a key."""
    return sha256(msgspec.json.encode(what)).hexdigest()


# ---------------------------------------------------------------- in the registry


def put_project(tx: Writer, name: str, at: int) -> Project:
    """Write a project, where there is none of that name yet."""
    known = tx.document("project", name)
    if known is not None:
        return msgspec.json.decode(known, type=Project)
    project = Project(name=name, created_at=at)
    tx.put_document("project", name, msgspec.json.encode(project).decode())
    return project


def projects_in(reader: Reader) -> list[Project]:
    """Return all projects, by name."""
    found = reader.documents("project").values()
    return [msgspec.json.decode(document, type=Project) for document in found]


def put_key(tx: Writer, key: ApiKey) -> ApiKey:
    """Write a key; return the one that is there, where it was made before.

    Raises:
        IdempotencyConflict: The id was used for another key. Nothing was written.
    """
    document = tx.document("key", key.id)
    if document is not None:
        known = msgspec.json.decode(document, type=ApiKey)
        if known.asked not in ("", key.asked):
            raise IdempotencyConflict(
                f"this id made {key.id} from another request: take a new one to make another"
            )
        return known
    tx.put_document("key", key.id, msgspec.json.encode(key).decode())
    return key


def end_key(tx: Writer, key_id: str, at: int, *, ledger: str | None, later: int = 0) -> ApiKey:
    """Revoke a key, or have it expire a while later; one that ended before stays as it is.

    Args:
        tx: The transaction to write in.
        key_id: Which key.
        at: The time.
        ledger: Whose key it must be; None for anybody's.
        later: In how many microseconds it ends; 0 for now.

    Raises:
        NotFound: There is no such key here.
    """
    document = tx.document("key", key_id)
    key = None if document is None else msgspec.json.decode(document, type=ApiKey)
    if key is None or (ledger is not None and key.ledger != ledger):
        raise NotFound(f"there is no key {key_id!r} here")
    if not key.is_good(at):
        return key
    if later:
        ends = min(at + later, key.expires_at or at + later)
        key = replace(key, expires_at=ends)
    else:
        key = replace(key, revoked_at=at)
    tx.put_document("key", key_id, msgspec.json.encode(key).decode())
    return key


def keys_in(reader: Reader) -> list[ApiKey]:
    """Return all keys, the oldest first."""
    found = reader.documents("key").values()
    keys = [msgspec.json.decode(document, type=ApiKey) for document in found]
    return sorted(keys, key=lambda key: (key.created_at, key.id))


# ---------------------------------------------------------------- what a process knows


class Keyring:
    """The keys as this process knows them, never older than `LEASE_SECONDS` when used."""

    def __init__(self, store: Store) -> None:
        """Know the keys of this store; nothing is read yet."""
        self._store = store
        self._version = -1
        self._by_digest: dict[str, ApiKey] = {}
        self._read_at = float("-inf")  # when the reading of what we know began
        self._reading: asyncio.Task[None] | None = None

    def known(self, token: str) -> ApiKey | None:
        """Return the key of a token where what is known of it is as good as new, without waiting.

        None says nothing: ask `find`.
        """
        if time.monotonic() - self._read_at > LEASE_SECONDS / 2:
            return None
        return self._by_digest.get(digest_of(token))

    async def find(self, token: str) -> ApiKey | None:
        """Return the key of a token; None where there is none, whether or not it is good.

        Raises:
            StoreUnavailable: The store could not be read, and what is known is too old.
        """
        if not _TOKEN.match(token):
            return None
        asked_at = time.monotonic()
        if asked_at - self._read_at > LEASE_SECONDS / 2:
            reading = self._read_soon()
            while asked_at - self._read_at > LEASE_SECONDS:
                await asyncio.shield(reading)
                reading = self._read_soon()
        digest = digest_of(token)
        key = self._by_digest.get(digest)
        while key is None and self._read_at < asked_at:  # it may have been made just now
            await asyncio.shield(self._read_soon())
            key = self._by_digest.get(digest)
        return key

    def _read_soon(self) -> asyncio.Task[None]:
        if self._reading is None or self._reading.done():
            self._reading = asyncio.get_running_loop().create_task(self._read())
            self._reading.add_done_callback(_retrieve)
        return self._reading

    async def _read(self) -> None:
        began = time.monotonic()
        found = await asyncio.to_thread(self._load)
        if found is not None:
            self._version, keys = found
            self._by_digest = {key.digest: key for key in keys}
        self._read_at = began

    def _load(self) -> tuple[int, list[ApiKey]] | None:
        """Return the registry's version and all keys, None where nothing has changed."""
        with self._store.read_primary() as reader:
            version = reader.registry_version()
            return None if version == self._version else (version, keys_in(reader))


def _retrieve(task: asyncio.Task[None]) -> None:
    """Look at what a reading ended with, since nobody may be waiting for it any more."""
    if not task.cancelled():
        task.exception()


async def settled() -> None:
    """Return when no process takes any more what was ended before this was called."""
    await asyncio.sleep(LEASE_SECONDS)
