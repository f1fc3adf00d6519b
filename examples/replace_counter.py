"""Replace a credits column by a ledger, without a night on which everything changes at once.

Three steps, each of which may be repeated: opening grants, a shadow that is compared, the switch.
`python replace_counter.py` walks through them on a small table.
"""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import tillroll

# ---------------------------------------------------------------- what is there today


def spend_counter(db: sqlite3.Connection, user: str, units: int) -> bool:
    """Take units as the old code does: atomic, and blind to retries."""
    with db:
        taken = db.execute(
            "UPDATE users SET credits = credits - ? WHERE id = ? AND credits >= ?",
            (units, user, units),
        )
    return taken.rowcount == 1


# ---------------------------------------------------------------- 1. opening grants


def open_accounts(db: sqlite3.Connection, ledger: tillroll.Ledger) -> int:
    """Grant each user what the counter says, once; return how many grants are new.

    The request_id says what it is, so that the step can be repeated after a crash. Users who came
    later are opened by the next run. Let nobody spend meanwhile, or run it user by user under the
    lock that your spending takes.
    """
    opened = 0
    for user, counter in db.execute("SELECT id, credits FROM users WHERE credits > 0 ORDER BY id"):
        try:
            receipt = ledger.grant(
                user, counter, request_id=f"opening-{user}", source="users.credits"
            )
        except tillroll.IdempotencyConflict:
            continue  # opened before, and the counter has moved since
        opened += not receipt.replayed
    return opened


# ---------------------------------------------------------------- 2. the shadow


def spend_in_shadow(
    db: sqlite3.Connection, ledger: tillroll.Ledger, user: str, units: int, request_id: str
) -> bool:
    """Let the counter decide, and have the ledger do the same beside it.

    The ledger never stops the old code here: what it refuses, or cannot do, shows as a difference.
    """
    taken = spend_counter(db, user, units)
    if taken:
        with contextlib.suppress(tillroll.TillrollError):
            ledger.consume(user, units=units, request_id=request_id)
    return taken


def differences(db: sqlite3.Connection, ledger: tillroll.Ledger) -> Iterator[tuple[str, int, int]]:
    """Yield every user whose counter and ledger differ: user, counter, ledger."""
    for user, counter in db.execute("SELECT id, credits FROM users ORDER BY id"):
        available = ledger.balance(user).available
        if available != counter:
            yield user, counter, int(available)


def align(ledger: tillroll.Ledger, user: str, counter: int, request_id: str) -> None:
    """Correct the ledger to the counter, by an entry with a reason."""
    off = counter - ledger.balance(user).available
    if off:
        ledger.adjust(user, off, reason="the counter decided until today", request_id=request_id)


# ---------------------------------------------------------------- 3. the switch


def spend(ledger: tillroll.Ledger, user: str, units: int, request_id: str) -> bool:
    """Take units from the ledger. It has the signature of the shadow, less the table."""
    try:
        ledger.consume(user, units=units, request_id=request_id)
    except tillroll.InsufficientUnits:
        return False
    return True


def main() -> None:
    """Walk through the three steps."""
    with tempfile.TemporaryDirectory() as folder:
        db = sqlite3.connect(Path(folder) / "app.db")
        db.execute("CREATE TABLE users (id TEXT PRIMARY KEY, credits INTEGER NOT NULL)")
        db.executemany("INSERT INTO users VALUES (?, ?)", [("ann", 120), ("bob", 30), ("cem", 0)])
        with tillroll.open(Path(folder) / "credits.db") as ledger:
            walk(db, ledger)
        db.close()


def walk(db: sqlite3.Connection, ledger: tillroll.Ledger) -> None:
    """Show each step and what it proves."""
    print("1. opened", open_accounts(db, ledger), "then", open_accounts(db, ledger))
    print("   differences:", list(differences(db, ledger)))

    spend_in_shadow(db, ledger, "ann", 20, request_id="job-1")
    spend_in_shadow(db, ledger, "ann", 20, request_id="job-1")  # a retry
    spend_in_shadow(db, ledger, "bob", 10, request_id="job-2")
    with db:  # a page of the back office that nobody remembered
        db.execute("UPDATE users SET credits = credits + 5 WHERE id = 'bob'")
    print("2. differences:", list(differences(db, ledger)))
    for sentence in ledger.explain("job-1")["sentences"][1:]:
        print("  ", sentence.partition(", last at")[0])

    align(ledger, "bob", 25, request_id="align-bob")  # the gift is right; ann was charged twice
    print("   left:", list(differences(db, ledger)))

    print("3. job-3:", spend(ledger, "bob", 15, "job-3"), spend(ledger, "bob", 15, "job-3"))
    print("   job-4:", spend(ledger, "bob", 15, "job-4"))
    print("   ann", ledger.balance("ann").available, "bob", ledger.balance("bob").available)
    print("   proven:", ledger.verify().ok)


if __name__ == "__main__":
    main()
