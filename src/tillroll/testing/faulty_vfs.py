"""A disk for SQLite that fails when told to, and forgets what was not synced.

    with FaultyDisk() as disk:
        store = SqliteStore("credits.db", vfs=disk.name)
        disk.fail(3)  # the third write, sync, truncate, open or delete from now on errs
        ...
        disk.cut_power("after/")  # what a power cut at this moment could leave

It sits between SQLite and the real file system (https://www.sqlite.org/vfs.html): what it lets
through is on the real disk, so another process sees the same file. Memory that processes share
(the index of the log) goes past it.
"""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import apsw

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Collection
    from types import TracebackType

Kind = Literal["open", "write", "sync", "truncate", "delete"]
KINDS: tuple[Kind, ...] = ("open", "write", "sync", "truncate", "delete")
# What each call reports when it errs (https://www.sqlite.org/rescode.html).
_IO_ERRORS: dict[Kind, int] = {
    "open": apsw.SQLITE_CANTOPEN,
    "write": apsw.SQLITE_IOERR_WRITE,
    "sync": apsw.SQLITE_IOERR_FSYNC,
    "truncate": apsw.SQLITE_IOERR_TRUNCATE,
    "delete": apsw.SQLITE_IOERR_DELETE,
}

_NUMBERS = itertools.count(1)


class Call(NamedTuple):
    """One call that SQLite made: what, and on which file ("credits.db-wal")."""

    kind: Kind
    file: str


class Plan(NamedTuple):
    """Which calls are to err, and how."""

    first: int
    kinds: Collection[Kind]
    error: Literal["io", "full"]
    times: int | None  # how many from the first on; None: until `heal`


class _Content:
    """What a power cut would leave of one file, and what was written since the last sync."""

    def __init__(self, durable: bytes | None) -> None:
        self.durable = durable
        self.waiting: list[tuple[int, bytes | None]] = []  # None: truncated at that size

    def after(self, kept: list[tuple[int, bytes | None]]) -> bytes:
        content = bytearray(self.durable or b"")
        for at, data in kept:
            if data is None:
                del content[at:]
            else:
                content.extend(bytes(max(0, at - len(content))))
                content[at : at + len(data)] = data
        return bytes(content)


