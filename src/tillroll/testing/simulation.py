"""Histories under faults, made up from a seed: the same seed is the same run, always.

Several callers send requests through one engine; the network loses answers, repeats requests and
reorders them; the store is busy, full, crashes before or after its commit, or errs at it; the
clock jumps. A caller that got no answer asks again with the same id until it has one. Afterwards
every answer must be in the history once, the history must verify, and the auditor must predict
each entry and each refusal.

    python -m tillroll.testing.simulation --seed 1 --count 1000
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn

from tillroll import queries
from tillroll.embedded.opening import open_store
from tillroll.engine import Engine
from tillroll.ledger.book import Answer
from tillroll.ledger.calendar import to_datetime
from tillroll.ledger.chain import encode
from tillroll.ledger.commands import Request, account_id
from tillroll.ledger.errors import StoreBusy, StoreFull, TillrollError
from tillroll.ledger.types import DAY, HOUR, MINUTE, SECOND, Entry, Refusal
from tillroll.ledger.verbs import Verbs
from tillroll.stores.base import CommitUncertain, Store, Writer
from tillroll.stores.memory import MemoryStore
from tillroll.testing.auditor import Auditor, Call, compare, entry_pairs
from tillroll.testing.linearizability import Seen
from tillroll.testing.linearizability import problems as order_problems

PROJECT = "default"
START = 1_769_900_400_000_000  # an hour before the end of January 2026
ACCOUNTS = ("acme", "zoe")
CALLERS = 6
STEPS = 70
BATCH_MAX = 4
PATIENCE = 400  # rounds in which everything must be answered once the faults have stopped
FAULTS = (
    "busy",
    "full",
    "crash before commit",
    "crash after commit",
    "uncertain, lost",
    "uncertain, done",
)
JUMPS = (SECOND, 10 * MINUTE, HOUR, DAY, 9 * DAY, -SECOND, -HOUR, -2 * DAY)


class Crash(BaseException):
    """The process died: nobody gets an answer, nothing but the store is left."""


class _Undone(Exception):
    """The database transaction is to be rolled back."""


class FaultyStore:
    """A store that fails as it is told."""

    def __init__(self, inner: Store) -> None:
        """Wrap a store; `fault` is what befalls the next write."""
        self.inner = inner
        self.fault: str | None = None

    def __getattr__(self, name: str) -> Any:
        """Be the inner store in everything else."""
        return getattr(self.inner, name)

    @contextmanager
    def write(self) -> Iterator[Writer]:
        """Open a database transaction that ends as `fault` says."""
        fault, self.fault = self.fault, None
        if fault == "busy":
            raise StoreBusy("a simulated lock; nothing was written")
        try:
            with self.inner.write() as tx:
                yield tx
                _fail_before_commit(fault)
        except _Undone as undone:
            raise CommitUncertain("a simulated error at the commit") from undone
        if fault == "crash after commit":
            raise Crash
        if fault == "uncertain, done":
            raise CommitUncertain("a simulated error at the commit")


def _fail_before_commit(fault: str | None) -> None:
    if fault == "full":
        raise StoreFull("a simulated full disk; nothing was written")
    if fault == "crash before commit":
        raise Crash
    if fault == "uncertain, lost":
        raise _Undone


@dataclass
class Sent:
    """A request of one caller, until it is answered."""

    call: Call
    request: Request
    invoked: int
    answered: bool = False


@dataclass
class Caller:
    """One logical caller: sends a call, waits for its answer, then sends the next."""

    name: str
    waiting: Sent | None = None
    count: int = 0
    holds: list[tuple[str, str]] = field(default_factory=list)
    charges: list[tuple[str, str]] = field(default_factory=list)
    grants: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Acknowledged:
    """An answer that a caller got."""

    sent: Sent
    outcome: Entry | Refusal | TillrollError
    replayed: bool
    completed: int


class Simulation:
    """One run."""

    def __init__(self, seed: int, open_store: Callable[[], Store] = MemoryStore) -> None:
        """Set up a run.

        Args:
            seed: What everything is drawn from.
            open_store: Opens the store, and opens it again after a crash. A store in memory is
                kept over crashes, as a disk would be.
        """
        self.random = random.Random(seed)  # noqa: S311 - to be repeatable is the point
        self.entitles = seed % 2 == 1  # seeds that once failed were drawn without
        self.open_store = open_store
        self.clock = START
        self.tick = 0
        self.disk = FaultyStore(open_store())
        self.engine = self._engine()
        self.verbs = Verbs(PROJECT, self.disk.scale, self._no_id, self._no_quote)
        self.callers = [Caller(f"caller{n}") for n in range(CALLERS)]
        self.network: list[Sent] = []
        self.acknowledged: list[Acknowledged] = []
        self.reads: list[Seen] = []
        # Swarm: each run has its own rates, so that some runs are all of one kind.
        self.fault_rate = self.random.choice([0.0, 0.1, 0.3, 0.6])
        self.loss_rate = self.random.choice([0.0, 0.1, 0.5])
        self.repeat_rate = self.random.choice([0.0, 0.2, 0.5])
        self.jump_rate = self.random.choice([0.0, 0.05, 0.3])
        self.faults = self.random.sample(FAULTS, self.random.randint(1, len(FAULTS)))

    def _engine(self) -> Engine:
        store: Any = self.disk
        return Engine(store, project=PROJECT, clock=lambda: self.clock)

    def _no_id(self) -> NoReturn:
        raise AssertionError("every call of a simulation names its id")

    def _no_quote(self, _text: str) -> NoReturn:
        raise AssertionError("no call of a simulation has a quote")

    # ------------------------------------------------------------ the run

    def run(self) -> list[str]:
        """Run, and return everything that is wrong afterwards; empty where all is well."""
        for _ in range(STEPS):
            self.step()
        self.fault_rate = self.loss_rate = self.repeat_rate = 0.0
        for _ in range(PATIENCE):
            if not self.network and not any(caller.waiting for caller in self.callers):
                break
            self.deliver()
        found = self.problems()
        self.disk.inner.close()
        return found

    def step(self) -> None:
        """Do one thing: send, deliver, read, sweep, or let the clock go on."""
        self.tick += 1
        self.clock += self.random.randint(0, 2) * SECOND
        if self.random.random() < self.jump_rate:
            self.clock += self.random.choice(JUMPS)
        for caller in self.callers:
            if caller.waiting is None and self.random.random() < 0.5:  # noqa: PLR2004 - even
                self.send(caller)
        self.deliver()
        if self.random.random() < 0.1:  # noqa: PLR2004 - now and then
            self.sweep()
        if self.random.random() < 0.3:  # noqa: PLR2004 - often
            self.read(self.random.choice(ACCOUNTS))

    def send(self, caller: Caller) -> None:
        """Have a caller make up its next call."""
        call = self.next_call(caller)
        request = getattr(self.verbs, call.verb)(call.account, **call.args)
        caller.waiting = Sent(call, request, self.tick)
        self.network.append(caller.waiting)

    def deliver(self) -> None:
        """Let some requests arrive together, in any order; some answers are lost."""
        self.tick += 1
        for caller in self.callers:
            if caller.waiting is not None and caller.waiting not in self.network:
                self.network.append(caller.waiting)  # no answer came: ask again
        self.random.shuffle(self.network)
        batch = self.network[: self.random.randint(1, BATCH_MAX)]
        self.network = self.network[len(batch) :]
        if not batch:
            return
        if self.random.random() < self.fault_rate:
            self.disk.fault = self.random.choice(self.faults)
        try:
            answers = self.engine.execute([sent.request for sent in batch])
        except Crash:
            self.restart()
            return
        self.tick += 1
        for sent, answer in zip(batch, answers, strict=True):
            if self.random.random() < self.repeat_rate:
                self.network.append(sent)  # a copy that the network delivers later
            if self.random.random() >= self.loss_rate:
                self.answer(sent, answer)

    def restart(self) -> None:
        """Begin anew on what the store kept."""
        if not isinstance(self.disk.inner, MemoryStore):
            self.disk.inner.close()
            self.disk = FaultyStore(self.open_store())
        self.engine = self._engine()

    def answer(self, sent: Sent, answer: Answer) -> None:
        """Give a caller its answer; without a definite one it goes on asking."""
        outcome = answer.outcome
        definite = isinstance(outcome, Entry | Refusal) or outcome.code in (
            "invalid_input",
            "idempotency_conflict",
        )
        if sent.answered or not definite:
            return
        sent.answered = True
        self.acknowledged.append(Acknowledged(sent, outcome, answer.replayed, self.tick))
        for caller in self.callers:
            if caller.waiting is sent:
                caller.waiting = None
                if isinstance(outcome, Entry):
                    self.learn(caller, sent.call)

    def learn(self, caller: Caller, call: Call) -> None:
        """Remember what a caller can act on later."""
        known = call.account, call.args["request_id"]
        if call.verb == "hold":
            caller.holds.append(known)
        elif call.verb == "consume":
            caller.charges.append(known)
        elif call.verb == "settle":
            caller.charges += [known, (call.account, call.args["hold_id"])]
        elif call.verb == "grant":
            caller.grants.append(known)

    def sweep(self) -> None:
        """Book what is due on one account, as a job would, by a request that moves nothing."""
        self.disk.fault = None
        owner, account = account_id(PROJECT, ACCOUNTS[0]), ACCOUNTS[0]

        def act(tx: Writer) -> None:
            from tillroll.ledger.book import Book  # noqa: PLC0415 - used here only
            from tillroll.ledger.core import advance_in  # noqa: PLC0415 - used here only

            book = Book(accounts=tx.load_locked(PROJECT, {owner: account}))
            advance_in(book, owner, max(self.clock, book.accounts[owner].at))
            tx.append(PROJECT, book)

        self.engine.perform(act)

    def read(self, account: str) -> None:
        """Note what a reader sees of an account."""
        owner = account_id(PROJECT, account)
        with self.disk.read() as reader:
            seq = reader.accounts([(owner, account)])[owner].seq
            entries = reader.entries(owner, seq - 1, 1) if seq else []
        available = entries[0].entry.available if entries else 0
        self.reads.append(Seen(account, "read", seq, available, None, self.tick, self.tick))

    # ------------------------------------------------------------ what callers do

    def next_call(self, caller: Caller) -> Call:
        """Make up a call: mostly charges, and whatever can be done to what was done before."""
        rng = self.random
        caller.count += 1
        request_id = f"{caller.name}-{caller.count}"
        account = rng.choice(ACCOUNTS)
        verb = rng.choices(
            ["grant", "consume", "hold", "on hold", "refund", "void", "govern"],
            [3, 6, 5, 8, 2, 1, 2],
        )[0]
        units = rng.randint(1, 20)
        if verb == "on hold" and caller.holds:
            account, hold_id = rng.choice(caller.holds)
            return self._on_hold(account, hold_id, request_id)
        if verb == "refund" and caller.charges:
            account, charge = rng.choice(caller.charges)
            args: dict[str, Any] = {"charge": charge, "units": rng.choice([None, 1, units])}
            return Call("refund", account, _given(args, request_id))
        if verb == "void" and caller.grants:
            account, grant_id = rng.choice(caller.grants)
            args = {"grant_id": grant_id, "units": rng.choice([None, units])}
            return Call("void", account, _given(args, request_id))
        if verb == "govern":
            return self._govern(account, request_id)
        if verb == "grant":
            args = {
                "units": rng.randint(1, 60),
                "expires_in": rng.choice([None, "5m", "1h", "3d"]),
                "priority": rng.choice([0, 0, 1]),
                "applies_to": rng.choice([(), (), ("image.*",)]),
            }
            return Call("grant", account, _given(args, request_id))
        args = {
            "units": units,
            "operation": rng.choice([None, "image.generate", "text.write"]),
            "tags": rng.choice([None, {"member": "ann"}, {"member": "bob"}]),
        }
        if verb == "hold":
            args |= {"floor": rng.choice([None, 1]), "expires_in": rng.choice([None, "5m", "1h"])}
        return Call("hold" if verb == "hold" else "consume", account, _given(args, request_id))

    def _on_hold(self, account: str, hold_id: str, request_id: str) -> Call:
        rng = self.random
        verb = rng.choice(["settle", "settle", "settle", "release", "extend", "mark_in_doubt"])
        args: dict[str, Any] = {"hold_id": hold_id}
        if verb == "settle":
            args |= {
                "units": rng.choice([None, 1, rng.randint(1, 25)]),
                "final": rng.random() < 0.7,  # noqa: PLR2004 - mostly
                "above": rng.choice(["available", "refuse", "overdraft"]),
            }
        elif verb == "extend":
            args["expires_in"] = "2h"
        elif verb == "mark_in_doubt":
            args |= {"deadline_in": "3h", "at_deadline": rng.choice(["release", "settle"])}
        return Call(verb, account, _given(args, request_id))

    def _govern(self, account: str, request_id: str) -> Call:
        rng = self.random
        choices: list[tuple[str, dict[str, Any]]] = [
            ("set_overdraft", {"limit": rng.randint(0, 20)}),
            ("freeze", {}),
            ("unfreeze", {}),
            ("unfreeze", {}),
            ("configure", {"late_settlement": rng.choice([True, False])}),
            ("adjust", {"units": rng.choice([-3, 7]), "reason": "simulated"}),
            ("set_budget", {"name": "b", "cap": rng.randint(5, 90), "period": "day"}),
            ("set_budget", {"name": "c", "cap": 30, "match": {"member": "*"}}),
            ("set_alert", {"name": "a", "on": "expiring", "threshold": rng.randint(1, 3)}),
            ("set_alert", {"name": "b", "on": "balance", "threshold": rng.randint(1, 30)}),
            ("remove_alert", {"name": "a"}),
        ]
        if self.entitles:
            choices += [
                ("entitle", {"name": "pro", "features": {"hd": True}, "grants": _GRANTS}),
                ("entitle", {"name": "pro", "lasts": "1h"}),
                ("entitle", {"name": "max", "product": "max", "grants": _GRANTS[:1]}),
                ("change_entitlement", {"name": "pro", "status": "past_due"}),
                ("change_entitlement", {"name": "pro", "status": "active", "ends_at": "never"}),
                ("end_entitlement", {"name": "pro"}),
                ("end_entitlement", {"name": "max", "when": "period_end"}),
                ("consume", {"units": 1, "feature": "hd"}),
                ("hold", {"units": 1, "feature": "hd"}),
            ]
        verb, args = rng.choice(choices)
        return Call(verb, account, _given(args, request_id))

    # ------------------------------------------------------------ afterwards

    def problems(self) -> list[str]:
        """Return everything that the end of a run shows to be wrong."""
        store: Any = self.disk
        found = [f"{item}" for item in queries.verify(store, PROJECT).problems]
        histories = {
            account: [receipt.entry for receipt in queries.histories(store, PROJECT, account)]
            for account in ACCOUNTS
        }
        waiting = [caller.waiting.call for caller in self.callers if caller.waiting is not None]
        found += [f"{call} was never answered" for call in waiting]
        for account, history in histories.items():
            ids = [entry.request_id for entry in history if entry.request_id]
            found += [f"{account}: {name} is there twice" for name in ids if ids.count(name) > 1]
        found += self._lost(histories)
        found += order_problems(self._seen(), histories)
        for account, history in histories.items():
            found += self._audit(account, history)
        return found

    def _lost(self, histories: dict[str, list[Entry]]) -> list[str]:
        """Return what was acknowledged and is not in the history as it was acknowledged."""
        found = []
        for item in self.acknowledged:
            history = histories[item.sent.call.account]
            outcome = item.outcome
            name = item.sent.request.request_id
            if isinstance(outcome, Entry):
                stored = history[outcome.seq - 1] if outcome.seq <= len(history) else None
                if stored is None or encode(stored) != encode(outcome):
                    found.append(f"acknowledged {name} is not in the history as it was answered")
            elif any(entry.request_id == name for entry in history):
                found.append(f"{name} was answered with {outcome!r}, yet it is in the history")
        return found

    def _seen(self) -> list[Seen]:
        seen = list(self.reads)
        for item in self.acknowledged:
            outcome, when = item.outcome, (item.sent.invoked, item.completed)
            account = item.sent.call.account
            if item.replayed or isinstance(outcome, TillrollError):
                continue
            if isinstance(outcome, Entry):
                fact = Seen(account, "write", outcome.seq, outcome.available, None, *when)
            else:
                needed, available = outcome.needed, outcome.available
                if outcome.code not in ("insufficient_units", "budget_exceeded"):
                    needed = available = None
                fact = Seen(account, "refusal", outcome.seq, available, needed, *when)
            seen.append(fact)
        return seen

    def _audit(self, account: str, history: Sequence[Entry]) -> list[str]:
        """Have the auditor predict each entry and each refusal, in the order of the history."""
        auditor = Auditor(scale=self.disk.scale)
        calls = {item.sent.request.request_id: item.sent.call for item in self.acknowledged}
        events: list[tuple[float, int, Entry | Refusal]] = [
            (entry.seq, entry.at, entry) for entry in history
        ]
        refused: dict[str, Refusal] = {}
        for item in self.acknowledged:
            outcome = item.outcome
            if isinstance(outcome, Refusal) and item.sent.call.account == account:
                refused[outcome.request_id] = outcome
        # A refusal saw everything up to its seq and nothing after it.
        events += [(r.seq + 0.5, r.at, r) for r in refused.values()]
        found = []
        for _, at, outcome in sorted(events, key=lambda event: event[:2]):
            call = calls.get(outcome.request_id or "")
            if call is None:  # the clock led to it
                auditor.account(account).advance(_moment(at))
                continue
            expected = auditor.expect(call, _moment(at))
            if isinstance(outcome, Refusal):
                found += [f"{call}: {text}" for text in _differs(expected, outcome)]
        for wanted, entry in zip(auditor.account(account).written, history, strict=False):
            receipt = queries.Receipt(entry, self.disk.scale, account)
            pairs = entry_pairs(wanted, receipt)
            found += [
                f"{account} #{entry.seq} {entry.kind}: {name}: expected {one}, found {other}"
                for name, (one, other) in pairs.items()
                if one != other
            ]
        return found


# What the entitlements of a simulation bring, often enough to fall due within it.
_GRANTS: list[dict[str, Any]] = [
    {"units": 9, "every": "day", "rollover_max": 3},
    {"units": 4, "every": "week", "name": "weekly", "applies_to": ["image.*"]},
]


def _differs(expected: Any, refusal: Refusal) -> list[str]:
    from tillroll.embedded import refused  # noqa: PLC0415 - the one way to show a refusal

    return compare(expected, refused(refusal, "", 6, replayed=False))


def _given(args: dict[str, Any], request_id: str) -> dict[str, Any]:
    return {name: v for name, v in args.items() if v is not None} | {"request_id": request_id}


def _moment(at: int) -> datetime:
    return to_datetime(at)


def run(seed: int, url: str | None = None) -> list[str]:
    """Run one seed in memory or on a store of its own; return what is wrong, if anything.

    Args:
        seed: What befalls whom, and when.
        url: An empty store, opened again after each crash; None: memory.
    """
    if url is None:
        return Simulation(seed).run()
    return Simulation(seed, lambda: open_store(url)).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run seeds in a row and print those that fail."""
    parser = argparse.ArgumentParser(prog="python -m tillroll.testing.simulation")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--count", type=int, default=100, help="how many seeds")
    parser.add_argument("--sqlite", action="store_true", help="on a SQLite file, not in memory")
    asked = parser.parse_args(arguments)
    failed = 0
    for seed in range(asked.seed, asked.seed + asked.count):
        with tempfile.TemporaryDirectory() as folder:
            found = run(seed, f"sqlite:///{folder}/simulation.db" if asked.sqlite else None)
        if found:
            failed += 1
            sys.stdout.write(f"seed {seed} fails:\n")
            sys.stdout.writelines(f"  {line}\n" for line in found[:10])
    sys.stdout.write(f"{asked.count} seeds, {failed} failed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
