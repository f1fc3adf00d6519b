"""The suite that ships, on every driver, and that it notices a ledger which breaks a promise."""

from pathlib import Path

import pytest

import tillroll
from tillroll.stores.memory import MemoryReader
from tillroll.testing import conformance

URLS = {"memory": "memory://", "sqlite": "sqlite:///{folder}/check.db"}


@pytest.mark.parametrize("item", conformance.CHECKS, ids=lambda item: item.__name__)
@pytest.mark.parametrize("driver", [*URLS, "postgresql", "postgresql, appending"])
def test_promise(
    driver: str, item: conformance.Check, tmp_path: Path, request: pytest.FixtureRequest
):
    if driver.startswith("postgresql"):
        kept = "kept_appending_url" if "appending" in driver else "kept_postgres_url"
        url = request.getfixturevalue(kept)
    else:
        url = URLS[driver].format(folder=tmp_path)
    report = conformance.run(lambda clock: tillroll.open(url, clock=clock), only=item.__name__)
    assert report.ok, str(report)


def test_report_reads_like_a_list_of_promises(tmp_path: Path):
    url = URLS["sqlite"].format(folder=tmp_path)
    report = conformance.run(lambda clock: tillroll.open(url, clock=clock), only="restart")
    assert (
        str(report).splitlines()[-1]
        == f"{len(report.results)} of {len(report.results)} checks passed"
    )
    assert all(result.promise.endswith(".") for result in report.results)


def test_a_ledger_that_forgets_its_answers_is_found_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(MemoryReader, "answers", lambda _self, _keys: {})
    report = conformance.run(lambda clock: tillroll.open("memory://", clock=clock), only="repeat")
    assert not report.ok
    assert "FAIL" in str(report)


def test_a_ledger_that_loses_the_burn_order_is_found_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tillroll.ledger.fold.sort_grants", lambda _account: None)
    report = conformance.run(lambda clock: tillroll.open("memory://", clock=clock), only="come")
    assert {result.name for result in report.failures} >= {
        "priority_comes_first",
        "promo_comes_before_paid",
    }
