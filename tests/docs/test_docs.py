"""The documentation runs: README.md and each page of docs/, top to bottom, in an empty directory.

How a page is run, by the language of its blocks:

- `python`: all blocks of a page share one namespace. A comment `<!-- output -->` above a `text`
  block says that it is what the python block before it printed.
- `console`: a line that begins with `$ ` is run by sh, the lines below it are what it must print
  (`...` stands for anything). It must succeed, unless the line ends in a comment: `# exit 3`.
- any language with `title="name"`: written to that file and not run. `toml` blocks may name the
  file in a first line `# tillroll.toml` instead.
- `json`, `toml` and `yaml` must parse; a `sql` query must run if the page has made `credits.db`.
- A comment `<!-- skip: reason -->` above a block leaves it out, and says why.
"""

import ast
import difflib
import doctest
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
import yaml

from tests.docs.pages import Block, Page, read_page

ROOT = Path(__file__).parents[2]
LANGUAGES = {
    *("console", "html", "ini", "json", "mermaid", "promql", "python", "sql", "text", "toml"),
    *("typescript", "yaml"),
}
BLOCK_SECONDS_MAX = 120
# Tasks of the Makefile that pages name. CI runs them; what one does in a single line is run here.
TASKS = {"make check": None, "make demo": "tillroll demo", "make test": None}
MARKDOWN = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")})
RUNNABLE = [path for path in MARKDOWN if path == ROOT / "README.md" or "docs" in path.parts]
EXIT = re.compile(r"# exit (?P<code>\d+)$")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def differences(want: str, got: str) -> str:
    page, today = want.splitlines(), got.splitlines()
    return "\n".join(difflib.unified_diff(page, today, "the page", "today", lineterm=""))


def trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip("\n") + "\n"


def check_output(where: str, want: str, got: str) -> None:
    """Compare as doctest does with ELLIPSIS, blind to blanks at line ends."""
    want, got = trimmed(want), trimmed(got)
    same = doctest.OutputChecker().check_output(want, got, doctest.ELLIPSIS)
    assert same, f"{where}: another output\n{differences(want, got)}"


