"""Writes the generated pages of docs/reference, or checks that they are as they would be written.

    python scripts/reference.py            write
    python scripts/reference.py --check    exit with 1 and name the pages that differ

The Python page comes from signatures and docstrings, the refusals from `errors.py`, the tables from
the migrations, the command line from its own `--help`. What no source says stands here.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

import tillroll
from tillroll import catalog, embedded
from tillroll.api import calls, routes
from tillroll.client.journal import Pending
from tillroll.client.payments import Payments
from tillroll.client.webhooks import Webhooks
from tillroll.ledger import errors, events, pricing, verbs
from tillroll.server import settings
from tillroll.stores import base
from tillroll.wire import problems

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "reference"
COLUMNS = 100
MADE = "<!-- Made by scripts/reference.py from the source. Change it there. -->"

# ---------------------------------------------------------------- docstrings

SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$")
ITEM = re.compile(r"^(?P<name>[\w*, ]+): (?P<text>.*)$")


def sections(doc: str) -> dict[str, list[str]]:
    """Split a Google-style docstring; what stands before the first section is under ""."""
    found: dict[str, list[str]] = {"": []}
    current = ""
    for line in inspect.cleandoc(doc).splitlines():
        if heading := SECTION.match(line):
            current = heading[1]
            found[current] = []
        else:
            found[current].append(line)
    return {name: textwrap.dedent("\n".join(lines)).splitlines() for name, lines in found.items()}


def wrapped(text: str, first: str = "", rest: str | None = None) -> str:
    return textwrap.fill(
        " ".join(text.split()),
        COLUMNS,
        initial_indent=first,
        subsequent_indent=" " * len(first) if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def paragraphs(lines: Iterable[str]) -> str:
    """Fill paragraphs anew; what is indented is shown as it stands."""
    parts = []
    for part in "\n".join(lines).strip().split("\n\n"):
        if part.startswith("    "):
            parts.append(f"```text\n{textwrap.dedent(part)}\n```")
        elif part.strip():
            parts.append(wrapped(part))
    return "\n\n".join(parts)


def items(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Give name and text of each item of Args, Attributes or Raises.

    A list of names may go on for several lines; a text goes on where it is indented.
    """
    names, name, text = "", "", ""
    for line in lines:
        found = None if line.startswith("    ") else ITEM.match(line)
        if found is None and line.strip().endswith(",") and not line.startswith("    "):
            names += f"{line.strip()} "
        elif found:
            if name:
                yield name, text
            name, text, names = names + found["name"].strip(), found["text"], ""
        else:
            text = f"{text} {line.strip()}".strip()
    if name:
        yield name, text


def rendered(doc: str, *, skip: Iterable[str] = ()) -> str:
    """Turn a docstring into Markdown."""
    found = sections(doc)
    parts = [paragraphs(found[""])]
    for title, heading in (("Args", "Arguments"), ("Attributes", "Attributes")):
        rows = [(name, text) for name, text in items(found.get(title, ())) if name not in skip]
        if rows:
            lines = [wrapped(text, f"- `{name}`: ", "  ") for name, text in rows]
            parts.append(f"{heading}:\n\n" + "\n".join(lines))
    parts += [
        wrapped(f"{title}: " + " ".join(found[title]))
        for title in ("Returns", "Yields")
        if title in found
    ]
    raises = list(items(found.get("Raises", ())))
    if raises:
        lines = [wrapped(f"{_codes(names)}: {text}", "- ") for names, text in raises]
        parts.append("Raises:\n\n" + "\n".join(lines))
    elif "Raises" in found:
        parts.append(wrapped("Raises: " + " ".join(found["Raises"])))
    return "\n\n".join(part for part in parts if part)


def _codes(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.replace(",", " ").split())


# ---------------------------------------------------------------- signatures


