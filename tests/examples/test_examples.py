"""The examples do what their guides show, and the guides show what is in the examples."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import Block, read_page
from tests.docs.test_docs import check_output, commands

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PART = re.compile(r"part of (?P<name>examples/[\w./]+)")
RUN = "run in examples"
BLOCKS = [
    block
    for path in [*sorted((ROOT / "docs" / "guides").glob("*.md")), EXAMPLES / "README.md"]
    for block in read_page(path).blocks
]
PARTS = [block for block in BLOCKS if PART.match(block.reason)]
SHOWN = [block for block in BLOCKS if block.reason == RUN]
SECONDS_MAX = 60


def bare(text: str) -> str:
    """Leave out what the formatter decides by the depth at which a piece stands."""
    return re.sub(r",(?=[)\]}])", "", re.sub(r"\s+", "", text))


def place(block: Block) -> str:
    return f"{block.path.name}:{block.line}"


@pytest.mark.parametrize("block", PARTS, ids=place)
def test_what_a_guide_quotes_is_in_the_example(block: Block):
    found = PART.match(block.reason)
    assert found, block
    example = (ROOT / found["name"]).read_text(encoding="utf-8")
    assert bare(block.text) in bare(example), f"{block}: differs from {found['name']}"


@pytest.mark.parametrize("block", SHOWN, ids=place)
def test_an_example_prints_what_is_shown(block: Block, tmp_path: Path):
    for line, command, want in commands(block):
        assert command.startswith("python "), f"{block}: only Python programs are shown so"
        words = command.split()[1:]
        if words[0] != "-m":
            words[0] = str(EXAMPLES / words[0])
        ended = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,  # what an example writes must not end up beside it
            env={"PATH": os.defpath, "HOME": str(tmp_path), "PYTHONPATH": str(EXAMPLES)},
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        check_output(f"{block.path}:{line}", want, ended.stdout)


def test_every_example_is_shown_and_listed():
    programs = {path.name for path in EXAMPLES.iterdir() if path.suffix == ".py"} | {"django_app"}
    shown = {part for block in SHOWN for part in re.split(r"[\s./]+", block.text)}
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for program in programs:
        assert program.removesuffix(".py") in shown, f"no guide shows what {program} prints"
        assert f"`{program}`" in listed, f"examples/README.md does not list {program}"
