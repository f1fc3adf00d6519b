"""The generated pages of docs/reference are as the source makes them, and leave no name out."""

import subprocess
import sys
from pathlib import Path

import pytest

import tillroll

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "reference.py"
REFERENCE = ROOT / "docs" / "reference"
SECONDS_MAX = 120


def test_the_pages_are_as_the_source_says():
    command = [sys.executable, str(SCRIPT), "--check"]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS_MAX, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("name", tillroll.__all__)
def test_every_public_name_is_described(name: str):
    pages = [(REFERENCE / page).read_text("utf-8") for page in ("python.md", "refusals.md")]
    assert any(name in page for page in pages)


def test_every_verb_is_described():
    page = (REFERENCE / "python.md").read_text("utf-8")
    verbs = [name for name in dir(tillroll.Ledger) if not name.startswith("_")]
    missing = [name for name in verbs if f"### {name}\n" not in page]
    assert missing == ["store"]