def shown(annotation: object) -> str:
    """Return an annotation as a reader writes it: without modules and private names."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:c|calendar|datetime|typing|tillroll\.[\w.]+|collections\.abc)\.", "", text)


def signature(name: str, function: Callable[..., object], *, bound: bool = True) -> str:
    """Return a call as text, on one line if it fits and one parameter a line if not."""
    found = inspect.signature(function)
    parameters = list(found.parameters.values())[1 if bound else 0 :]
    parts, keyword_only = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            parts.append("*")
            keyword_only = True
        parts.append(_parameter(parameter))
    # A verb is made from what builds its request; what it returns is on the verb itself.
    returns = function.__annotations__.get("return", "")
    answer = f" -> {shown(returns)}" if returns else ""
    short = f"{name}({', '.join(parts)}){answer}"
    if len(short) > COLUMNS:
        short = f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){answer}"
    return f"```text\n{short}\n```"


def _parameter(parameter: inspect.Parameter) -> str:
    if parameter.kind is parameter.VAR_KEYWORD:
        return f"**{parameter.name}"
    text = parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {shown(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        default = parameter.default
        text += f' = "{default}"' if isinstance(default, str) else f" = {default!r}"
    return text


# ---------------------------------------------------------------- python.md

UNITS_IN = ("grant", "void", "adjust", "set_recurring", "stop_recurring")
UNITS_OUT = ("consume", "consume_many", "refund")
HOLDS = ("hold", "settle", "release", "extend", "mark_in_doubt", "resolve")
GOVERN = (
    "set_budget",
    "remove_budget",
    "set_alert",
    "remove_alert",
    "set_overdraft",
    "configure",
    "freeze",
    "unfreeze",
    "close_account",
)
SOLD = (
    "buy",
    "redeem",
    "subscribe",
    "entitle",
    "change_entitlement",
    "end_entitlement",
)
READS = (
    "balance",
    "access",
    "entitlements",
    "holdings",
    "statement",
    "usage",
    "explain",
    "hold_state",
    "overview",
    "knows",
    "history",
    "receipt",
    "verify",
    "entries",
    "accounts",
    "preview",
)
PRICES = ("prices", "apply_prices", "quote")
UPKEEP = ("book_due", "erase_metadata", "prune_refusals", "close")

PREFACE = f"""# Python

{MADE}

Everything here is imported from `tillroll` unless it says otherwise. What raises is in
[Refusals and errors](refusals.md).

## Values

| name | is |
|---|---|
| `Units` | An exact amount: `int`, `Decimal` or a decimal text such as `"12.5"`; never a float |
| `Meter` | A quantity: `int`, `Decimal` or a decimal text |
| `Span` | A `timedelta`, or a text such as `"90d"`, `"15m"`, `"1h30m"` |
| `When` | An aware `datetime`, or ISO 8601 text with an offset |
| `Expiry` | A `When`, or a `date` (also as text), good through the whole of that day |

