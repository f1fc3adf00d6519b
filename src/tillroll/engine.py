"""Group commit: many callers, one database transaction, one commit, everyone answered.

Requests queue up. The caller at the head of the queue leads: it takes all that is waiting, has it
decided in order and written in one database transaction, answers everyone and passes the baton to
whoever waits next (decisions/0004). There is no timer: a batch is what gathered while the last
one committed. A caller that blocks its thread leads on that thread, so a lone caller pays no
hand-over; callers on an event loop are led by one worker thread.

The walk of one request: `execute -> _lead -> _write -> store.write -> load_book -> decide_batch
-> append -> COMMIT`.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

from tillroll.ledger.alerts import of_catalog
from tillroll.ledger.book import Answer, Book, Rules
from tillroll.ledger.commands import account_id
from tillroll.ledger.core import advance_in, decide_batch
from tillroll.ledger.errors import (
    InvalidInput,
    OutcomeUnknown,
    Overloaded,
    StoreClosed,
    StoreCorrupt,
    StoreError,
    StoreReadOnly,
    StoreUnavailable,
)
from tillroll.ledger.types import ANSWERED_BEFORE, Entry, Refusal
from tillroll.stores.base import CommitUncertain, Key, follow_stories, load_book, persist

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from concurrent.futures import ThreadPoolExecutor

    from tillroll.ledger.commands import Request
    from tillroll.stores.base import Reader, Store, Writer
    from tillroll.stores.bridge import Bridge

T = TypeVar("T")

BATCH_MAX = 1_000  # more waiting than this gains nothing and makes everyone wait longer
ROUND_SECONDS = 0.001  # how long the writer waits for a loop to come round; a commit takes less
WAITING_MAX = 20_000  # about 1 kB each: 20 MB


def now() -> int:
    """Return the time in microseconds since 1970."""
    return time.time_ns() // 1_000


_INTERRUPTED = Answer(
    OutcomeUnknown(
        "the thread that wrote the batch was interrupted: ask again with the same request_id"
    )
)


def answer_in(
    tx: Writer,
    scale: int,
    requests: Sequence[Request],
    at: int,
    low: set[tuple[bytes, str]] | None = None,
) -> list[Answer]:
    """Answer one project's requests within a transaction under way: load, decide, append.

    Args:
        tx: The transaction.
        scale: Decimals of units.
        requests: Of one project.
        at: The time.
        low: Gets the balances that fell to where they are topped up, by (account_id, wallet).
    """
    project = requests[0].project
    book = load_book(tx, project, requests, at)
    _still_here(tx)
    rules = rules_of(tx, project, scale)
    if 0 < tx.part < len(requests):
        answers = _decide_in_parts(tx, book, requests, at, rules)
    else:
        answers = decide_batch(book, requests, at, rules)
    tx.append(project, book)
    if low is not None:
        low |= book.low
    return answers


def answer_then(
    tx: Writer,
    scale: int,
    due: tuple[str, str],
    requests: Sequence[Request],
    at: int,
    then: Callable[[Book, list[Answer]], Sequence[Request]],
) -> list[Answer]:
    """Book what fell due on an account, answer requests, and what follows from it, in one append.

    Nothing is taken from memory, since `then` may find that nothing follows, and no entry would
    contradict that. No part is sent ahead, since `then` may read while they are decided.

    Args:
        tx: The transaction.
        scale: Decimals of units.
        due: The account, by (project, name).
        requests: Of that project; there may be none.
        at: The time.
        then: Says what more is to be answered, once it is known what became of these: requests
            under ids that nobody used, decided and written with them.

    Returns:
        The answers to the requests, then those to what more was asked.
    """
    project, name = due
    owner = account_id(project, name)
    account = tx.load_locked(project, {owner: name})[owner]
    book = load_book(tx, project, requests, at)
    book.accounts.setdefault(owner, account)
    _still_here(tx)
    rules = rules_of(tx, project, scale)
    book.watch = rules if rules.topics else None
    advance_in(book, owner, max(at, book.accounts[owner].at))
    answers = decide_batch(book, requests, at, rules)
    answers += _answer_more(tx, book, project, then(book, answers), at, rules)
    tx.append(project, book)
    return answers


def _answer_more(
    tx: Writer, book: Book, project: str, more: Sequence[Request], at: int, rules: Rules
) -> list[Answer]:
    """Answer requests that follow from what this book decided, with what they need beside it."""
    missing = {one.account_id: one.account for one in more if one.account_id not in book.accounts}
    if missing:
        book.accounts.update(tx.load_locked(project, missing))
    # What was decided just now has begun stories in the book: what is stored goes before it.
    begun = {(sealed.account_id, sealed.entry.ref or "") for sealed in book.appended}
    later = {key: book.stories.pop(key) for key in begun if key in book.stories}
    follow_stories(tx, book, more, at)
    for key, entries in later.items():
        story = book.stories.setdefault(key, [])
        story += [entry for entry in entries if not story or entry.seq > story[-1].seq]
    return decide_batch(book, more, at, rules)


def rules_of(tx: Reader, project: str, scale: int) -> Rules:
    """Return what a project's accounts are decided by in this database transaction."""
    prices, topics = tx.prices(project), tx.topics(project)
    alerts = of_catalog(prices.products.alerts, scale)
    if not (topics or alerts):
        return Rules(prices, scale)
    return Rules(prices, scale, topics, alerts, project)


