"""TOML as we write it: fields in one order, whole numbers bare, decimals quoted, no long lines.

A change of one figure is then a change of one line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from tillroll.ledger.pricing import plain

LINE_MAX = 100  # longer tables are written over several lines

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


# Any: each writer takes its own field's type.
def set_fields(*fields: tuple[str, Any, Any, Callable[[Any], str]]) -> list[str]:
    """Write the fields that do not have their default."""
    return [f"{name} = {write(v)}" for name, v, default, write in fields if v != default]


def table_lines(name: str, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Write a table on one line, or a line for each of its fields where that is too long."""
    line = f"{name} = {{ {', '.join(f'{key} = {value}' for key, value in pairs)} }}"
    if "\n" not in line and len(line) <= LINE_MAX:
        return [line]
    return [f"{name}.{key} = {value}" for key, value in pairs]


def bare(name: str) -> str:
    """Write a key, quoted where it must be."""
    return name if _BARE_KEY.fullmatch(name) else quoted(name)


def quoted(text: str) -> str:
    """Write a text."""
    # JSON's escapes are TOML's, save that TOML also wants DEL escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def amount(number: Decimal) -> str:
    """Write an amount: a whole number as it stands, a decimal quoted: floats are not exact."""
    text = plain(number)
    return f'"{text}"' if "." in text else f"{int(text):_}"


def texts(values: Sequence[str]) -> str:
    """Write a list of texts."""
    return f"[{', '.join(quoted(value) for value in values)}]"