"""


def python_page() -> str:
    return PREFACE + "\n\n".join(
        [
            "## Opening",
            called("tillroll.open", tillroll.open),
            called("tillroll.open_async", tillroll.open_async),
            "## What every verb takes\n\n" + how(),
            *group("## Units in", UNITS_IN),
            *group("## Units out", UNITS_OUT),
            *group("## Holds", HOLDS),
            *group("## What is sold, and what may be used", SOLD),
            *group("## What may happen from now on", GOVERN),
            *group("## Reading", READS),
            *group("## Prices", PRICES),
            *group("## Within your own transaction", ("join",)),
            *group("## Upkeep", UPKEEP),
            called("tillroll.copy", tillroll.copy),
            called("tillroll.migrate", tillroll.migrate),
            asynchronous(),
            *over_http(),
            "## Answers",
            *(answer(kind) for kind in ANSWERS),
            "## The price book\n\nFrom `tillroll.catalog`; rules are in `tillroll.ledger.pricing`.",
            *(called(f"catalog.{name}", getattr(catalog, name)) for name in CATALOG),
            *(answer(kind) for kind in (pricing.Price, pricing.Rate, pricing.Tier)),
        ]
    )


CATALOG = ("load", "parse", "dump", "template", "diff", "effects", "impact", "propose")
ANSWERS: tuple[type, ...] = (
    tillroll.Receipt,
    tillroll.OpenHold,
    tillroll.Balance,
    tillroll.Access,
    tillroll.Page,
    tillroll.Quote,
    tillroll.Outcome,
    tillroll.Verification,
    tillroll.Copied,
    tillroll.Migrated,
)


def how() -> str:
    described = [
        row
        for kind in (verbs.How, verbs.Who)
        for row in items(sections(inspect.getdoc(kind) or "")["Attributes"])
    ]
    assert {name for name, _ in described} == set(verbs.How.__annotations__)
    lines = [wrapped(text, f"- `{name}`: ", "  ") for name, text in described]
    intro = wrapped(
        "`**how` stands for these, on every verb that writes (`**who` for all but the reason). All "
        "but `actor` and `retry_refused` are part of the request: a repeat must give the same."
    )
    return intro + "\n\n" + "\n".join(lines)


def called(name: str, function: Callable[..., object]) -> str:
    return "\n\n".join(
        [
            f"### {name.rpartition('.')[2] if name.startswith('ledger.') else name}",
            signature(name, function, bound=name.startswith(("ledger.", "hold.", "client."))),
            rendered(inspect.getdoc(function) or "", skip=("**how", "**who")),
        ]
    )


def group(heading: str, names: Iterable[str]) -> Iterator[str]:
    yield heading
    for name in names:
        member = inspect.getattr_static(tillroll.Ledger, name)
        if isinstance(member, property):
            yield f"### {name}\n\n{rendered(member.__doc__ or '')}\n\n{previewed()}"
        else:
            yield called(f"ledger.{name}", member)


def previewed() -> str:
    names = [name for name in vars(embedded.Preview) if not name.startswith("_")]
    return wrapped("It has " + ", ".join(f"`{name}`" for name in names) + ".")


def asynchronous() -> str:
    awaited = [
        name
        for name, member in vars(tillroll.AsyncLedger).items()
        if inspect.iscoroutinefunction(member) and not name.startswith("_")
    ]
    return "\n\n".join(
        [
            "## From an event loop",
            wrapped(
                "`AsyncLedger`, opened by `tillroll.open_async`, has the same verbs and reads with "
                "the same arguments, to be awaited: "
                + ", ".join(f"`{name}`" for name in awaited)
                + ". `hold` may be entered with `async with`, or awaited for an `AsyncOpenHold`, "
                "which may be entered in turn; its verbs and `state()` are awaited too. Reads run "
                "on a thread, so the loop never waits for the file. `join` takes what has to be "
                "awaited. `sync` is the same ledger for threads, with what is not awaited: "
                "`entries`, `accounts` and `preview`."
            ),
        ]
    )


def over_http() -> Iterator[str]:
    made = tillroll.Client.__init__
    shape = signature("tillroll.Client", made).replace(") -> None", ")")
    about = [rendered(inspect.getdoc(part) or "") for part in (tillroll.Client, made)]
    yield "## Over HTTP"
    yield "\n\n".join(["### tillroll.Client", shape, *about])
    yield wrapped(
        "`AsyncClient` takes the same and is awaited, like `AsyncLedger`. Both have the verbs and "
        "reads above, but for `join`, `book_due` and `prune_refusals`, and these beside:"
    )
    yield from (called(f"client.{name}", getattr(tillroll.Client, name)) for name in OF_CLIENTS)
    yield from (answer(kind) for kind in (tillroll.FailOpen, tillroll.ProvisionalReceipt, Pending))


OF_SERVICE = tuple(name for name in (*vars(Payments), *vars(Webhooks)) if not name.startswith("_"))
OF_CLIENTS = ("whoami", "pending", "deliver", "dismiss", *OF_SERVICE)


def answer(kind: type) -> str:
    """Describe a class: what it is, its attributes, its properties and methods."""
    parts = [f"### {kind.__name__}", rendered(inspect.getdoc(kind) or "")]
    described = {
        name for name, _ in items(sections(inspect.getdoc(kind) or "").get("Attributes", ()))
    }
    fields = [f for f in getattr(kind, "__struct_fields__", ()) if f not in described]
    if fields and not described.issuperset(fields):
        hints = kind.__annotations__
        lines = [f"- `{name}`: `{shown(hints.get(name, ''))}`" for name in fields]
        parts.append("Fields:\n\n" + "\n".join(lines))
    properties, methods = [], []
    for name, member in inspect.getmembers_static(kind):
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            summary = (inspect.getdoc(member) or "").partition("\n\n")[0]
            properties.append(wrapped(summary, f"- `{name}`: ", "  "))
        elif isinstance(member, types.FunctionType):
            summary = (inspect.getdoc(member) or "").partition("\n\n")[0]
            methods.append(wrapped(summary, f"- `{name}()`: ", "  "))
    if properties:
        parts.append("Properties:\n\n" + "\n".join(properties))
    if methods:
        parts.append("Methods:\n\n" + "\n".join(methods))
    return "\n\n".join(parts)


# ---------------------------------------------------------------- refusals.md

REFUSALS_TOP = f"""# Refusals and errors

{MADE}

