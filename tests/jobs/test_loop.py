"""The loop: one process a job, another when that one ends, and no end for a job that fails."""

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import tillroll
from tillroll.cli.app import run as cli
from tillroll.jobs import Job, Turn, Worker, book, standard
from tillroll.jobs.loop import LEASE_SECONDS

START = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    """A ledger with a clock, and workers on it."""

    def __init__(self, url: str = "memory://") -> None:
        self.now = START
        self.ledger = tillroll.open(url, clock=lambda: self.now)
        self.engine = self.ledger._engine
        self.done: list[str] = []
        self.turns: list[Turn] = []

    def job(self, who: str, name: str = "count", every: float = 5.0) -> Job:
        def run():
            self.done.append(who)
            return {"count": len(self.done), "more": False}

        return Job(name, every, run)

    def worker(self, who: str, *jobs: Job) -> Worker:
        chosen = jobs or (self.job(who),)
        return Worker(self.engine, chosen, holder=who, tell=self.turns.append)

    def leases(self):
        with self.ledger.store.read() as reader:
            return {lease.name: lease for lease in reader.leases()}


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path: Path):
    url = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/a.db"}.get(request.param)
    found = World(url or request.getfixturevalue("postgres_url"))
    yield found
    found.ledger.close()


def test_of_two_workers_one_does_a_job(world: World):
    ann, bob = world.worker("ann"), world.worker("bob")
    for _ in range(3):
        for worker in (ann, bob):
            worker.run_once()
    assert world.done == ["ann"] * 3
    assert [turn.ours for turn in world.turns] == [True, False] * 3
    assert (ann.is_alive(), bob.is_alive()) == (True, True)
    assert world.leases()["count"].holder == "ann"
    assert json.loads(world.leases()["count"].told) == {"count": 1, "more": False}


def test_who_dies_is_followed_when_the_lease_is_over(world: World):
    world.worker("ann").run_once()  # and is never heard of again
    bob = world.worker("bob")
    world.now += timedelta(seconds=LEASE_SECONDS - 1)
    bob.run_once()
    assert world.done == ["ann"]
    world.now += timedelta(seconds=1)
    bob.run_once()
    assert world.done == ["ann", "bob"]


def test_who_stops_in_order_is_followed_at_once(world: World):
    ann = world.worker("ann")
    ann.run_once()
    ann.close()
    world.worker("bob").run_once()
    assert world.done == ["ann", "bob"]


def test_a_lease_is_prolonged_while_the_job_is_done(world: World):
    ann, bob = world.worker("ann"), world.worker("bob")
    for _ in range(20):
        ann.run_once()
        bob.run_once()
        world.now += timedelta(seconds=LEASE_SECONDS / 2)
    assert world.done == ["ann"] * 20


def test_a_job_that_is_seldom_done_is_kept_for_longer(world: World):
    job = world.job("ann", every=600.0)
    world.worker("ann", job).run_once()
    world.now += timedelta(seconds=1_700)
    world.worker("bob", world.job("bob", every=600.0)).run_once()
    assert world.done == ["ann"]


def test_who_died_with_a_clock_that_was_ahead_is_followed(world: World):
    world.now += timedelta(days=400)
    world.worker("ann").run_once()  # and is never heard of again
    world.now -= timedelta(days=400)
    bob, eve = world.worker("bob"), world.worker("eve")
    for _ in range(2):
        for worker in (bob, eve):
            worker.run_once()
    assert world.done == ["ann", "bob", "bob"]
    assert world.leases()["count"].holder == "bob"


def test_clocks_that_differ_a_little_take_no_job_from_each_other(world: World):
    ann, bob = world.worker("ann"), world.worker("bob")
    for _ in range(3):
        world.now += timedelta(seconds=3)
        ann.run_once()
        world.now -= timedelta(seconds=2)
        bob.run_once()
    assert world.done == ["ann"] * 3


def test_a_clock_that_was_set_right_keeps_its_lease_short(world: World):
    ann = world.worker("ann")
    world.now += timedelta(days=400)
    ann.run_once()
    world.now -= timedelta(days=400)
    ann.run_once()
    ends_at = world.leases()["count"].ends_at
    assert ends_at <= world.engine.clock() + LEASE_SECONDS * 1_000_000


def test_jobs_are_shared_out_one_by_one(world: World):
    ann = world.worker("ann", world.job("ann", "a"))
    ann.run_once()
    bob = world.worker("bob", world.job("bob", "a"), world.job("bob", "b"))
    bob.run_once()
    assert world.done == ["ann", "bob"]
    assert {name: lease.holder for name, lease in world.leases().items()} == {
        "a": "ann",
        "b": "bob",
    }


