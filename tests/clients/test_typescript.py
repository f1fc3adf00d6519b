"""The TypeScript client: its types are current, it compiles, and its own tests pass."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.conftest import Served
from tests.docs.pages import read_page
from tillroll.api import openapi
from tillroll.ledger.errors import REFUSALS

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients" / "typescript"
SECONDS_MAX = 300
GUIDES = ("typescript", "stripe", "webhooks")
KEEPS = ("examples", "package-lock.json", "package.json", "src", "tests", "tsconfig.build.json")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the client with what it needs, which no other worker touches."""
    if not shutil.which("npm"):
        pytest.skip("needs node and npm")
    folder = tmp_path_factory.mktemp("typescript")
    for name in (*KEEPS, "tsconfig.json"):
        copy = shutil.copytree if (CLIENT / name).is_dir() else shutil.copy
        copy(CLIENT / name, folder / name)
    # One at a time: npm's cache is shared, and so are the cores.
    lock_file = Path(tempfile.gettempdir()) / f"tillroll-npm-{os.getuid()}.lock"
    with lock_file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = npm(folder, "ci", "--no-audit", "--fetch-retries=1", check=False)
    if ended.returncode and re.search(r"E(AI_AGAIN|NOTFOUND|CONNREFUSED|TIMEDOUT)", ended.stderr):
        pytest.skip("needs an npm registry")
    assert ended.returncode == 0, ended.stderr
    yield folder
    shutil.rmtree(folder)


def npm(
    folder: Path, *arguments: str, check: bool = True, **environ: str
) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        ["npm", *arguments],
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert not check or ended.returncode == 0, ended.stdout + ended.stderr
    return ended


def test_the_types_are_those_of_the_api(client: Path, tmp_path: Path):
    (tmp_path / "openapi.json").write_bytes(openapi.description())
    made = client / "src" / "schema.ts"
    npm(client, "run", "schema", "--", str(tmp_path / "openapi.json"))
    same = made.read_text("utf-8") == (CLIENT / "src" / "schema.ts").read_text("utf-8")
    assert same, "the API has changed: make typescript-types"


def test_it_compiles_under_strict(client: Path):
    said = npm(client, "run", "check").stdout
    assert "error" not in said
    assert json.loads((CLIENT / "tsconfig.json").read_text("utf-8"))["compilerOptions"]["strict"]


def test_what_the_pages_show_compiles(client: Path):
    guides = [ROOT / "docs" / "guides" / f"{name}.md" for name in GUIDES]
    pages = [CLIENT / "README.md", *guides]
    blocks = [block for page in pages for block in read_page(page).blocks]
    shown = [block.text for block in blocks if block.language == "typescript"]
    for number, text in enumerate(shown):
        module = client / "examples" / f"shown{number}.ts"
        module.write_text(text.replace('"tillroll"', '"../src/index.js"'), "utf-8")
    assert len(shown) == 5
    assert "error" not in npm(client, "run", "check").stdout


def test_its_own_tests_pass_against_a_service(client: Path, serve):
    served: Served = serve()
    said = npm(client, "test", TILLROLL_URL=served.url, TILLROLL_KEY=served.key).stdout
    assert re.search(r"(?m)^# pass 2\d$", said), said
    assert "# skipped 0" in said, said


def test_the_package_has_what_it_exports(client: Path):
    npm(client, "run", "build")
    exports = json.loads((CLIENT / "package.json").read_text("utf-8"))["exports"]
    for targets in exports.values():
        for target in targets.values():
            assert (client / target).is_file()


def test_the_refusals_are_those_of_the_ledger():
    source = (CLIENT / "src" / "errors.ts").read_text("utf-8")
    [union] = re.findall(r"type RefusalCode =((?:\s+\| \"\w+\")+);", source)
    assert re.findall(r"\w+", union) == list(REFUSALS)


def test_the_lock_names_no_host():
    lock = json.loads((CLIENT / "package-lock.json").read_text("utf-8"))
    packages = [package for name, package in lock["packages"].items() if name]
    assert packages
    assert not [package for package in packages if "resolved" in package]
    assert all(package["integrity"].startswith("sha512-") for package in packages)
