"""The pages of docs/operating whose commands need a server, run against one."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

import tillroll
from tests.docs.pages import Block, read_page
from tests.docs.test_docs import PageRun
from tests.servers.cluster import Cluster

FOLDER = Path(__file__).parents[2] / "docs" / "operating"
RUN = "run against a server by tests/operating"
TOOLS = ("createdb", "psql", "pg_dump", "pg_restore")


def here(block: Block) -> bool:
    return block.mark == "skip" and block.reason.strip() == RUN


@pytest.fixture
def page_run(own_postgres: Cluster, tmp_path: Path) -> Iterator[PageRun]:
    """An empty folder, with the server's programs and the server's address at hand."""
    missing = [tool for tool in TOOLS if not (own_postgres.bin / tool).exists()]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}, as a distribution's PostgreSQL has")
    (tmp_path / "page").mkdir()
    run = PageRun(tmp_path / "page")
    run.environment["PATH"] = f"{own_postgres.bin}{os.pathsep}{run.environment['PATH']}"
    run.environment |= {
        "PGHOST": str(own_postgres.folder),
        "PGPORT": str(own_postgres.port),
        "PGUSER": "postgres",
    }
    yield run
    run.close()


def test_postgresql(page_run: PageRun):
    blocks = [block for block in read_page(FOLDER / "postgresql.md").blocks if here(block)]
    for block in blocks:
        page_run.run(replace(block, mark=None))
    assert len(blocks) == 3


def test_backup(page_run: PageRun, own_postgres: Cluster):
    own_postgres.run("CREATE DATABASE credits")
    with tillroll.open(own_postgres.url("credits")) as ledger:
        ledger.grant("acme", 1000, request_id="order-17")
        ledger.consume("acme", units=20, request_id="job-1")
    blocks = [block for block in read_page(FOLDER / "backup.md").blocks if here(block)]
    for block in blocks:
        page_run.run(replace(block, mark=None))
    assert len(blocks) == 1


@pytest.fixture(scope="module")
def used_url(postgres: Cluster) -> str:
    url = postgres.url(postgres.create_database())
    with tillroll.open(url) as ledger:
        ledger.grant("acme", 100)
        ledger.consume("acme", units=5, request_id="c")
        ledger.hold("acme", units=5, request_id="h")
        ledger.mark_in_doubt("acme", "h")
        ledger.hold("acme", units=5, request_id="found out")
        ledger.mark_in_doubt("acme", "found out")
        ledger.resolve("acme", "found out", "not_done")
        with pytest.raises(tillroll.InsufficientUnits):
            ledger.consume("acme", units=500)
    return url


def queries() -> list[Block]:
    pages = [read_page(FOLDER / name) for name in ("monitoring.md", "vacuum.md")]
    return [block for page in pages for block in page.blocks if block.language == "sql"]


@pytest.mark.parametrize("block", queries(), ids=lambda block: f"{block.path.stem}-{block.line}")
def test_query(used_url: str, block: Block):
    with psycopg.connect(used_url, autocommit=True) as connection:
        found = connection.execute(block.text.encode())
        assert found.statusmessage
        assert block.path.stem == "vacuum" or found.description


def answer(url: str, title: str) -> list[tuple[object, ...]]:
    """Return what the query under a heading of the page on monitoring gives."""
    page = read_page(FOLDER / "monitoring.md")
    [line] = [line for line, _, text in page.headings() if text == title]
    block = next(block for block in page.blocks if block.line > line)
    with psycopg.connect(url) as connection:
        return connection.execute(block.text.encode()).fetchall()


def test_queries_find_what_they_look_for(used_url: str):
    assert [row[1:3] for row in answer(used_url, "Holds in doubt")] == [("acme", "h")]
    assert answer(used_url, "Refusals") == [("insufficient_units", 1)]
    assert answer(used_url, "What falls due")[0][0] == 0
    with psycopg.connect(used_url) as connection:
        connection.execute("UPDATE tillroll_accounts SET next_due_at = 1")
        connection.commit()
        [(accounts, overdue)] = answer(used_url, "What falls due")
        assert accounts == 1
        assert overdue.days > 365
