"""docs/internals/walk.md names functions; each must be where the page says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "tillroll"
WALK = (ROOT / "docs" / "internals" / "walk.md").read_text("utf-8")
STEP = re.compile(r"^\| (\d+) \| `([\w.]+)` \| `([\w/.]+)` \|", re.MULTILINE)
STEPS = [(int(step), name, file) for step, name, file in STEP.findall(WALK)]


def functions(file: Path) -> set[str]:
    """Give the functions and methods of a module, methods with their class."""
    names = set()
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef)
            }
    return names


def test_the_walk_has_eleven_steps():
    assert [step for step, _, _ in STEPS] == list(range(1, 12))


@pytest.mark.parametrize(("step", "name", "file"), STEPS)
def test_each_step_is_a_function(step: int, name: str, file: str):
    assert name in functions(SOURCE / file)


def test_every_other_name_of_the_page_exists():
    known = set.union(*(functions(path) for path in SOURCE.rglob("*.py")))
    known |= {name.rpartition(".")[2] for name in known}
    named = set(re.findall(r"`((?:[A-Z]\w*\.)?[a-z_]\w*)`", WALK)) - {"embedded", "engine"}
    assert named, "the page names nothing"
    assert not named - known, f"no such function: {sorted(named - known)}"
