"""A proxy in front of a PostgreSQL server that fails where it is told to.

It takes apart what client and server say into the messages of PostgreSQL's protocol (version 3, in
the manual's chapter "Frontend/Backend Protocol"), so that it can end a connection at an exact
place: before the server has heard a COMMIT, or after the server has done it and before the client
hears of it. A client cannot tell the two apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80_877_103, 80_877_104, 80_877_102
ENDS = b"QSF"  # Query, Sync, FunctionCall: the server answers each with one ReadyForQuery
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close sends RST, not FIN
BLOCK_BYTES = 65_536

Loss = Literal["answer", "request"]


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection by RST, at once."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE
        )
    writer.transport.abort()


@dataclass
class _Trap:
    """What is to be lost: the `nth` message from now on that matches."""

    pattern: re.Pattern[bytes]
    nth: int
    loss: Loss

    def springs(self, message: bytes) -> bool:
        if not self.pattern.search(message):
            return False
        self.nth -= 1
        return self.nth == 0


@dataclass(eq=False)
class _Pair:
    """One client's connection, and the one to the server that was opened for it."""

    from_client: asyncio.StreamReader
    to_client: asyncio.StreamWriter
    from_server: asyncio.StreamReader
    to_server: asyncio.StreamWriter
    asked: int = 0  # how many ReadyForQuery the server owes for what it was sent
    answered: int = 0  # how many it gave
    withheld: int = 0  # the answer of which the client is to hear nothing; 0 is none
    # The pump to the client waits for the pump to the server where only that one knows what comes.
    negotiating: asyncio.Queue[bool] = field(default_factory=asyncio.Queue)
    sealed: bool = False  # TLS: from here on bytes are passed on unread
    copying: bool = False  # COPY FROM STDIN: until its end the server ignores each Sync
    last_end: bytes = b""

    def hears_client(self, message: bytes) -> None:
        """Count what the server will answer."""
        kind = message[:1]
        if kind in b"cf":  # CopyDone, CopyFail
            self.copying = False
        elif kind in ENDS and not (self.copying and kind == b"S"):
            self.asked += 1
            self.last_end = kind

    def hears_server(self, message: bytes) -> bool:
        """Count what the server answered; return whether the client is to hear of it."""
        heard = self.withheld != self.answered + 1
        kind = message[:1]
        if kind == b"Z":  # ReadyForQuery
            self.answered += 1
        elif kind == b"G":  # CopyInResponse
            self.copying = True
            if self.last_end == b"S":
                self.asked -= 1  # that Sync came too early, and is ignored
        return heard

    def reset(self) -> None:
        """Close both connections by RST; what was not passed on is lost."""
        for writer in (self.to_client, self.to_server):
            _reset(writer)


