"""The service against its own description, by schemathesis, links between operations followed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def check(served, folder, examples, *options):
    """Run schemathesis with the project's own settings; return what it said."""
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("schemathesis")), "--config-file"),
            *(str(ROOT / "schemathesis.toml"), "run", f"{served.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {served.key}"),
            *("--max-examples", str(examples), "--generation-deterministic", "--no-color"),
            *("--suppress-health-check", "all", *options),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-2_000:]
    return done.stdout


def test_the_service_does_what_it_says(serve, store_url, tmp_path):
    said = check(serve(store_url), tmp_path, 3)
    tested = re.search(r"Tested: (\d+)", said)
    assert tested is not None
    assert int(tested[1]) >= 90, "more operations every time"
    assert "Stateful" in said


@pytest.mark.soak
def test_the_service_does_what_it_says_in_thousands_of_cases(serve, store_url, tmp_path):
    said = check(serve(store_url), tmp_path, 100)
    assert "Stateful" in said
