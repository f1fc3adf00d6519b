"""The FastAPI example, through FastAPI's own test client."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fastapi_app
import pytest
from fastapi.testclient import TestClient


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setenv("TILLROLL_DATABASE_URL", f"sqlite:///{tmp_path}/credits.db")
    with TestClient(fastapi_app.app) as client:
        pay(client, "acme", 100)
        yield client


def pay(client: TestClient, account: str, units: int):
    body = {"payment_id": f"pay-{account}", "account": account, "units": units}
    return client.post("/payments", json=body)


def order(client: TestClient, key: str | None, prompt: str = "a red fox", account: str = "acme"):
    headers = {"X-Account": account} | ({"Idempotency-Key": key} if key else {})
    return client.post("/images", json={"prompt": prompt}, headers=headers)


def left(client: TestClient, account: str = "acme") -> dict[str, str]:
    return client.get("/balance", headers={"X-Account": account}).json()


def test_a_repeat_gets_the_first_answer(client: TestClient):
    first = order(client, "click-1")
    again = order(client, "click-1")
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert left(client) == {"available": "71", "held": "0"}


def test_the_key_is_required(client: TestClient):
    assert order(client, None).status_code == 400
    assert left(client) == {"available": "100", "held": "0"}


def test_a_key_used_for_another_order_is_a_conflict(client: TestClient):
    order(client, "click-1")
    answer = order(client, "click-1", "a blue fox")
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_conflict")
    assert answer.json()["written"] == "nothing"


def test_a_refusal_is_a_problem_document(client: TestClient):
    pay(client, "beta", 39)
    answer = order(client, "click-1", account="beta")
    assert answer.status_code == 402
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["code"], body["needed"], body["available"]) == ("insufficient_units", "40", "39")
    assert [way["kind"] for way in body["ways_out"]] == ["top_up", "less"]


def test_a_failure_costs_nothing_and_its_order_is_over(client: TestClient):
    assert order(client, "click-1", "fail").status_code == 502
    assert left(client) == {"available": "100", "held": "0"}
    again = order(client, "click-1", "fail")
    assert (again.status_code, again.json()["code"]) == (409, "released")


def test_a_time_out_is_in_doubt(client: TestClient):
    assert order(client, "click-1", "hang").status_code == 504
    assert left(client) == {"available": "60", "held": "40"}
    again = order(client, "click-1", "hang")
    assert (again.status_code, again.json()["code"]) == (409, "in_doubt")
    story = client.get("/why/click-1", headers={"X-Account": "acme"}).json()
    assert (story["outcome"], story["charged"]) == ("in_doubt", "0")


def test_many_at_once_never_overspend(client: TestClient):
    pay(client, "gamma", 200)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda n: order(client, f"c-{n}", account="gamma"), range(12)))
    statuses = [answer.status_code for answer in answers]
    made = statuses.count(201)
    assert made + statuses.count(402) == 12
    assert 5 <= made <= 6  # 29 units each; the last needs 40 to be free
    assert left(client, "gamma") == {"available": str(200 - 29 * made), "held": "0"}


def test_a_payment_reported_twice_is_granted_once(client: TestClient):
    assert pay(client, "acme", 100).json() == {"granted": "100", "available": "100"}
    assert left(client)["available"] == "100"


def test_an_unknown_order_is_not_found(client: TestClient):
    assert client.get("/why/nothing", headers={"X-Account": "acme"}).status_code == 404
