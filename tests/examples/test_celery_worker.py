"""The Celery example: eagerly, and with a worker and Celery's in-memory broker."""

from collections.abc import Iterator
from pathlib import Path

import celery_worker
import pytest
from celery.contrib.testing.worker import start_worker

import tillroll


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tillroll.Ledger]:
    monkeypatch.setenv("TILLROLL_DATABASE_URL", f"sqlite:///{tmp_path}/credits.db")
    celery_worker.ledger.cache_clear()
    celery_worker.RESULTS.clear()
    with celery_worker.ledger() as ledger:
        ledger.grant("acme", 100, request_id="pay-1")
        yield ledger
    celery_worker.ledger.cache_clear()


@pytest.fixture
def eager() -> Iterator[None]:
    celery_worker.app.conf.task_always_eager = True
    yield
    celery_worker.app.conf.task_always_eager = False


def run(key: str, prompt: str):
    return celery_worker.generate.apply_async(("acme", prompt), task_id=key)


def test_retries_share_one_hold_and_one_charge(ledger: tillroll.Ledger, eager: None):
    assert run("task-1", "busy busy busy fox").successful()
    kinds = [receipt.kind for receipt in reversed(ledger.statement("acme").receipts)]
    assert kinds == ["grant", "hold", "settle"]
    assert ledger.explain("task-1")["replays"] == 3
    assert ledger.balance("acme").used == 38


def test_a_task_delivered_again_changes_nothing(ledger: tillroll.Ledger, eager: None):
    first, again = run("task-1", "fox"), run("task-1", "fox")
    assert again.result == first.result
    assert ledger.balance("acme").used == 23


def test_a_worker_that_died_before_the_charge_charges_when_it_comes_back(
    ledger: tillroll.Ledger, eager: None
):
    ledger.hold("acme", "image.generate", units=40, expires_in="1h", request_id="task-1")
    celery_worker.RESULTS["task-1"] = {"url": "https://images.example/1.png", "units": "25"}
    assert run("task-1", "fox").result["units"] == "25"
    assert ledger.balance("acme").used == 25


def test_a_model_that_stays_busy_costs_nothing(ledger: tillroll.Ledger, eager: None):
    assert run("task-1", "busy " * 9).failed()
    assert ledger.explain("task-1")["outcome"] == "released"
    assert ledger.balance("acme").available == 100
    assert run("task-1", "busy " * 9).result["code"] == "released"


def test_a_time_out_is_in_doubt(ledger: tillroll.Ledger, eager: None):
    assert run("task-1", "hang").failed()
    assert ledger.explain("task-1")["outcome"] == "in_doubt"
    assert ledger.balance("acme").held == 40


def test_a_refusal_is_the_result(ledger: tillroll.Ledger, eager: None):
    ledger.consume("acme", units=70, request_id="job-1")
    result = run("task-1", "fox")
    assert result.successful()
    assert result.result["code"] == "insufficient_units"


def test_a_worker_takes_it_from_the_broker(ledger: tillroll.Ledger):
    with start_worker(celery_worker.app, perform_ping_check=False, shutdown_timeout=30):
        result = celery_worker.generate.apply_async(("acme", "fox"), task_id="task-1")
        assert result.get(timeout=30)["units"] == "23"
    assert ledger.explain("task-1")["outcome"] == "settled"
