"""Who has the ledger in the process pays nothing for the client, and needs nothing of it."""

import subprocess
import sys

import pytest

WITHOUT = """
import sys
sys.modules["httpx2"] = None  # as where the extra is not installed
import tillroll
late = [name for name in sys.modules if name.startswith(("tillroll.client", "httpx2."))]
assert not late, late
assert "asyncio" not in sys.modules
from tillroll import *  # every public name is there without the extra
assert ProvisionalReceipt.provisional
for kind in (Client, AsyncClient):
    try:
        kind("http://host", api_key="tr_live_x")
    except tillroll.InvalidInput as problem:
        assert "pip install 'tillroll[client]'" in str(problem)
    else:
        raise AssertionError("a client without httpx2")
try:
    tillroll.Clint
except AttributeError as problem:
    assert "Clint" in str(problem)
else:
    raise AssertionError("a name that is none")
"""


def test_the_client_is_imported_when_it_is_asked_for():
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", ["Client", "AsyncClient", "FailOpen", "ProvisionalReceipt"])
def test_late_names_are_public(name: str):
    import tillroll  # noqa: PLC0415 - what is tested

    assert name in tillroll.__all__
    assert getattr(tillroll, name).__name__ == name
