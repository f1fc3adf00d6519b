"""Payments from the command line, against our Stripe."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

import tillroll
from tests.payments.conftest import PRODUCTS, World
from tillroll.cli.app import run
from tillroll.ledger.pricing import new_version


@pytest.fixture
def shell(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """A function that runs a command on a ledger with the catalog; returns its JSON."""
    world.fake.now = lambda: int(time.time())
    url = f"sqlite:///{tmp_path}/till.db"
    with tillroll.open(url, project="default:test") as ledger:
        version = new_version(1, [], products=PRODUCTS, author="ann", reason="a test")
        ledger._engine.perform(lambda tx: tx.add_price_version("default:test", version))
    for name, value in (
        ("SECRET_KEY", "sk_test_of_a_test"),
        ("SUCCESS_URL", "https://shop.test/thanks"),
        ("API_BASE", world.api_base),
    ):
        monkeypatch.setenv(f"TILLROLL_STRIPE_{name}", value)

    def ask(*words: str, code: int = 0, plain: bool = False) -> Any:
        options = ["--db", url, "--project", "default:test", *([] if plain else ["--json"])]
        assert run([*words, *options]) == code
        out, err = capsys.readouterr()
        return out if plain else json.loads(out or err)

    return ask


def test_a_payment(shell: Any, world: World):
    url = shell("payments", "checkout", "acme", "pack100", "--request-id", "o1")["checkout_url"]
    assert url in shell("payments", "checkout", "acme", "pack100", plain=True)
    payment = world.fake.pay(url.rsplit("/", 1)[1])["id"]
    assert "3 events" not in shell("payments", "pull", plain=True)
    world.fake.refund(payment, 1_00)
    assert shell("payments", "pull")["heard"] == 4
    [found] = shell("payments", "list", "acme")["payments"]
    assert (found["id"], found["taken"]) == (payment, "20")
    assert found["amount"] == 500
    plain = shell("payments", "list", "acme", plain=True)
    assert payment in plain
    assert "5.00 USD" in plain


def test_what_is_known(shell: Any, world: World):
    nothing: dict[str, Any] = {"payments": [], "subscriptions": [], "events": []}
    assert shell("payments", "list", "acme") == nothing
    assert "payment" in shell("payments", "list", plain=True)


def test_topups(shell: Any):
    terms = ["--threshold", "5", "--target", "50", "--product", "pack100", "--daily-cap", "20"]
    assert shell("topup", "set", "acme", *terms, code=1)["error"]["code"] == "not_found"
    shell("grant", "acme", "1")
    made = shell("topup", "set", "acme", *terms)
    assert (made["state"], made["daily_cap"]) == ("ready", 2000)
    assert shell("topup", "pause", "acme")["state"] == "paused"
    assert shell("topup", "resume", "acme")["state"] == "ready"
    assert shell("topup", "show", "acme")["target"] == "50"
    plain = shell("topup", "show", "acme", plain=True)
    assert "threshold" in plain
    assert "20.00 USD" in plain
    assert shell("topup", "show", "nobody", code=1)["error"]["code"] == "not_found"


def test_overage(shell: Any):
    shell("grant", "acme", "1")
    assert shell("overage", "set", "acme", "api_units")["state"] == "running"
    assert shell("overage", "stop", "acme")["state"] == "stopped"
    assert shell("overage", "show", "acme")["sent"] == 0
    assert (
        shell("overage", "resolve", "acme", "--arrived", code=2)["error"]["code"] == "invalid_input"
    )


def test_nothing_is_set_up(shell: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TILLROLL_STRIPE_SECRET_KEY")
    said = shell("payments", "pull", code=2)
    assert "TILLROLL_STRIPE_SECRET_KEY" in json.dumps(said)


def test_one_project_is_not_taken_for_another(
    shell: Any, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    where = ["--db", f"sqlite:///{tmp_path}/till.db", "--project", "shop"]
    assert run(["payments", "checkout", "acme", "pack100", *where]) == 2
    assert "for project 'default:test', not for 'shop'" in capsys.readouterr().err
    assert world.fake.asked == []


def test_what_was_refused_is_listed_with_whose_it_is(shell: Any, world: World):
    url = shell("payments", "checkout", "acme", "pack100")["checkout_url"]
    shell("grant", "acme", "1")
    shell("close", "acme", "--reason", "left")
    payment = world.fake.pay(url.rsplit("/", 1)[1])["id"]
    shell("payments", "pull")
    [found] = shell("payments", "list")["payments"]
    assert (found["id"], found["account"], found["refused"]) == (payment, "acme", "account_closed")
    assert "account_closed (acme)" in shell("payments", "list", plain=True)