def _decide_in_parts(
    tx: Writer, book: Book, requests: Sequence[Request], at: int, rules: Rules
) -> list[Answer]:
    """Decide account after account, and have the database write one part during the next.

    Accounts never meet, so their order changes no answer; within an account it is kept.
    """
    owners = [request.account_id for request in requests]
    order = sorted(range(len(requests)), key=owners.__getitem__)
    answers = [_INTERRUPTED] * len(requests)
    for first in range(0, len(order), tx.part):
        part = order[first : first + tx.part]
        decided = decide_batch(book, [requests[place] for place in part], at, rules)
        for place, answer in zip(part, decided, strict=True):
            answers[place] = answer
        tx.send(book)
    return answers


def act_in(tx: Writer, act: Callable[[Writer], T]) -> T:
    """Do something else within a database transaction under way."""
    _still_here(tx)
    return act(tx)


class Batch(NamedTuple):
    """A batch as it was written, for whoever observes the engine.

    Attributes:
        requests: What was asked, in order.
        answers: What was answered; fewer where the writing was interrupted.
        began_ns, ended_ns: When, by `time.time_ns`.
        waiting: How many requests wait now.
    """

    requests: Sequence[Request]
    answers: Sequence[Answer]
    began_ns: int
    ended_ns: int
    waiting: int


class Ticket:
    """Requests of one caller that blocks until they are answered."""

    __slots__ = ("answers", "done", "requests", "woken")

    def __init__(self, requests: Sequence[Request]) -> None:
        """Hold these requests until someone leads them."""
        self.requests = requests
        self.answers: list[Answer] = []
        self.done = False
        # Released once: when the answers are there, or when the caller has to lead.
        self.woken: threading.Lock | None = threading.Lock()
        self.woken.acquire()

    @property
    def project(self) -> str:
        """Whose requests they are; one ticket's are all of one project."""
        return self.requests[0].project


class Act(Ticket):
    """Something else to be done in a database transaction of its own, between batches."""

    __slots__ = ("act", "error", "result")

    def __init__(self, act: Callable[[Writer], object]) -> None:
        """Hold the act until someone leads it."""
        super().__init__(())
        self.act = act
        self.result: object = None
        self.error: BaseException | None = None


class LoopTicket(Ticket):
    """Requests of one caller on an event loop; led by the engine's worker thread."""

    __slots__ = ("future", "loop")

    def __init__(self, requests: Sequence[Request], loop: asyncio.AbstractEventLoop) -> None:
        """Hold these requests; `future` gets the answers on `loop`."""
        self.requests = requests
        self.answers: list[Answer] = []
        self.done = False
        self.woken = None
        self.loop = loop
        self.future: asyncio.Future[list[Answer]] = loop.create_future()