A **refusal** is an expected no, from one closed list. An **error** is operational, or a mistake of
the caller. Both are exceptions in Python, and each says whether anything was written.

The HTTP status is the one to answer with where your service passes them on. Money refusals are 402:
the official clients of AI providers repeat 409 and 429 by themselves, and 402 they leave alone.

## Refusals

The order is the precedence: where two apply, the upper one is given, always the same. A refusal
moves nothing. It is remembered as the answer to its `request_id` for 90 days, and a repeat gets it
again, unless it says `retry_refused=True`; see [Idempotency](../concepts/idempotency.md).

| | code | exception | HTTP | says | what to do |
|--:|---|---|--:|---|---|
"""


def refusals_page() -> str:
    assert list(problems.REFUSALS) == list(errors.REFUSALS), "advice and refusals differ"
    rows = [
        f"| {number} | `{code}` | `{kind.__name__}` | {problems.REFUSALS[code][0]} "
        f"| {_first(kind)} | {problems.REFUSALS[code][1]} |"
        for number, (code, kind) in enumerate(errors.REFUSALS.items(), 1)
    ]
    others = list(_other_errors(errors.TillrollError))
    advice = {**problems.ERRORS, **problems.EDGE}  # a client raises some of the edge's
    codes = {kind.code for kind in others}
    assert set(problems.ERRORS) <= codes <= set(advice), "advice and errors differ"
    more = [
        f"| `{kind.code}` | `{kind.__name__}` | {advice[kind.code][0]} | {kind.written} "
        f"| {_meaning(kind)} | {advice[kind.code][1]} |"
        for kind in others
    ]
    return (
        REFUSALS_TOP
        + "\n".join(rows)
        + "\n\n### What a refusal carries\n\n"
        + rendered(errors.Refused.__doc__ or "")
        .partition("\n\n")[2]
        .removeprefix("Attributes:\n\n")
        + "\n\n## Errors\n\n"
        + "| code | exception | HTTP | written | says | what to do |\n|---|---|--:|---|---|---|\n"
        + "\n".join(more)
        + "\n\n"
        + wrapped(
            "`written` is `nothing` or `unknown`, never a guess. After `unknown` the request is "
            "there whole or not at all, and the same `request_id` settles which. None of these is "
            "remembered."
        )
        + "\n\n"
        + wrapped(
            "A database that is set up so that it may lose what it acknowledged is not refused; "
            "opening it gives a `DurabilityWarning`, and `tillroll doctor` finds it wrong."
        )
        + "\n\n## The tree\n\n```text\n"
        + "\n".join(_tree(errors.TillrollError))
        + "\n```\n\n"
        + wrapped(f"One warning: `DurabilityWarning`. {errors.DurabilityWarning.__doc__}")
    )


def _first(kind: type) -> str:
    return " ".join((kind.__doc__ or "").partition("\n\n")[0].split()).removesuffix(".")


def _meaning(kind: type) -> str:
    text = _first(kind)
    return re.sub(r"\.? ?(Nothing was written( and nothing is remembered)?)\b", "", text).strip(
        " .;"
    )


def _other_errors(kind: type[errors.TillrollError]) -> Iterator[type[errors.TillrollError]]:
    """Give every error that is raised as itself, depth first; refusals and bases left out."""
    bases = (errors.TillrollError, errors.StoreError)
    if kind not in bases:
        yield kind
    for child in kind.__subclasses__():
        if child is not errors.Refused and child.__module__ == errors.__name__:
            yield from _other_errors(child)


def _tree(kind: type, depth: int = 0) -> Iterator[str]:
    yield "  " * depth + kind.__name__
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _tree(child, depth + 1)


# ---------------------------------------------------------------- schema.md

STATEMENT = re.compile(
    r"(?P<comment>(?:^--.*\n)*)^(?P<sql>CREATE (?:TABLE|VIEW|(?:UNIQUE )?INDEX|TRIGGER) "
    r"(?P<name>\w+)(?:(?!;\n).|\n)*?;\n(?:END;\n)?)",
    re.MULTILINE,
)
"""One statement of a migration, with the comment that stands right above it."""

SCHEMA_TOP = """# The tables

{MADE}

The ledger is a SQLite file that any SQL tool may read. Only tillroll may write to it: a row that it
did not write is found by `verify`. Times are microseconds since 1970 in UTC, units are whole
numbers of 10^-scale (a millionth, unless the store was made with another scale).

