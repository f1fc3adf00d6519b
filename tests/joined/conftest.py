"""A ledger in each database, and a program beside it that has a transaction of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tillroll
from tests.joined import sides

SYNC = [("postgres", side) for side in sides.POSTGRES] + [("sqlite", s) for s in sides.SQLITE]
ASYNC = [("postgres", side) for side in sides.POSTGRES_ASYNC]
ASYNC += [("sqlite", side) for side in sides.SQLITE_ASYNC]


def named(pair: tuple[str, Any]) -> str:
    return f"{pair[0]}-{pair[1].__name__}"


def url_of(database: str, request: pytest.FixtureRequest, folder: Path) -> str:
    if database == "postgres":
        return request.getfixturevalue("postgres_url")
    return f"sqlite:///{folder}/app.db"


def opened(url: str, **terms: Any) -> tillroll.Ledger:
    if url.startswith("sqlite"):
        return tillroll.open(url, library="sqlite3", **terms)
    return tillroll.open(url, **terms)


@pytest.fixture(params=["postgres", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a ledger can be, in each database."""
    return url_of(request.param, request, tmp_path)


@pytest.fixture
def ledger(url: str) -> Iterator[tillroll.Ledger]:
    """A ledger in each database."""
    with opened(url) as ledger:
        yield ledger


@pytest.fixture(params=SYNC, ids=named)
def both(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[tillroll.Ledger, sides.Side]]:
    """A ledger, and each program that can join it."""
    database, side = request.param
    url = url_of(database, request, tmp_path)
    with opened(url) as ledger, side(url) as program:
        with program.transaction():
            program.run(sides.ORDERS)
        yield ledger, program


@pytest.fixture(params=ASYNC, ids=named)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Any]:
    """Where a ledger can be, and each program with an event loop that can join it."""
    database, side = request.param
    return url_of(database, request, tmp_path), side