def test_a_job_that_fails_is_told_and_tried_again():
    world = World()
    problems = iter([ValueError("no"), tillroll.StoreBusy("locked"), None])

    def run():
        problem = next(problems)
        if problem is not None:
            raise problem
        return {}

    worker = world.worker("ann", Job("fails", 5.0, run))
    assert worker.is_alive(), "the first turn may be under way"
    for alive in (False, False, True):
        worker.run_once()
        assert worker.is_alive() is alive
    found = [type(turn.problem) for turn in world.turns]
    assert found == [ValueError, tillroll.StoreBusy, type(None)]


def test_a_job_that_has_more_to_do_goes_on_at_once():
    world = World()
    left = [3]

    def run():
        left[0] -= 1
        return {"left": left[0], "more": left[0] > 0}

    [last] = world.worker("ann", Job("more", 600.0, run)).run_once()
    assert last.told == {"left": 0, "more": False}
    assert len(world.turns) == 3


def test_it_runs_until_it_is_told_to_stop():
    world = World()
    worker = world.worker("ann", world.job("ann", "a", 0.001), world.job("ann", "b", 3_600.0))

    async def main():
        enough, loop = asyncio.Event(), asyncio.get_running_loop()

        def tell(turn: Turn):
            world.turns.append(turn)
            if len(world.turns) >= 5:
                loop.call_soon_threadsafe(enough.set)

        worker._tell = tell
        running = asyncio.create_task(worker.run())
        await enough.wait()
        worker.stop()
        await running

    asyncio.run(main())
    assert {turn.job for turn in world.turns} == {"a", "b"}
    assert sum(turn.job == "b" for turn in world.turns) == 1


def test_who_is_stopped_before_he_began_does_nothing():
    world = World()
    worker = world.worker("ann")
    worker.stop()
    asyncio.run(worker.run())
    assert world.done == []


def test_upkeep_books_what_fell_due_in_every_project():
    world = World()
    other = tillroll.Ledger(world.engine, "other")
    for ledger in (world.ledger, other):
        ledger.grant("acme", 10, expires_in="1d")
        ledger.hold("acme", units=1, request_id="h", expires_in="1h")
        ledger.mark_in_doubt("acme", "h", deadline_in="3d")
    world.now += timedelta(days=2)
    found = book(world.engine)
    assert (found["booked"], found["in_doubt"], found["more"]) == (2, 2, False)
    assert found["oldest_due_seconds"] == 86_400
    assert (found["outbox_waiting"], found["outbox_lag_seconds"]) == (0, 0.0)
    assert [one.kind for one in other.history("acme")][-1] == "grant_expired"
    assert book(world.engine)["booked"] == 0


def test_the_standard_jobs_have_names_of_their_own():
    world = World()
    jobs = standard(world.engine)
    assert [job.name for job in jobs] == ["upkeep", "webhooks", "prune"]
    worker = world.worker("ann", *jobs)
    assert all(turn.problem is None for turn in worker.run_once())
    worker.close()
    assert all(lease.ends_at <= world.engine.clock() for lease in world.leases().values())


def test_the_command_shows_who_does_what(tmp_path: Path, capsys):
    db = str(tmp_path / "a.db")
    with tillroll.open(db) as ledger:
        ledger.grant("acme", 1)
    assert cli(["jobs", "run", "--once", "--json", "--db", db]) == 0
    done = json.loads(capsys.readouterr().out)["jobs"]
    assert set(done) == {"upkeep", "webhooks", "prune"}
    assert cli(["jobs", "status", "--json", "--db", db]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["job"] for row in shown["jobs"]] == ["prune", "upkeep", "webhooks"]
    assert shown["outbox"] == {"waiting": 0, "dead": 0, "oldest_at": None, "next_at": None}
    assert cli(["jobs", "status", "--db", db]) == 0
    assert "0 waiting" in capsys.readouterr().out


def test_the_command_ends_in_order_when_it_is_told_to(tmp_path: Path):
    db = str(tmp_path / "a.db")
    tillroll.open(db).close()
    command = [Path(sys.executable).with_name("tillroll"), "jobs", "run", "--db", db]
    with subprocess.Popen(command) as running:
        while running.poll() is None:
            with tillroll.open(db) as ledger, ledger.store.read() as reader:
                if len(reader.leases()) == 3:
                    break
        running.terminate()
        assert running.wait(30) == 0
    with tillroll.open(db) as ledger, ledger.store.read() as reader:
        assert all(lease.ends_at == lease.beat_at for lease in reader.leases())
