"""What a replay is asked to do, what it draws for each request, and what came of it."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec import Struct, field

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Options(Struct, frozen=True, kw_only=True):
    """What the command line may set; see `tillroll replay --help`."""

    meters: Mapping[str, str] | None = None
    time_column: str | None = None
    account_column: str | None = None
    id_column: str | None = None
    model_column: str | None = None
    operation: str = "llm.chat"
    prices: Path | None = None
    accounts: int = 20
    credits: str = "450"
    worst_case: Mapping[str, str] | None = None
    callers: int = 64
    retries: float = 0.05
    late: float = 0.03
    timeouts: float = 0.02
    crashes: float = 0.01
    seed: int = 1
    limit: int | None = None


class Fate(Struct, frozen=True):
    """What will happen to one request, drawn by seed before anything runs."""

    retried: bool
    late: bool
    timeout: bool
    done_after_timeout: bool
    crash: bool


class Run(Struct):
    """What happened."""

    outcomes: dict[int, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    doubtful: list[int] = field(default_factory=list)
    crashed: list[int] = field(default_factory=list)
    latest: datetime = datetime.min.replace(tzinfo=UTC)
