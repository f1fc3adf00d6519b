"""Figures, rules, alerts, their pages and the dashboard say the same, and Prometheus takes them."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from tests.api.conftest import Served
from tests.docs.pages import read_page
from tillroll.ledger.errors import OutcomeUnknown
from tillroll.server.metrics import Metrics

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "tillroll.json"
PAGE = ROOT / "docs" / "operating" / "observability.md"
ALERTS = ROOT / "docs" / "operating" / "alerts"
FIGURE = re.compile(r"(?<![\w:])tillroll_\w+")
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool: apt-get install prometheus"
)


def promtool(*arguments: str | Path, given: bytes | None = None) -> str:
    """Run promtool in the folder of the rules; return what it said."""
    ended = subprocess.run(
        ["promtool", *map(str, arguments)], cwd=RULES, input=given, capture_output=True, check=False
    )
    said = (ended.stdout + ended.stderr).decode()
    assert ended.returncode == 0, said
    return said


def rules(file: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((RULES / file).read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> list[str]:
    """Return every expression of the dashboard, as Grafana would send it."""
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    found = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return [one.replace("$__rate_interval", "5m").replace("$job", "tillroll") for one in found]


def shown() -> list[tuple[str, str]]:
    """Return page and text of each query that a page shows."""
    pages = [PAGE, *sorted(ALERTS.glob("*.md"))]
    return [
        (page.name, block.text)
        for page in pages
        for block in read_page(page).blocks
        if block.language == "promql"
    ]


@pytest.fixture(scope="module")
def figures() -> set[str]:
    """Every name that a scrape may have, without what comes of having been created."""
    metrics = Metrics(1)
    metrics.called("consume", 200, 0.1)
    names = re.findall(r"(?m)^(tillroll_\w+)", metrics.page().decode())
    return {name for name in names if not name.endswith("_created")}


@needs_promtool
def test_the_rules_are_rules():
    said = promtool("check", "rules", "recording.yml", "alerts.yml")
    assert said.count("SUCCESS") == 2


@needs_promtool
def test_every_alert_fires_where_it_should_and_not_elsewhere():
    tests = yaml.safe_load((RULES / "alerts.test.yml").read_text("utf-8"))["tests"]
    told = {
        (check["alertname"], bool(check["exp_alerts"]))
        for test in tests
        for check in test["alert_rule_test"]
    }
    names = [rule["alert"] for rule in rules("alerts.yml")]
    assert told == set(itertools.product(names, (True, False)))
    assert "SUCCESS" in promtool("test", "rules", "alerts.test.yml")


@needs_promtool
def test_every_query_of_the_dashboard_and_the_pages_is_one(tmp_path: Path):
    queries = [*expressions(), *(query for _, query in shown())]
    asked = [{"record": f"query:{n}", "expr": query} for n, query in enumerate(queries)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": asked}]}), "utf-8")
    assert f"{len(queries)} rules found" in promtool("check", "rules", file)


def test_nothing_asks_for_a_figure_that_is_not_there(figures: set[str]):
    recorded = {rule["record"] for rule in rules("recording.yml")}
    asked = [rule["expr"] for rule in (*rules("recording.yml"), *rules("alerts.yml"))]
    asked += [*expressions(), *(query for _, query in shown())]
    for query in asked:
        assert set(re.findall(r"\b(?:\w+:)+\w+\b", query)) <= recorded, query
        plain = re.sub(r"\b\w+:[\w:]+\b", "", query)
        assert set(FIGURE.findall(plain)) <= figures, query


def test_the_dashboard_shows_every_figure(figures: set[str]):
    asked = {name for query in expressions() for name in FIGURE.findall(query)}
    kinds = ("_bucket", "_sum", "_count")
    missing = {name for name in figures - asked if not name.endswith(kinds)}
    assert missing == set()
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_every_figure_is_described(figures: set[str]):
    described = set(re.findall(r"(?m)^\| `(tillroll_\w+)`", PAGE.read_text("utf-8")))
    bare = {re.sub(r"_(bucket|sum|count)$", "", name) for name in figures}
    assert described == bare


def test_every_alert_has_its_page_and_every_page_its_alert():
    known = {}
    for rule in rules("alerts.yml"):
        page = ROOT / rule["annotations"]["runbook"]
        headings = [text for _, _, text in read_page(page).headings()]
        assert headings == [rule["alert"], "What it means", "How to look", "What to do"]
        known[rule["alert"]] = (page.name, rule["labels"]["severity"])
    assert sorted(name for name, _ in known.values()) == sorted(p.name for p in ALERTS.glob("*.md"))
    rows = re.findall(r"(?m)^\| \[(\w+)\]\(alerts/(.+?)\) \| (\w+) \|$", PAGE.read_text("utf-8"))
    assert {alert: (page, severity) for alert, page, severity in rows} == known


def test_a_code_is_counted_from_nothing():
    page = Metrics(5).page().decode()
    for code in ("entry", "replayed", "unpriced", OutcomeUnknown.code, "store_full"):
        assert f'tillroll_answers_total{{answer="{code}"}} 0.0' in page
    assert "tillroll_waiting_requests_max 5.0" in page


@needs_promtool
def test_metrics_of_a_server_that_has_worked_are_well_formed(serve):
    served: Served = serve()
    headers = {"authorization": f"Bearer {served.key}", "idempotency-key": "one"}
    for units in ("5", "5", "7"):
        url = f"{served.url}/v1/accounts/acme/grants"
        assert httpx2.post(url, json={"units": units}, headers=headers).status_code in (200, 422)
    page = httpx2.get(f"{served.url}/metrics").text
    said = promtool("check", "metrics", given=page.encode())
    assert said == ""
    assert 'tillroll_answers_total{answer="entry"} 1.0' in page
    assert 'tillroll_answers_total{answer="replayed"} 1.0' in page
    assert 'tillroll_answers_total{answer="idempotency_conflict"} 1.0' in page


def total(page: str, name: str) -> float:
    found = re.search(rf"(?m)^{name} (\S+)$", page)
    assert found, page
    return float(found[1])


def test_workers_that_live_no_more_are_left_out(serve, tmp_path: Path):
    served: Served = serve(f"sqlite:///{tmp_path}/several.db", "--workers", "2")
    try:
        page = wait_for(served, "tillroll_waiting_requests_max", 40_000)
        served.process.send_signal(signal.SIGHUP)
        time.sleep(3)  # two workers are replaced, one after the other
        page = wait_for(served, "tillroll_waiting_requests_max", 40_000)
        assert total(page, "tillroll_waiting_requests_max") == 40_000
    finally:
        served.stop()


def wait_for(served: Served, name: str, value: float) -> str:
    until = time.monotonic() + 60
    page = ""
    while time.monotonic() < until:
        page = httpx2.get(f"{served.url}/metrics", timeout=10).text
        if total(page, name) == value:
            return page
        time.sleep(0.1)
    return page


def test_what_a_dead_process_said_is_not_added_up(tmp_path: Path):
    source = """
        from tillroll.server.metrics import Metrics
        print(Metrics(7).page().decode())
    """
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-c", textwrap.dedent(source)]
    for _ in range(3):
        page = subprocess.run(command, env=environ, capture_output=True, check=True, text=True)
        assert total(page.stdout, "tillroll_waiting_requests_max") == 7