class FaultyDisk(apsw.VFS):
    """An SQLite VFS that counts calls, makes some of them err, and knows what is durable.

    Attributes:
        name: What to give as `vfs`.
        calls: What was called since `watch` or `fail`, the failed one included.
        struck: How many calls were made to err since `fail`.
        lost_by_failed_sync: True if the writes that a failed sync should have written never
            reach the disk, whatever is synced later: Linux marks them as written. False if they
            did reach it, and only the report was bad.
        before_call: Called before each of the calls, to look at the disk at that moment.
    """

    def __init__(self, *, lost_by_failed_sync: bool = True) -> None:
        """Register a disk that does not fail yet."""
        self.name = f"tillroll-faulty-{next(_NUMBERS)}"
        self.calls: list[Call] = []
        self.struck = 0
        self.lost_by_failed_sync = lost_by_failed_sync
        self.before_call: Callable[[], None] | None = None
        self._plan: Plan | None = None
        self._count = 0
        self._lock = threading.RLock()
        self._contents: dict[str, _Content] = {}
        self._deleted: dict[str, bytes] = {}
        super().__init__(self.name, "")

    def __enter__(self) -> Self:
        """Use as a context manager that unregisters it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Unregister: no new file can be opened through it."""
        self.unregister()

    # ------------------------------------------------------------ what to do

    def watch(self) -> None:
        """Forget the calls counted so far; fail none."""
        with self._lock:
            self.calls = []
            self.struck = 0
            self._count = 0
            self._plan = None

    def fail(
        self,
        nth: int = 1,
        *,
        kinds: Collection[Kind] = KINDS,
        error: Literal["io", "full"] = "io",
        times: int | None = 1,
    ) -> None:
        """Make a call err, or several in a row.

        Args:
            nth: Which of these calls from now on; the first is 1.
            kinds: Which calls count and can err.
            error: "io" for an I/O error, "full" for a full disk (which a sync never reports).
            times: How many in a row err; None for all until `heal`.
        """
        with self._lock:
            self.watch()
            self._plan = Plan(nth, tuple(kinds), error, times)

    def heal(self) -> None:
        """Let everything succeed again; keep the counts."""
        self._plan = None

    def cut_power(self, folder: str | Path, rng: random.Random | None = None) -> None:
        """Put into `folder` what a power cut at this moment could leave of all files.

        Args:
            folder: Where to; made if it is not there.
            rng: Without it, nothing unsynced is left, and a file whose deletion was not followed
                by a sync of any file is there again. With it, chance decides on each write.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        with self._lock:
            left = dict(self._deleted)
            for path, content in self._contents.items():
                kept = [act for act in content.waiting if rng and rng.random() < 1 / 2]
                if content.durable is not None or kept:
                    left[path] = content.after(kept)
            for path, data in left.items():
                (target / Path(path).name).write_bytes(data)

    # ------------------------------------------------------------ what SQLite calls

    def xOpen(  # noqa: N802 - SQLite's name
        self, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> apsw.VFSFile:
        """Open a file that reports to this disk; temporary files without a name do not."""
        if name is None:
            return apsw.VFSFile("", name, flags)
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._called("open", path)
        with self._lock:
            if path not in self._contents:
                there = Path(path)
                known = there.read_bytes() if there.exists() else None
                self._contents[path] = _Content(known)
        return _FaultyFile(self, path, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: FBT001, N802 - SQLite's
        """Delete a file; that is durable once anything in its folder is synced."""
        self._called("delete", filename)
        super().xDelete(filename, syncdir)
        with self._lock:
            content = self._contents.pop(filename, None)
            if content is not None and content.durable is not None and not syncdir:
                self._deleted[filename] = content.durable

    def excepthook(
        self,
        etype: type[BaseException] | None,
        evalue: BaseException | None,
        etraceback: TracebackType | None,
    ) -> bool:
        """Keep quiet where SQLite itself ignores an error, as it does on closing."""
        return isinstance(evalue, apsw.Error) or super().excepthook(etype, evalue, etraceback)

    def _called(self, kind: Kind, path: str) -> None:
        """Count a call, and raise if it is to err."""
        if self.before_call is not None:
            self.before_call()
        with self._lock:
            self.calls.append(Call(kind, Path(path).name))
            plan = self._plan
            if plan is None or kind not in plan.kinds:
                return
            self._count += 1
            over = plan.times is not None and self._count >= plan.first + plan.times
            if self._count < plan.first or over:
                return
            self.struck += 1
            full = plan.error == "full" and kind != "sync"
            error = apsw.exception_for(apsw.SQLITE_FULL if full else _IO_ERRORS[kind])
            error.args = (f"{kind} of {Path(path).name} failed as planned",)
            raise error

    def _wrote(self, path: str, at: int, data: bytes | None) -> None:
        with self._lock:
            self._contents.setdefault(path, _Content(None)).waiting.append((at, data))

    def _synced(self, path: str) -> None:
        with self._lock:
            content = self._contents.setdefault(path, _Content(None))
            content.durable = content.after(content.waiting)
            content.waiting = []
            # One journal for the whole file system: what was deleted before is deleted now.
            self._deleted.clear()

    def _not_synced(self, path: str) -> None:
        with self._lock:
            content = self._contents.setdefault(path, _Content(None))
            if not self.lost_by_failed_sync:
                content.durable = content.after(content.waiting)
            content.waiting = []


class _FaultyFile(apsw.VFSFile):
    """One open file of a faulty disk."""

    def __init__(
        self, disk: FaultyDisk, path: str, name: str | apsw.URIFilename, flags: list[int]
    ) -> None:
        self._disk = disk
        self._path = path
        super().__init__("", name, flags)

    def excepthook(
        self,
        etype: type[BaseException] | None,
        evalue: BaseException | None,
        etraceback: TracebackType | None,
    ) -> bool:
        """Keep quiet where SQLite itself ignores an error, as it does on closing."""
        return isinstance(evalue, apsw.Error) or super().excepthook(etype, evalue, etraceback)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - SQLite's name
        """Write, unless this write is to err: then half of it may be there."""
        try:
            self._disk._called("write", self._path)  # noqa: SLF001 - the disk's own file
        except apsw.Error:
            super().xWrite(data[: len(data) // 2], offset)
            self._disk._wrote(self._path, offset, bytes(data[: len(data) // 2]))  # noqa: SLF001
            raise
        super().xWrite(data, offset)
        self._disk._wrote(self._path, offset, bytes(data))  # noqa: SLF001 - as above

    def xTruncate(self, newsize: int) -> None:  # noqa: N802 - SQLite's name
        """Truncate, unless that is to err."""
        self._disk._called("truncate", self._path)  # noqa: SLF001 - the disk's own file
        super().xTruncate(newsize)
        self._disk._wrote(self._path, newsize, None)  # noqa: SLF001 - as above

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        """Sync, unless that is to err."""
        try:
            self._disk._called("sync", self._path)  # noqa: SLF001 - the disk's own file
        except apsw.Error:
            self._disk._not_synced(self._path)  # noqa: SLF001 - as above
            raise
        super().xSync(flags)
        self._disk._synced(self._path)  # noqa: SLF001 - as above


__all__ = ["KINDS", "Call", "FaultyDisk", "Kind"]
