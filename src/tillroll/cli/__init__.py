"""The command line: every verb of the ledger, tables for people, `--json` for programs.

Exit codes: 0 ok, 1 failure, 2 wrong usage, 3 refused, 4 id conflict.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its code."""
    from tillroll.cli.app import run  # noqa: PLC0415 - importing tillroll.cli must stay cheap

    raise SystemExit(run())
