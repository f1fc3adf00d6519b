"""The repository tests itself: what a reviewer should never have to say twice.

Each rule is a function that yields what it finds in one file. `PLANTED` holds, for each rule, a
file that breaks it, so that a rule which no longer finds anything is found out. Every file is read
once and parsed once. What ruff, mypy, codespell or import-linter can say is left to them.
"""

import ast
import gc
import hashlib
import os
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import pytest

from tests.docs.pages import Page, read_page

ROOT = Path(__file__).parents[2]
COLUMNS_MAX = 100
BLOB_BYTES_MAX = 1_000_000
FUNCTION_LINES_MAX = 80
# Where a mistake costs money a function must fit on one screen.
TIGHT_LINES_MAX = 60
TIGHT = ("src/tillroll/ledger/", "src/tillroll/stores/", "src/tillroll/engine", "src/tillroll/wire")
# Functions longer than their limit, with their length: they may shrink, never grow. Keep it empty.
RATCHET: dict[str, int] = {}
AS_PUBLISHED = {
    "examples/azure_llm_code_2023.csv": (
        "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6"
    ),
}
NOT_OURS = {"LICENSE", *AS_PUBLISHED}
# Written by a program for a program; no line of them is read.
MADE = {
    "clients/typescript/package-lock.json",
    "clients/typescript/src/schema.ts",
    "deploy/grafana/tillroll.json",
}
# A module is named for what it holds; these names hold anything.
VAGUE_NAMES = {"common", "helper", "helpers", "manager", "misc", "repository", "service", "utils"}
THIS = "tests/tidy/test_tidy.py"  # names what it forbids
LEFTOVERS = re.compile(r"\b(?:FIXME|XXX)\b|\bTODO\b(?!\([a-z-]+\): )")
PLACES = re.compile(
    r"pypi\.org|pythonhosted|registry\.npm|debian\.org|(?<![\w.])/(?:[r]oot|home|[w]ork|tmp/h)/"
)


@dataclass(frozen=True)
class File:
    """One file of the repository."""

    name: str  # from the root, with slashes
    data: bytes = field(repr=False)
    executable: bool = False

    @cached_property
    def text(self) -> str:
        """The text; nothing for an image, which no rule about lines is about."""
        return "" if b"\0" in self.data else self.data.decode("utf-8")

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @cached_property
    def tree(self) -> ast.Module:
        # A collection in the middle of it may run other code that parses, which 3.11 takes ill.
        gc.disable()
        try:
            return ast.parse(self.text, self.name)
        finally:
            gc.enable()

    @cached_property
    def page(self) -> Page:
        return read_page(Path(self.name), self.text)

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node