class Proxy:
    """A TCP proxy in a thread of its own; a context manager.

    Connect to it by `cluster.url(database, port=proxy.port)`. It reads what a connection without
    TLS says; through one with TLS it can cut, delay and go silent, but find no message.

    A client in the same process must let other threads run while it waits. psycopg's connections
    do; the blocking calls of its `pgconn` do not, and would wait for ever.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.port = 0
        self.lost = threading.Event()  # set once an answer or a request was lost
        self._server = (host, port)
        self._pairs: set[_Pair] = set()
        self._trap: _Trap | None = None
        self._delay = 0.0
        self._refuses = False
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # ------------------------------------------------ what a test tells it

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._pairs)

    def cut(self) -> int:
        """Cut every connection by RST, to client and server; return how many clients it met."""
        return int(self._do(self._cut()))

    def lose_answer(self, pattern: bytes = rb"(?i)\bcommit\b", nth: int = 1) -> None:
        """Let the server do what the nth matching message asks for, then cut; nobody hears of it.

        The answer is lost whole: the cut comes when the server has said that it is ready again.

        Args:
            pattern: A regular expression, looked for in each message of a client.
            nth: Which of the messages from now on, over all connections; the first is 1.
        """
        self._set_trap(_Trap(re.compile(pattern), nth, "answer"))

    def lose_request(self, pattern: bytes = rb"(?i)\bcommit\b", nth: int = 1) -> None:
        """Cut before the nth matching message reaches the server; arguments as in `lose_answer`."""
        self._set_trap(_Trap(re.compile(pattern), nth, "request"))

    def black_hole(self) -> None:
        """Pass nothing on, in neither direction, while connections stay open; `heal` ends it."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def delay(self, seconds: float) -> None:
        """Pass on each message this much later, in both directions."""
        self._delay = seconds

    def refuse(self) -> None:
        """Cut new connections at once; those there are stay."""
        self._refuses = True

    def heal(self) -> None:
        """Do nothing of all that any more; what a black hole held back is passed on."""
        self._trap, self._delay, self._refuses = None, 0.0, False
        self._loop.call_soon_threadsafe(self._open.set)

    # ------------------------------------------------ the thread's own

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def _set_trap(self, trap: _Trap) -> None:
        self.lost.clear()
        self._trap = trap

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _cut(self) -> int:
        pairs = list(self._pairs)
        for pair in pairs:
            pair.reset()
            self._pairs.discard(pair)  # in a black hole its end would wait for `heal`
        return len(pairs)

    async def _close(self) -> None:
        self._listener.close()
        self._open.set()
        await self._cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            if self._refuses:
                raise ConnectionRefusedError
            pair = _Pair(reader, writer, *await asyncio.open_connection(*self._server))
        except OSError:
            _reset(writer)
            return
        self._pairs.add(pair)
        pumps = [asyncio.create_task(self._ask(pair)), asyncio.create_task(self._answer(pair))]
        try:
            # Whoever hangs up first: the other side is told by an end of its connection.
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._pairs.discard(pair)
            for end in (pair.to_client, pair.to_server):
                end.close()

    async def _pass_on(self, writer: asyncio.StreamWriter, message: bytes) -> None:
        if self._delay:
            await asyncio.sleep(self._delay)
        await self._open.wait()
        writer.write(message)
        await writer.drain()

    async def _ask(self, pair: _Pair) -> None:
        """Pass on what the client says, until it hangs up or the trap springs."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            async for message in _client_messages(pair):
                trap = self._trap
                if trap and not pair.sealed and trap.springs(message):
                    self._trap = None
                    if trap.loss == "request":
                        pair.reset()
                        self.lost.set()
                        return
                    # The answer comes with the next ReadyForQuery that has not been asked for yet.
                    pair.withheld = pair.asked + 1
                if not pair.sealed:
                    pair.hears_client(message)
                await self._pass_on(pair.to_server, message)

    async def _answer(self, pair: _Pair) -> None:
        """Pass on what the server says, until it hangs up or an answer is to be lost."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            async for message in _server_messages(pair):
                if pair.sealed or pair.hears_server(message):
                    await self._pass_on(pair.to_client, message)
                elif pair.answered == pair.withheld:
                    pair.reset()
                    self.lost.set()
                    return


async def _client_messages(pair: _Pair) -> AsyncIterator[bytes]:
    """Yield the messages of a client: untyped ones until the start-up, then typed ones."""
    reader = pair.from_client
    while True:
        head = await reader.readexactly(8)
        length, code = struct.unpack("!ii", head)
        message = head + await reader.readexactly(length - 8)
        asks_for_encryption = code in {SSL_REQUEST, GSS_REQUEST}
        if not asks_for_encryption and code != CANCEL_REQUEST:
            pair.asked += 1  # the start-up ends with a ReadyForQuery too
        yield message
        if not asks_for_encryption:
            break
        # The server answers with a single byte, which only this side knows to expect.
        if await pair.negotiating.get():
            break
    if pair.sealed:
        while block := await reader.read(BLOCK_BYTES):
            yield block
        return
    while True:
        yield await _typed(reader)


async def _server_messages(pair: _Pair) -> AsyncIterator[bytes]:
    """Yield the messages of a server: one byte for each wish for encryption, then typed ones."""
    reader = pair.from_server
    while True:
        kind = await reader.readexactly(1)
        if pair.asked == 0:  # before the start-up
            accepted = kind in b"SG"  # and N is no
            pair.sealed = accepted
            pair.negotiating.put_nowait(accepted)
            yield kind
            if accepted:
                break
            continue
        yield kind + await _rest(reader)
    while block := await reader.read(BLOCK_BYTES):
        yield block


async def _typed(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(1) + await _rest(reader)


async def _rest(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(4)
    return head + await reader.readexactly(struct.unpack("!i", head)[0] - 4)