## Reading it with SQL

Something to read:

```python
import tillroll

with tillroll.open("sqlite:///credits.db") as ledger:
    ledger.grant("acme", 500, request_id="order-1")
    ledger.consume("acme", "image.generate", units=20, request_id="job-1")
    with ledger.hold("acme", "llm.chat", units=100, request_id="job-2") as hold:
        hold.settle(units=31)
```

`tillroll_postings` has a row for each movement: double entry inside the account. Every bucket of
every wallet, from the movements alone:

```sql
{BUCKETS}
```

```python
import sqlite3

database = sqlite3.connect("file:credits.db?mode=ro", uri=True)
for row in database.execute(\"\"\"
{BUCKETS}
\"\"\"):
    print(row)
```

<!-- output -->
```text
{BUCKETS_OUTPUT}
```

Whatever leaves one bucket arrives in another, so the buckets of a wallet sum to zero. `issued`
stands with a minus: it is where units come from.

What was used, by operation and day:

```sql
SELECT
    date(e.effective_at / 1000000, 'unixepoch') AS day,
    e.body ->> '$.operation' AS operation,
    count(*) AS charges,
    sum(p.units) / 1e6 AS units
FROM tillroll_entries AS e
INNER JOIN tillroll_postings AS p ON e.account_id = p.account_id AND e.seq = p.seq
WHERE p.target = 'used'
GROUP BY day, operation
ORDER BY day, operation
```

Accounts that something fell due on, and that nobody has touched since:

```sql
SELECT account, datetime(next_due_at / 1000000, 'unixepoch') AS since
FROM tillroll_accounts
WHERE next_due_at <= unixepoch() * 1000000
ORDER BY next_due_at
```

Refusals of the last day, by code:

```sql
SELECT body ->> '$.code' AS code, count(*) AS times
FROM tillroll_refusals
WHERE recorded_at >= (unixepoch() - 86400) * 1000000
GROUP BY code
ORDER BY times DESC
```

`available` as stored does not know what fell due since the last entry. For a balance of this moment
ask the ledger, or run `tillroll book-due` first.

"""
BUCKETS = """\
SELECT account, wallet, bucket, sum(units) / 1e6 AS units
FROM (
    SELECT account, wallet, target AS bucket, units FROM tillroll_postings
    UNION ALL
    SELECT account, wallet, source, -units FROM tillroll_postings
)
GROUP BY account, wallet, bucket
ORDER BY account, wallet, bucket"""
BUCKETS_OUTPUT = """\
('acme', 'credits', 'available', 449.0)
('acme', 'credits', 'held', 0.0)
('acme', 'credits', 'issued', -500.0)
('acme', 'credits', 'used', 51.0)"""


def schema_page() -> str:
    top = (
        SCHEMA_TOP.replace("{MADE}", MADE)
        .replace("{BUCKETS}", BUCKETS)
        .replace("{BUCKETS_OUTPUT}", BUCKETS_OUTPUT)
    )
    parts = []
    for step in base.migrations("sqlite"):
        parts.append(f"## {step.name}")
        intro = re.match(r"(?:--.*\n)+(?=\n)", step.sql)
        if intro:
            parts.append(wrapped(_said(intro[0])))
        parts += list(_statements(step.sql[intro.end() if intro else 0 :]))
    return top + "\n\n".join(parts)


def _statements(sql: str) -> Iterator[str]:
    for found in STATEMENT.finditer(sql):
        text = found["sql"].rstrip()
        if " INDEX " not in text.partition("(")[0]:
            yield f"### {found['name']}"
        if found["comment"]:
            yield wrapped(_said(found["comment"]))
        yield f"```sql\n{text}\n```"


def _said(comment: str) -> str:
    return " ".join(line.removeprefix("--").strip() for line in comment.splitlines())


# ---------------------------------------------------------------- cli.md

CLI_TOP = f"""# Command line

{MADE}

`tillroll` has every verb of the ledger, tables for people and `--json` for programs.

| exit code | means |
|--:|---|
| 0 | Done |
| 1 | Failure: the store, the file system, or a check that found something |
| 2 | Wrong usage; nothing was written |
| 3 | Refused |
| 4 | The request id was used before for another request |

## tillroll