class PageRun:
    """One page being run: its directory, its Python process, what was printed last."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        home = directory.parent / "home"
        home.mkdir()
        self.environment = {
            "COLUMNS": "100",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.defpath]),
            "TERM": "dumb",
            "TZ": "UTC",
        }
        self.printed: str | None = None
        self.stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the page
        self.child: subprocess.Popen[str] | None = None

    def close(self) -> None:
        try:
            if self.child is not None:
                self.child.communicate(timeout=BLOCK_SECONDS_MAX)
        finally:
            if self.child is not None:
                self.child.kill()
            self.stderr.close()

    def run(self, block: Block) -> None:
        assert block.language in LANGUAGES, f"{block}: {block.language!r} is no language of ours"
        if block.mark == "skip":
            assert block.reason, f"{block}: say why this block is skipped"
        elif block.mark == "output":
            assert self.printed is not None, f"{block}: no python block above it"
            check_output(str(block), block.text, self.printed)
        elif block.title is not None:
            self.write(block)
        else:
            getattr(self, f"run_{block.language}", self.run_nothing)(block)

    def write(self, block: Block) -> None:
        assert block.title is not None
        target = (self.directory / block.title).resolve()
        assert target.is_relative_to(self.directory.resolve()), f"{block}: writes elsewhere"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.text, encoding="utf-8")
        if block.language == "python":
            ast.parse(block.text, str(block))
        elif block.language in {"json", "toml", "yaml"}:
            getattr(self, f"run_{block.language}")(block)

    def run_nothing(self, block: Block) -> None:
        """Leave text, ini, html and diagrams to the reader's eye."""

    def run_json(self, block: Block) -> None:
        try:
            json.loads(block.text)
        except ValueError as error:
            pytest.fail(f"{block}: {error}")

    def run_toml(self, block: Block) -> None:
        try:
            tomllib.loads(block.text)
        except ValueError as error:
            pytest.fail(f"{block}: {error}")

    def run_yaml(self, block: Block) -> None:
        try:
            list(yaml.safe_load_all(block.text))
        except yaml.YAMLError as error:
            pytest.fail(f"{block}: {error}")

    def run_sql(self, block: Block) -> None:
        query = block.text.strip()
        database = self.directory / "credits.db"
        if not database.exists() or not re.match(r"(?i)(select|with)\b", query):
            return
        connection = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            list(connection.execute(query))
        except apsw.Error as error:
            pytest.fail(f"{block}: {error}")
        finally:
            connection.close()

    def run_python(self, block: Block) -> None:
        if self.child is None:
            self.child = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("driver.py"))],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.stderr,
                text=True,
            )
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        request = {"file": str(block.path), "line": block.line, "source": block.text}
        clock = threading.Timer(BLOCK_SECONDS_MAX, self.child.kill)
        clock.start()
        self.child.stdin.write(json.dumps(request) + "\n")
        self.child.stdin.flush()
        answer = self.child.stdout.readline()
        clock.cancel()
        if not answer:
            self.stderr.seek(0)
            pytest.fail(f"{block}: died, or ran {BLOCK_SECONDS_MAX} s\n{self.stderr.read()}")
        result = json.loads(answer)
        self.printed = result["printed"]
        if result["failure"]:
            pytest.fail(f"{block}: raised\n{result['printed']}{result['failure']}", pytrace=False)

    def run_console(self, block: Block) -> None:
        for line, command, want in commands(block):
            self.run_command(f"{block.path}:{line}", command, want)

    def run_command(self, where: str, command: str, want: str) -> None:
        command = TASKS.get(command, command) or ""
        if not command:
            return
        wanted_exit = int(found["code"]) if (found := EXIT.search(command)) else 0
        code, got = self.shell(where, command)
        assert code == wanted_exit, f"{where}: `{command}` ended with {code}\n{got}"
        check_output(f"{where}: `{command}`", want, got)

    def shell(self, where: str, command: str) -> tuple[int, str]:
        """Run a command; its output goes to a file, as a pipe could be kept open by a child."""
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                ["/bin/sh", "-c", command],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that a time-out ends the children as well
            )
            try:
                code = process.wait(BLOCK_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                pytest.fail(f"{where}: `{command}` ran {BLOCK_SECONDS_MAX} s")
            output.seek(0)
            return code, output.read()


def commands(block: Block) -> Iterator[tuple[int, str, str]]:
    r"""Give line, command and wanted output; a command goes on after a `\` at a line's end."""
    lines = block.text.splitlines()
    assert lines, f"{block}: empty"
    assert lines[0].startswith("$ "), f"{block}: a console block begins with `$ `"
    at = 0
    while at < len(lines):
        start, command = at, lines[at].removeprefix("$ ")
        while command.endswith("\\"):
            at += 1
            command = command[:-1] + lines[at].removeprefix("> ").lstrip()
        at += 1
        output = at
        while at < len(lines) and not lines[at].startswith("$ "):
            at += 1
        want = "".join(f"{line}\n" for line in lines[output:at])
        yield block.line + 1 + start, command.strip(), want


def check_page(page: Page, directory: Path) -> None:
    directory.mkdir()
    run = PageRun(directory)
    try:
        for block in page.blocks:
            run.run(block)
    finally:
        run.close()


@pytest.mark.parametrize("path", RUNNABLE, ids=name)
def test_page_runs_as_written(path: Path, tmp_path: Path) -> None:
    check_page(read_page(path), tmp_path / "page")


@pytest.mark.parametrize("path", MARKDOWN, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    dead = []
    for line, link in read_page(path).links():
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue  # another site: not ours to test, and not from here
        page = (path.parent / target).resolve() if target else path
        if not page.exists() or not page.is_relative_to(ROOT):
            dead.append(f"{name(path)}:{line}: no such file: {link}")
        elif anchor and page.suffix == ".md" and anchor not in read_page(page).anchors():
            dead.append(f"{name(path)}:{line}: no such heading: {link}")
    assert not dead, "\n".join(dead)


# --- the runner itself: each way in which a page may lie must be noticed ----------------------

GOOD = """\
# A page

```toml title="tillroll.toml"
scale = 6
```

```python
total = 1 + 1
print("sum", total)
```

<!-- output -->
```text
sum ...
```

```console
$ cat tillroll.toml
scale = 6
$ false  # exit 1
$ printf '%s\\n' one \\
> two
one
two
```

```python
assert total == 2
```
"""

LIES = {
    "another output": "```console\n$ echo one\ntwo\n```\n",
    "ended with 3": "```console\n$ exit 3\n```\n",
    "line 4, in <module>": "# Page\n\n```python\n1 / 0\n```\n",
    "page shows": "```python\n>>> 1 + 1\n3\n```\n",
    "Expecting": "```json\n{,}\n```\n",
    "mapping values": "```yaml\na: b: c\n```\n",
    "Invalid": "```toml\na = b\n```\n",
    "no language of ours": "```ruby\nputs 1\n```\n",
    "say why": "<!-- skip: -->\n```python\n1 / 0\n```\n",
    "begins with": "```console\necho one\n```\n",
    "died": "```python\nimport os\nos._exit(1)\n```\n",
    "no python block": "<!-- output -->\n```text\nsum 2\n```\n",
    "writes elsewhere": '```text title="../x"\nx\n```\n',
}


def test_a_true_page_passes(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(GOOD, encoding="utf-8")
    page = read_page(path)
    check_page(page, tmp_path / "run")
    languages = [block.language for block in page.blocks]
    assert languages == ["toml", "python", "text", "console", "python"]


def test_a_skipped_block_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("<!-- skip: needs a network -->\n\n```python\n1 / 0\n```\n", encoding="utf-8")
    page = read_page(path)
    check_page(page, tmp_path / "run")
    assert page.blocks[0].reason == "needs a network"


@pytest.mark.parametrize(("complaint", "text"), LIES.items(), ids=list(LIES))
def test_a_lie_is_noticed(complaint: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises((AssertionError, pytest.fail.Exception), match=complaint):
        check_page(read_page(path), tmp_path / "run")


@pytest.mark.parametrize("text", ["```console\n$ sleep 60\n```\n", "```python\nwhile 1: 0\n```\n"])
def test_a_block_that_hangs_is_ended(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "BLOCK_SECONDS_MAX", 0.5)
    path = tmp_path / "page.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(pytest.fail.Exception, match=r"ran 0\.5 s"):
        check_page(read_page(path), tmp_path / "run")