class Engine:
    """The queue in front of one store, and the rule of who writes.

    Attributes:
        bridge: How to reach an event loop that owns the connection; the engine's own has none.
        observe: Called with each batch after it is written and before it is answered, by the
            thread that wrote it. It must not raise, and not wait.
        wake: Called after a batch in which a balance fell to where it is topped up, by the thread
            that wrote it. It must not raise, and not wait.
    """

    bridge: Bridge | None = None
    observe: Callable[[Batch], None] | None = None
    wake: Callable[[], None] | None = None

    def __init__(
        self,
        store: Store,
        *,
        project: str = "default",
        clock: Callable[[], int] = now,
        waiting_max: int = WAITING_MAX,
    ) -> None:
        """Serve one store.

        Args:
            store: Where the ledgers are kept.
            project: What a ledger on this engine is opened for, unless it names another. One
                batch holds the requests of one project; several take turns.
            clock: Returns microseconds since 1970. May step back; account time does not.
            waiting_max: How many requests may wait before new ones are turned away.
        """
        self.store = store
        self.project = project
        self.clock = clock
        self._waiting_max = waiting_max
        self._broken = False
        self._doubtful: frozenset[Key] = frozenset()
        self._closed = False
        self._reset()
        _ENGINES.add(self)

    def _reset(self) -> None:
        # A bare lock in `with`, since Ctrl-C cannot come between its doing and its undoing.
        self._mutex = threading.Lock()
        self._calm = threading.Condition(self._mutex)  # told when nobody holds the baton
        self._queue: deque[Ticket] = deque()
        self._waiting = 0
        self._holder: Ticket | None = None  # whose caller has the baton
        self._leader = 0  # the thread that writes for the holder; 0 before it began
        self._batch: list[Ticket] = []  # what it took from the queue and has not answered yet
        self._rounds: list[threading.Lock] = []  # see _let_loops_come_round
        self._pause: Act | None = None
        self._worker: ThreadPoolExecutor | None = None

    # ------------------------------------------------------------ callers

    def execute(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer these requests, blocking until they are committed.

        Returns:
            One answer for each, in order; errors are answers too.

        Raises:
            StoreClosed, Overloaded: Nothing was taken, nothing was written.
        """
        ticket = Ticket(requests)
        self._go_through(ticket)
        return ticket.answers

    def submit(
        self, requests: Sequence[Request], loop: asyncio.AbstractEventLoop
    ) -> asyncio.Future[list[Answer]]:
        """Queue these requests for a caller on `loop`; the future gets their answers."""
        ticket = LoopTicket(requests, loop)
        try:
            if self._enqueue(ticket):
                self._lead_elsewhere(ticket)
        except BaseException:
            self._let_go(ticket)
            raise
        return ticket.future

    def perform(self, act: Callable[[Writer], T]) -> T:
        """Do something in a database transaction of its own, in turn with the batches.

        Raises:
            StoreUnavailable: Nothing was written.
            OutcomeUnknown: The commit erred; look whether it is there.
        """
        ticket = Act(act)
        self._go_through(ticket)
        if ticket.error is not None:
            raise ticket.error
        return cast("T", ticket.result)

    @property
    def waiting(self) -> int:
        """How many requests wait to be written."""
        return self._waiting

    def close(self) -> None:
        """Turn new requests away, answer those that wait, close the store."""
        with self._calm:
            if self._closed:
                return
            self._closed = True
            self._calm.wait_for(lambda: self._holder is None)
        if self._worker is not None:
            self._worker.shutdown(wait=True)
        self.store.close()

    # ------------------------------------------------------------ the baton
    #
    # Ctrl-C may come anywhere in the main thread, so each step here can be said again: who has the
    # baton is one attribute, and whoever is interrupted looks whether it was he (`_let_go`).

    def _go_through(self, ticket: Ticket) -> None:
        """Queue a ticket of a caller that blocks; return when it is answered."""
        try:
            if not self._enqueue(ticket):
                assert ticket.woken is not None
                ticket.woken.acquire()
            if not ticket.done:
                self._lead(ticket)
        except BaseException:
            self._let_go(ticket)
            raise

    def _enqueue(self, ticket: Ticket) -> bool:
        """Put a ticket in the queue; return whether its caller has to lead."""
        with self._mutex:
            if self._closed:
                raise StoreClosed("the ledger is closed; nothing was written")
            size = len(ticket.requests)
            if self._waiting + size > self._waiting_max and self._waiting:
                raise Overloaded(
                    f"{self._waiting} requests are waiting; nothing was written. Ask again later "
                    f"with the same request_id"
                )
            self._waiting += size
            self._queue.append(ticket)
            if self._holder is None:
                self._holder = ticket
            return self._holder is ticket

    def _let_go(self, ticket: Ticket) -> None:
        """After an interruption: leave the queue, and give on the baton if it is here."""
        with self._mutex:
            if ticket in self._queue:
                self._queue.remove(ticket)
                self._waiting -= len(ticket.requests)
            holder = self._holder
        if holder is ticket:
            holder = self._finish(ticket)
        if isinstance(holder, LoopTicket) and not self._leader:
            self._lead_elsewhere(holder)  # twice does no harm

    def _lead(self, ticket: Ticket) -> None:
        """Write one batch, answer it, and pass the baton; go on while loops are waiting."""
        while self._take(ticket):
            try:
                first = self._batch[0]
                if isinstance(first, Act):
                    self._perform(first)
                else:
                    self._commit(self._batch)
            finally:
                # Whatever happens here, Ctrl-C included, nobody is left waiting.
                heir = self._finish(ticket)
            if heir is None:
                return
            if threading.current_thread().name != _WORKER and self._hand_to_worker(heir):
                return
            self._let_loops_come_round()
            ticket = heir

    def _let_loops_come_round(self) -> None:
        """Let the loops just answered ask again before the next batch is taken.

        Otherwise this thread and the loop take Python's lock from each other at every statement,
        and each batch holds but half of the callers. A loop that is busy is not waited for long.
        """
        for come_round in self._rounds:
            come_round.acquire(timeout=ROUND_SECONDS)

    def _take(self, ticket: Ticket) -> bool:
        """Take what is waiting, up to a batch; False if another leads for this ticket."""
        with self._mutex:
            if self._holder is not ticket or self._leader:
                return False
            self._leader = threading.get_ident()
            size = 0
            others: list[Ticket] = []  # of other projects: theirs is another batch
            while self._queue:
                head = self._queue[0]
                more, alone = len(head.requests), isinstance(head, Act)
                if self._batch and (alone or size + more > BATCH_MAX):
                    break
                self._queue.popleft()
                if self._batch and head.project != self._batch[0].project:
                    others.append(head)
                    continue
                self._batch.append(head)
                size += more
                self._waiting -= more
                if alone:
                    break
            self._queue.extendleft(reversed(others))
            return True

    def _finish(self, ticket: Ticket) -> LoopTicket | None:
        """Answer the batch and pass the baton; return the next in line if the worker leads it."""
        self._rounds = _wake(self._batch)
        self._batch.clear()
        with self._mutex:
            if self._holder is not ticket:
                return None
            while self._queue and self._queue[0].done:
                self._queue.popleft()
            self._leader = 0
            heir = self._queue[0] if self._queue else None
            if heir is None:
                if self._closed:
                    self._calm.notify_all()
            elif heir.woken is None:
                assert isinstance(heir, LoopTicket)
                self._holder = heir
                return heir
            else:
                wake = heir.woken.release
                self._holder = heir
                wake()
                return None
            self._holder = None
            return None

    def _lead_elsewhere(self, ticket: LoopTicket) -> None:
        """Have the worker thread lead, so that no event loop ever waits for a disk."""
        if not self._hand_to_worker(ticket):
            self._lead(ticket)

    def _hand_to_worker(self, ticket: LoopTicket) -> bool:
        """Return whether the worker thread leads; it cannot while the interpreter ends."""
        try:
            with self._mutex:
                if self._worker is None:
                    # Slow to import, and only event loops need it. Too late for that is an error.
                    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

                    self._worker = ThreadPoolExecutor(1, initializer=_name_worker)
                worker = self._worker
            worker.submit(self._lead, ticket)
        except RuntimeError:
            return False
        return True

    # ------------------------------------------------------------ one batch

    def _perform(self, ticket: Act) -> None:
        try:
            self._recover()
            ticket.result = persist(self.store, partial(act_in, act=ticket.act))
        except CommitUncertain as problem:
            self._broken = True
            ticket.error = OutcomeUnknown(f"{problem}: look whether it is there")
        except Exception as problem:  # noqa: BLE001 - raised again in the caller's own thread
            ticket.error = problem

    def _recover(self) -> None:
        if self._broken:
            self.store.recover()
            self._broken = False

    def _commit(self, batch: list[Ticket]) -> None:
        """Give every ticket of the batch its answers; who has none was interrupted."""
        requests = [request for ticket in batch for request in ticket.requests]
        began = time.time_ns()
        try:
            answers = self._write(requests)
        except CommitUncertain as problem:
            answers = self._find_out(requests, problem)
        except StoreCorrupt:
            answers = self._one_by_one(requests)  # one account's damage is not its neighbours'
        except StoreError as problem:
            answers = [self._failed(request, problem) for request in requests]
        except Exception:  # noqa: BLE001 - one bad request must not sink the others
            answers = self._one_by_one(requests)
        except BaseException:  # they are told that nobody knows, and so it stays until one looks
            self._doubt(requests)
            raise
        if self._doubtful:
            self._doubtful -= {
                (request.account_id, request.request_id)
                for request, answer in zip(requests, answers, strict=True)
                if not isinstance(answer.outcome, StoreError)
            }
        if self.observe is not None:
            self.observe(Batch(requests, answers, began, time.time_ns(), self._waiting))
        first = 0
        for ticket in batch:
            ticket.answers = answers[first : first + len(ticket.requests)]
            first += len(ticket.requests)

    def _write(self, requests: Sequence[Request]) -> list[Answer]:
        """Decide and write these requests in one database transaction."""
        self._recover()
        low: set[tuple[bytes, str]] = set()
        answers = persist(
            self.store,
            lambda tx: answer_in(tx, self.store.scale, requests, self.clock(), low),
        )
        if low and self.wake is not None:
            self.wake()
        return answers

    def _one_by_one(self, requests: Sequence[Request]) -> list[Answer]:
        """Write each request on its own, so that only the guilty one fails."""
        answers: list[Answer] = []
        for request in requests:
            try:
                answers += self._write([request])
            except CommitUncertain as problem:
                answers += self._find_out([request], problem)
            except StoreError as problem:
                answers.append(self._failed(request, problem))
            except InvalidInput as problem:
                answers.append(Answer(problem))
            except Exception as problem:  # noqa: BLE001 - reported to its caller as it is
                failure = StoreUnavailable(f"the request could not be carried out: {problem!r}")
                failure.__cause__ = problem
                answers.append(self._failed(request, failure))
        return answers

    def _find_out(self, requests: Sequence[Request], problem: CommitUncertain) -> list[Answer]:
        """Look up, after opening the database anew, what became of an uncertain commit."""
        self._broken = True
        self._doubt(requests)
        try:
            self._recover()
            found = persist(self.store, lambda tx: self._look_up(tx, requests))
        except Exception as again:  # noqa: BLE001 - whatever it is, nobody knows what became of it
            unknown = OutcomeUnknown(
                f"{problem}, and it could not be looked up ({again}). It is written whole or not "
                f"at all: ask again with the same request_id"
            )
            return [Answer(unknown)] * len(requests)
        self._doubtful -= {(r.account_id, r.request_id) for r in requests}
        return [
            _settled(request, found.get((request.account_id, request.request_id)), problem)
            for request in requests
        ]

    def _doubt(self, requests: Sequence[Request]) -> None:
        self._doubtful |= {(r.account_id, r.request_id) for r in requests}

    def _look_up(self, tx: Writer, requests: Sequence[Request]) -> dict[Key, Entry | Refusal]:
        """Return what these requests were answered, waiting for whoever may still be writing it."""
        wanted = {request.account_id: request.account for request in requests}
        keys = [(request.account_id, request.request_id) for request in requests]
        return tx.load(requests[0].project, wanted, keys)[1]

    def _failed(self, request: Request, problem: StoreError) -> Answer:
        """Return why it was not written; unknown still, where an earlier try is in doubt."""
        if (request.account_id, request.request_id) not in self._doubtful:
            return Answer(problem)
        unknown = OutcomeUnknown(
            f"an earlier try may be written, and it cannot be looked up yet ({problem}): ask "
            f"again with the same request_id"
        )
        return Answer(unknown)

    # ------------------------------------------------------------ forks

    def before_fork(self) -> None:
        """Wait for the batch that is being written, and keep the baton while the process forks."""
        pause = Act(lambda _: None)
        assert pause.woken is not None
        with self._mutex:
            # A fork out of the very thread that leads cannot wait for itself.
            itself = self._leader == threading.get_ident()
            waits = self._holder is not None
            if not itself:
                self._pause = pause
                self._queue.append(pause)
                self._holder = self._holder or pause
        if not itself:
            if waits:
                pause.woken.acquire()
            with self._mutex:
                self._queue.remove(pause)
        self.store.before_fork()

    def fork_done(self) -> None:
        """Go on, in the parent."""
        self.store.fork_done()
        pause, self._pause = self._pause, None
        if pause is not None:
            heir = self._finish(pause)
            if heir is not None:
                self._lead_elsewhere(heir)

    def after_fork(self) -> None:
        """Start anew in a forked child; what was waiting belongs to the parent."""
        self.store.after_fork()
        self._reset()


def _still_here(tx: Writer) -> None:
    """Let nobody write to a ledger that was moved (see `copying`)."""
    where = tx.moved_to()
    if where is not None:
        raise StoreReadOnly(f"the ledger was moved to {where}: open it there; nothing was written")


def _settled(request: Request, found: Entry | Refusal | None, problem: CommitUncertain) -> Answer:
    # Deciding anew, a refusal may be the old one or the new one: asking again tells.
    if isinstance(found, Refusal) and request.retry_refused:
        found = None
    if isinstance(found, Refusal) and found.code == ANSWERED_BEFORE:
        found = None  # what it points to is found by asking again
    if found is not None and found.fingerprint == request.fingerprint:
        return Answer(found)
    lost = StoreUnavailable(f"{problem}; nothing was written. Ask again with the same request_id")
    return Answer(lost)


def _wake(batch: list[Ticket]) -> list[threading.Lock]:
    """Answer everyone; an event loop is woken once for all its callers.

    Returns:
        A lock for each loop, released when the loop has come round: its callers have seen their
        answers, and those that ask again have done so.
    """
    rounds = []
    loops: dict[asyncio.AbstractEventLoop, list[LoopTicket]] = {}
    for ticket in batch:
        if not ticket.answers:
            ticket.answers = [_INTERRUPTED] * len(ticket.requests)
        if isinstance(ticket, LoopTicket):
            loops.setdefault(ticket.loop, []).append(ticket)
    for loop, tickets in loops.items():
        come_round = threading.Lock()
        come_round.acquire()
        try:
            loop.call_soon_threadsafe(_resolve, tickets, come_round)
        except RuntimeError:
            continue  # the loop was closed: nobody is left to be told
        rounds.append(come_round)
    for ticket in batch:
        if not ticket.done:
            ticket.done = True
            if ticket.woken is not None:
                ticket.woken.release()
    return rounds


def _resolve(tickets: list[LoopTicket], come_round: threading.Lock) -> None:
    loop = tickets[0].loop
    for ticket in tickets:
        if not ticket.future.done():
            ticket.future.set_result(ticket.answers)
    loop.call_soon(come_round.release)  # after the callers, which are called soon as well


_WORKER = "tillroll-writer"


def _name_worker() -> None:
    threading.current_thread().name = _WORKER


_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()
_FORKING = threading.RLock()  # one fork at a time, since it stops all engines
_PAUSED: list[Engine] = []


def _before_fork() -> None:
    _FORKING.acquire()
    for engine in list(_ENGINES):
        engine.before_fork()
        _PAUSED.append(engine)


def _fork_done() -> None:
    while _PAUSED:
        _PAUSED.pop().fork_done()
    _FORKING.release()


def _after_fork_in_child() -> None:
    while _PAUSED:
        _PAUSED.pop().after_fork()
    _FORKING.release()


os.register_at_fork(
    before=_before_fork, after_in_parent=_fork_done, after_in_child=_after_fork_in_child
)

__all__ = ["BATCH_MAX", "Engine", "act_in", "answer_in", "answer_then", "now", "rules_of"]