@cache
def files() -> tuple[File, ...]:
    """Read what git knows, and what it would be told of by `git add`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    names = sorted({name for name in listed.stdout.split("\0") if name})
    paths = [(name, ROOT / name) for name in names if (ROOT / name).is_file()]
    return tuple(File(name, path.read_bytes(), os.access(path, os.X_OK)) for name, path in paths)


def text_of(name: str) -> str:
    return next(file.text for file in files() if file.name == name)


# --- rules for any file -----------------------------------------------------------------------


def small(file: File) -> Iterator[str]:
    if len(file.data) > BLOB_BYTES_MAX:
        yield f"{file.name}: {len(file.data)} bytes, at most {BLOB_BYTES_MAX}"


def executable_if_a_program(file: File) -> Iterator[str]:
    if file.executable != file.data.startswith(b"#!"):
        yield f"{file.name}: executable and `#!` go together"


def clean_lines(file: File) -> Iterator[str]:
    if file.name in NOT_OURS:
        return
    if file.data and not file.data.endswith(b"\n"):
        yield f"{file.name}: no newline at the end"
    if b"\r" in file.data:
        yield f"{file.name}: carriage returns"
    for number, line in enumerate(file.lines, 1):
        if line != line.rstrip():
            yield f"{file.name}:{number}: blanks at the end"


def columns(file: File) -> Iterator[str]:
    if file.name in NOT_OURS | MADE or file.suffix == ".lock":
        return
    prose = dict(file.page.prose) if file.suffix == ".md" else {}
    for number, line in enumerate(file.lines, 1):
        unbreakable = number in prose and (line.lstrip().startswith("|") or "](" in line)
        if len(line) > COLUMNS_MAX and not unbreakable:
            yield f"{file.name}:{number}: {len(line)} columns, at most {COLUMNS_MAX}"


def no_leftovers(file: File) -> Iterator[str]:
    for number, line in enumerate(file.lines, 1):
        if file.name != THIS and LEFTOVERS.search(line):
            yield f"{file.name}:{number}: finish it, or name its topic in brackets: {line.strip()}"


def no_places(file: File) -> Iterator[str]:
    for number, line in enumerate(file.lines, 1):
        if file.name != THIS and PLACES.search(line):
            yield f"{file.name}:{number}: names a registry or a place on one machine"


def as_published(file: File) -> Iterator[str]:
    wanted = AS_PUBLISHED.get(file.name)
    if wanted and hashlib.sha256(file.data).hexdigest() != wanted:
        yield f"{file.name}: is not the published file any more"


def lock_is_exact(file: File) -> Iterator[str]:
    if file.suffix != ".lock":
        return
    for number, line in enumerate(file.lines, 1):
        if "://" in line:
            yield f"{file.name}:{number}: names a host"
        if not re.match(r"#|    --hash=sha256:[0-9a-f]{64}|[\w.-]+(\[[\w,-]+\])?==\S+.* \\$", line):
            yield f"{file.name}:{number}: neither an exact version nor a hash"


# --- rules for Python -------------------------------------------------------------------------


def parts_are_named(file: File) -> Iterator[str]:
    path = Path(file.name)
    if path.parts[0] == "src" and VAGUE_NAMES & {path.stem, *path.parts}:
        yield f"{file.name}: name it for what it holds"


def modules_introduce_themselves(file: File) -> Iterator[str]:
    if file.suffix == ".py" and not ast.get_docstring(file.tree):
        yield f"{file.name}: no docstring"


def functions_fit(file: File) -> Iterator[str]:
    if file.suffix != ".py":
        return
    usual = TIGHT_LINES_MAX if file.name.startswith(TIGHT) else FUNCTION_LINES_MAX
    for node in file.functions():
        said = (ast.get_docstring(node, clean=False) or "").count("\n")  # what is said is not code
        lines = (node.end_lineno or node.lineno) - node.lineno + 1 - said
        most = RATCHET.get(f"{file.name}:{node.name}", usual)
        if lines > most:
            yield f"{file.name}:{node.lineno}: {node.name} has {lines} lines, at most {most}"


def every_test_asserts(file: File) -> Iterator[str]:
    if not (file.name.startswith("tests/") and file.suffix == ".py"):
        return
    for node in file.functions():
        if node.name.startswith("test_") and not any(asserts(part) for part in ast.walk(node)):
            yield f"{file.name}:{node.lineno}: {node.name} asserts nothing"


def asserts(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    called = node.func.id if isinstance(node.func, ast.Name) else called
    return called in {"raises", "warns", "fail"} or called.startswith(
        ("assert_", "check_", "verify_", "run_state_machine")
    )


def ledger_takes_the_time(file: File) -> Iterator[str]:
    """import-linter keeps `time` out of the ledger; `datetime` it needs, but not its clock."""
    if not (file.name.startswith("src/tillroll/ledger/") and file.suffix == ".py"):
        return
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Attribute) and node.attr in {"now", "utcnow", "today"}:
            yield f"{file.name}:{node.lineno}: the ledger is told the time, it does not look"


# --- rules for Markdown -----------------------------------------------------------------------


def one_title(file: File) -> Iterator[str]:
    if file.suffix == ".md":
        titles = [number for number, level, _ in file.page.headings() if level == 1]
        if len(titles) != 1:
            yield f"{file.name}: {len(titles)} titles, on lines {titles}"


def decision_is_whole(file: File) -> Iterator[str]:
    if not re.match(r"docs/decisions/\d{4}-", file.name):
        return
    wanted = ["Context", "Decision", "Consequences", "Alternatives", "References"]
    found = [text for _, level, text in file.page.headings() if level == 2]
    if found != wanted:
        yield f"{file.name}: its headings are {found}, not {wanted}"


Rule = Callable[[File], Iterator[str]]
LONG_FUNCTION = '"""A."""\n\n\ndef long():\n' + "    pass\n" * 60
PLANTED: dict[Rule, File] = {
    small: File("docs/a.png", b"x" * (BLOB_BYTES_MAX + 1)),
    executable_if_a_program: File("src/a.py", b'"""A."""\n', executable=True),
    clean_lines: File("a.toml", b"a = 1 \n"),
    columns: File("docs/a.md", b"# A\n\n```python\n" + b"x" * 101 + b"\n```\n"),
    no_leftovers: File("src/a.py", b"# TODO: later\n"),
    no_places: File("docs/a.md", b"as in /home/ann/credits.db\n"),
    as_published: File(next(iter(AS_PUBLISHED)), b"TIMESTAMP\n"),
    lock_is_exact: File("requirements/a.lock", b"apsw>=3\n"),
    parts_are_named: File("src/tillroll/utils.py", b'"""A."""\n'),
    modules_introduce_themselves: File("src/a.py", b"A = 1\n"),
    functions_fit: File("src/tillroll/ledger/a.py", LONG_FUNCTION.encode()),
    every_test_asserts: File("tests/test_a.py", b"def test_a():\n    print(1)\n"),
    ledger_takes_the_time: File("src/tillroll/ledger/a.py", b"AT = datetime.now(UTC)\n"),
    one_title: File("docs/a.md", b"# A\n\n# B\n"),
    decision_is_whole: File("docs/decisions/0000-a.md", b"# A\n\n## Context\n"),
}


def name(rule: Rule) -> str:
    return rule.__name__


@pytest.mark.parametrize("rule", PLANTED, ids=name)
def test_rule_holds(rule: Rule) -> None:
    found = [finding for file in files() for finding in rule(file)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("rule", PLANTED, ids=name)
def test_rule_notices(rule: Rule) -> None:
    assert list(rule(PLANTED[rule])), "a planted fault went unnoticed"


# --- rules for the repository as a whole ------------------------------------------------------


def imported(file: File) -> Iterator[str]:
    """Give every dotted name that a file imports, or names in a string to import later."""
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.partition(":")[0]


def test_every_module_is_imported() -> None:
    python = [file for file in files() if file.suffix == ".py"]
    wanted = set(tomllib.loads(text_of("pyproject.toml"))["project"]["scripts"].values())
    used = {entry.partition(":")[0] for entry in wanted}
    for file in python:
        used.update(imported(file))
    modules = {
        file.name.removeprefix("src/").removesuffix(".py").replace("/", ".")
        for file in python
        if file.name.startswith("src/") and not file.name.endswith(("__init__.py", "__main__.py"))
    }
    assert not modules - used, f"nobody imports {sorted(modules - used)}"


def test_ratchet_is_tight() -> None:
    lengths = {
        f"{file.name}:{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for file in files()
        if file.suffix == ".py"
        for node in file.functions()
    }
    loose = {key: most for key, most in RATCHET.items() if lengths.get(key) != most}
    assert not loose, f"these shrank, or are gone: lower or remove them: {loose}"


def test_changelog_is_open() -> None:
    page = read_page(ROOT / "CHANGELOG.md")
    headings = [text for _, level, text in page.headings() if level == 2]
    assert headings[0] == "Unreleased", "new changes have no place to go"


def test_site_lists_every_page() -> None:
    listed = re.findall(r"(?m)^ +- .*?([\w/.-]+\.md)$", text_of("mkdocs.yml"))
    pages = {file.name.removeprefix("docs/") for file in files() if file.name.startswith("docs/")}
    pages = {page for page in pages if page.endswith(".md")}
    assert sorted(listed) == sorted(pages), "mkdocs.yml and docs/ differ"


def test_decisions_are_numbered_without_gaps() -> None:
    names = [Path(file.name).name for file in files() if file.name.startswith("docs/decisions/0")]
    numbers = [int(name.partition("-")[0]) for name in names]
    assert numbers == list(range(1, len(numbers) + 1)), "a decision is missing, or there are two"


def test_everybody_starts_the_same_task() -> None:
    assert "make test" in text_of(".ci/run")
    assert "make test" in text_of("CONTRIBUTING.md")
