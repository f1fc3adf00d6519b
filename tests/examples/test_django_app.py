"""The Django example, through Django's own test client."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import django
import pytest
from django.conf import settings
from django.core.cache import cache
from django.test import Client


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "django_app.settings")
    django.setup()
    from django_app import billing as ours  # noqa: PLC0415 - after the settings

    monkeypatch.setattr(settings, "TILLROLL_DATABASE_URL", f"sqlite:///{tmp_path}/credits.db")
    cache.clear()
    ours.ledger.cache_clear()
    yield Client(raise_request_exception=False)
    ours.ledger().close()
    ours.ledger.cache_clear()


def pay(client: Client, account: str, units: int):
    body = {"payment_id": f"pay-{account}", "account": account, "units": units}
    return client.post("/payments", body, content_type="application/json")


def order(client: Client, key: str, prompt: str = "a red fox", account: str = "acme"):
    headers = {"X-Account": account, "Idempotency-Key": key}
    body = {"prompt": prompt}
    return client.post("/images", body, content_type="application/json", headers=headers)


def left(client: Client, account: str = "acme") -> dict[str, str]:
    return client.get("/balance", headers={"X-Account": account}).json()


def test_a_repeat_gets_the_first_answer(client: Client):
    pay(client, "acme", 100)
    first, again = order(client, "click-1"), order(client, "click-1")
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert left(client) == {"available": "71", "held": "0"}


def test_a_refusal_is_a_problem_document(client: Client):
    pay(client, "acme", 39)
    answer = order(client, "click-1")
    assert answer.status_code == 402
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "insufficient_units"


def test_the_key_is_required(client: Client):
    assert order(client, "").status_code == 400


def test_a_failure_releases_and_a_time_out_is_in_doubt(client: Client):
    pay(client, "acme", 100)
    assert order(client, "click-1", "fail").status_code == 500
    assert left(client) == {"available": "100", "held": "0"}
    assert order(client, "click-2", "hang").status_code == 504
    assert left(client) == {"available": "60", "held": "40"}
    assert order(client, "click-1", "fail").json()["code"] == "released"


def test_twenty_threads_on_500_units_get_six_holds_of_75(
    client: Client, monkeypatch: pytest.MonkeyPatch
):
    from django_app import views  # noqa: PLC0415 - after the settings

    finish = threading.Event()

    def slow(prompt: str) -> tuple[str, int]:
        assert finish.wait(60)
        return "https://images.example/1.png", 75

    monkeypatch.setattr(views, "MOST_UNITS", 75)
    monkeypatch.setattr(views, "model", slow)
    pay(client, "acme", 500)
    refused = threading.Semaphore(0)

    def ask(number: int) -> int:
        status = order(Client(), f"click-{number}").status_code
        if status == 402:
            refused.release()
        return status

    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(ask, number) for number in range(20)]
        for _ in range(14):
            assert refused.acquire(timeout=60)
        finish.set()  # only now may the six finish
        statuses = [one.result() for one in asked]
    assert (statuses.count(201), statuses.count(402)) == (6, 14)
    assert left(client) == {"available": "50", "held": "0"}