"""


def cli_page() -> str:
    from tillroll.cli.app import app  # noqa: PLC0415 - slow to import, and only this page needs it

    parts = [CLI_TOP + _help()]
    for name in sorted(app):
        if name.startswith("-"):
            continue
        parts.append(f"## {name}\n\n{_help(name)}")
        inner = [command for command in sorted(app[name]) if not command.startswith("-")]
        parts += [f"### {name} {command}\n\n{_help(name, command)}" for command in inner]
    return "\n\n".join(parts)


def _help(*words: str) -> str:
    from tillroll.cli.app import run  # noqa: PLC0415 - as above

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run([*words, "--help"])
    lines = [line.rstrip() for line in printed.getvalue().strip().splitlines()]
    return "```text\n" + "\n".join(lines) + "\n```"


# ---------------------------------------------------------------- settings.md

SETTINGS_TOP = f"""# Settings

{MADE}

What `tillroll serve` can be told, by a variable of the environment or in a TOML file. The
environment wins over the file, and an option of the command over both. The file is named by
`--config` or by `TILLROLL_CONFIG`; what it has and nobody knows is an error. `tillroll config
check` reads all of it as `serve` does, and shows what it comes to.

| setting | variable | is | unless set |
|---|---|---|---|
"""
SETTINGS_END = """
For what is on or off, `yes`, `no`, `on`, `off`, `true` and `false` will do.

The same in a file:

```toml title="tillroll-service.toml"
database_url = "postgresql://tillroll_app@db.internal/credits"
host = "0.0.0.0"
workers = 2
topup_url = "https://shop.example/credits?account={account}"
```

```console
$ TILLROLL_WORKERS=4 tillroll config check --config tillroll-service.toml --json
{
  "ok": true,
  "settings": {
    "database_url": "postgresql://tillroll_app@db.internal/credits",
...
    "workers": 4,
...
```

Where traces go is told by the variables of OpenTelemetry, see
[Observability](../operating/observability.md#traces)."""


def settings_page() -> str:
    described = dict(items(sections(inspect.getdoc(settings.Settings) or "")["Attributes"]))
    fields = msgspec.structs.fields(settings.Settings)
    assert list(described) == [field.name for field in fields], "settings and their words differ"
    rows = [
        f"| `{field.name}` | `{settings.PREFIX}{field.name.upper()}` | {described[field.name]}"
        f"{_choices(field.type)} | {_setting(field.default)} |"
        for field in fields
    ]
    return SETTINGS_TOP + "\n".join(rows) + "\n" + SETTINGS_END


def _choices(kind: object) -> str:
    if typing.get_origin(kind) is not typing.Literal:
        return ""
    return " One of " + ", ".join(f"`{choice}`" for choice in typing.get_args(kind)) + "."


def _setting(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else f"`{value}`" if isinstance(value, str) else f"{value}"


# ---------------------------------------------------------------- api.md

API_TOP = f"""# The HTTP API

{MADE}

A running service describes itself at `/openapi.json` (OpenAPI 3.1), with every shape and every
problem. This page is the overview; [Over HTTP](../guides/http.md) shows it at work.

- **Who calls**: `Authorization: Bearer tr_live_...` (or `tr_test_...`). A key has scopes; `admin`
  may do what any scope may.
- **Writes** marked *once* need the header `Idempotency-Key`: your id of the event, which is the
  `request_id` of the ledger. A repeat is answered with `Idempotent-Replayed: true`.
- **Ids in addresses** are percent-encoded, a slash too.
- **Units** are whole numbers or decimal strings, and come back as strings. Times are ISO 8601.
- **A no** is a problem document (`application/problem+json`); its `code` is in
  [Refusals and errors](refusals.md) or below.
- **A preview** is a write's address with `/preview` after the account: it decides as now and writes
  nothing.
"""


def api_page() -> str:
    """Return the page of the HTTP API, from its routes."""
    known = routes.routes()
    parts = [API_TOP]
    for name in dict.fromkeys(route.group for route in known):
        parts += [f"## {name}\n", *(_route(route) for route in known if route.group == name)]
    parts.append(
        "## Turned away at the door\n\n| code | HTTP | says | what to do |\n|---|--:|---|---|"
    )
    parts += [
        f"| `{code}` | {kind.status} | {problems.title_of(code)} | {kind.advice} |"
        for code, kind in problems.EDGE.items()
    ]
    return "\n".join(parts) + "\n"


def _route(route: calls.Route) -> str:
    scopes = " or ".join(f"`{scope}`" for scope in sorted(route.scopes)) or "any"
    lines = [f"### {route.method} {route.path}\n"]
    lines += [wrapped(f"{route.summary}."), "", f"- Scope: {scopes}{', *once*' * route.keyed}"]
    shape = route.body or route.query
    if shape is not None and shape.__struct_fields__:
        taken = _fields(shape)
        where = "Body" if route.body is not None else "Query"
        lines.append(wrapped(f"{where}: {taken}", "- ", "  "))
    if route.refusals:
        said = ", ".join(f"`{code}`" for code in route.refusals)
        lines.append(wrapped(f"May be refused: {said}", "- ", "  "))
    return "\n".join(lines) + "\n"


def _fields(shape: type[msgspec.Struct]) -> str:
    """Return the fields of a body or a query; those that must be there come first and are bold."""
    fields = msgspec.structs.fields(shape)
    needed = [f"**`{one.name}`**" for one in fields if one.required]
    return ", ".join([*needed, *(f"`{one.name}`" for one in fields if not one.required)])


# ---------------------------------------------------------------- events.md

EVENTS_TOP = f"""# Events

{MADE}

What webhooks tell; [the guide](../guides/webhooks.md) shows them at work. An event is made in the
transaction that writes the entry it tells of, and only where an endpoint wants its type.

Every event has the same frame, and `data` of the shape that its type names. Amounts are decimal
strings, times ISO 8601. New fields may come; those that are here stay.
"""


def events_page() -> str:
    """Return the page of events: the frame, each type, each shape with its JSON Schema."""
    parts = [EVENTS_TOP, "| field | is |\n|---|---|"]
    parts += [_event_row(name, text) for name, text in _attributes(events.Payload)]
    parts.append(
        "\n## Types\n\n| type | when | made by entries of the kind | data |\n|---|---|---|---|"
    )
    for kind in events.TYPES:
        made_by = ", ".join(f"`{name}`" for name in kind.kinds)
        shape = kind.shape.__name__
        parts.append(
            f"| `{kind.topic}` | {kind.summary} | {made_by} | [{shape}](#{shape.lower()}) |"
        )
    for shape in dict.fromkeys(kind.shape for kind in events.TYPES):
        parts.append(f"\n## {shape.__name__}\n\n{wrapped(_first_line(shape))}\n")
        rows = [_event_row(name, text) for name, text in _attributes(shape)]
        parts += ["| field | is |\n|---|---|", *rows, ""] if rows else []
        schema = _undescribed(msgspec.json.schema(shape)["$defs"][shape.__name__])
        text = msgspec.json.format(msgspec.json.encode(schema), indent=2).decode()
        parts.append(f"```json\n{text}\n```")
    return "\n".join(parts) + "\n"


def _undescribed(schema: dict[str, object]) -> dict[str, object]:
    """Return a schema without what stands above it already."""
    return {name: value for name, value in schema.items() if name != "description"}


def _attributes(shape: type) -> Iterator[tuple[str, str]]:
    """Yield what the docstrings say of a shape's fields, those it shares with others first."""
    for part in reversed(shape.__mro__):
        yield from items(sections(part.__doc__ or "").get("Attributes", []))


def _event_row(name: str, text: str) -> str:
    return f"| {_codes(name)} | {' '.join(text.split())} |"


def _first_line(shape: type) -> str:
    return " ".join(sections(shape.__doc__ or "")[""]).strip()


# ---------------------------------------------------------------- write or check

PAGES: dict[str, Callable[[], str]] = {
    "api.md": api_page,
    "python.md": python_page,
    "refusals.md": refusals_page,
    "schema.md": schema_page,
    "cli.md": cli_page,
    "settings.md": settings_page,
    "events.md": events_page,
}


def main() -> int:
    """Write the pages, or compare them."""
    os.environ.update(COLUMNS=str(COLUMNS), NO_COLOR="1", TERM="dumb")
    for name in ("TILLROLL_DATABASE_URL", "TILLROLL_READ_DATABASE_URL"):
        os.environ.pop(name, None)  # shown as a default otherwise
    check = "--check" in sys.argv[1:]
    stale = []
    for name, make in PAGES.items():
        text = make().rstrip() + "\n"
        path = FOLDER / name
        if check and (not path.exists() or path.read_text("utf-8") != text):
            stale.append(name)
        elif not check:
            path.write_text(text, "utf-8")
    if stale:
        print("not as the source says:", ", ".join(stale), "- run python scripts/reference.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
