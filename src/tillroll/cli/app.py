"""The commands. Each is a thin line from options to a verb and from its answer to the screen."""

from __future__ import annotations

import csv
import getpass
import io
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

import tillroll
from tillroll import catalog
from tillroll.cli import entitled, paying, views
from tillroll.cli import terminal as c
from tillroll.cli.options import (
    Actor,
    Attribute,
    Feature,
    Metadata,
    Meter,
    Reason,
    RequestId,
    Tag,
    Units,
)
from tillroll.cli.terminal import Common, print_json, show_receipt

app = App(
    name="tillroll",
    help="The prepaid-credit ledger: every charge once, in order, never below zero, explained.",
    version=tillroll.__version__,
    help_format="plaintext",
)
prices_app = App(name="prices", help="The price book: plan, apply, list and show versions.")
bench_app = App(name="bench", help="Measure this installation, side by side with the naive way.")
app.command(prices_app)
app.command(bench_app)
keys_app = App(name="keys", help="API keys of the service: create, list, revoke.")
projects_app = App(name="projects", help="Projects of the service: create, list.")
config_app = App(name="config", help="Settings of the service.")
webhooks_app = App(name="webhooks", help="Webhook endpoints and what became of events.")
jobs_app = App(name="jobs", help="What is done beside the calls: status, run.")
catalog_app = App(
    name="catalog", help="All of tillroll.toml, what is sold too: plan, apply, list, show versions."
)
for group in (
    *(keys_app, projects_app, config_app, catalog_app, webhooks_app, jobs_app),
    *paying.APPS,
):
    app.command(group)
for command in entitled.COMMANDS:
    app.command(command)


def run(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    tokens = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in tokens
    c.bear_any_encoding()
    try:
        code = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()  # here, where it can still be told that nobody reads
    except CycloptsError as problem:
        c.show_failure("usage", problem, written="nothing", as_json=as_json)
        if not as_json:
            c.err.print("Try: tillroll --help", style="dim")
        return c.USAGE
    except tillroll.TillrollError as problem:
        c.show_error(problem, as_json=as_json)
        return c.exit_code(problem)
    except KeyboardInterrupt:
        c.err.print("interrupted")
        return c.FAILED
    except BrokenPipeError:
        c.stop_writing()
        return c.FAILED
    except OSError as problem:
        c.show_failure("failure", problem, written="unknown", as_json=as_json)
        return c.FAILED
    return code if isinstance(code, int) else c.OK


# ---------------------------------------------------------------- setting up


@app.command
def init(
    *,
    prices: Annotated[Path, Parameter(help="The price book's file.")] = Path("tillroll.toml"),
    scale: Annotated[int | None, Parameter(help="Decimals of the units, fixed for ever.")] = None,
    common: Common | None = None,
) -> None:
    """Make a ledger and a price book to begin with; what is there already is left alone."""
    common = common or Common()
    with tillroll.open(common.db, project=common.project, scale=scale) as ledger:
        url = ledger.store.url
        current = ledger.prices().current
    written = not prices.exists()
    if written:
        prices.write_text(catalog.template(), encoding="utf-8")
    if common.json:
        print_json(
            {"db": url, "prices": str(prices), "prices_written": written, "version": current}
        )
        return
    c.out.print(f"[bold green]ok[/] ledger {url}", soft_wrap=True)
    state = "written" if written else "kept as it is"
    c.out.print(f"[bold green]ok[/] price book {prices} {state}", soft_wrap=True)
    if not current:
        c.out.print("   look at it, then: tillroll prices apply --reason 'first prices'")


# ---------------------------------------------------------------- units in


@app.command
def grant(
    account: str,
    units: str,
    /,
    *,
    request_id: RequestId = None,
    wallet: str = "credits",
    category: Literal["paid", "promo", "plan", "adjustment"] = "paid",
    priority: int = 0,
    expires: Annotated[
        str | None, Parameter(help="A span such as 90d, a date, or an ISO 8601 time.")
    ] = None,
    effective_at: str | None = None,
    applies_to: Annotated[list[str] | None, Parameter(negative=())] = None,
    cost_basis: str | None = None,
    source: str | None = None,
    tag: Tag = None,
    reason: Reason = None,
    actor: Actor = None,
    metadata: Metadata = None,
    common: Common | None = None,
) -> None:
    """Put units into an account."""
    common = common or Common()
    span = expires is not None and expires[-1:] in "smhdw" and expires[:1].isdigit()
    with common.open() as ledger:
        receipt = ledger.grant(
            account,
            units,
            request_id=request_id,
            wallet=wallet,
            category=category,
            priority=priority,
            effective_at=effective_at,
            expires_at=None if span else expires,
            expires_in=expires if span else None,
            applies_to=applies_to or (),
            cost_basis=cost_basis,
            source=source,
            tags=c.pairs(tag or (), "--tag"),
            reason=reason,
            actor=actor,
            metadata=c.metadata_of(metadata),
        )
    show_receipt(receipt, common)


@app.command
def void(
    account: str,
    grant_id: str,
    /,
    *,
    units: Annotated[str | None, Parameter(help="Take only so many of those left.")] = None,
    request_id: RequestId = None,
    reason: Reason = None,
    actor: Actor = None,
    common: Common | None = None,
) -> None:
    """Cancel what is left of a grant."""
    common = common or Common()
    with common.known() as ledger:
        receipt = ledger.void(
            account, grant_id, units=units, request_id=request_id, reason=reason, actor=actor
        )
    show_receipt(receipt, common)


@app.command
def adjust(
    account: str,
    units: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    reason: Annotated[str, Parameter(help="Why; required.")],
    request_id: RequestId = None,
    wallet: str = "credits",
    actor: Actor = None,
    common: Common | None = None,
) -> None:
    """Correct a balance by hand, up or down."""
    common = common or Common()
    with common.open() as ledger:
        receipt = ledger.adjust(
            account, units, reason=reason, request_id=request_id, wallet=wallet, actor=actor
        )
    show_receipt(receipt, common)


# ---------------------------------------------------------------- units out


@app.command
def consume(
    account: str,
    operation: str | None = None,
    /,
    *,
    units: Units = None,
    meter: Meter = None,
    model: str | None = None,
    attribute: Attribute = None,
    request_id: RequestId = None,
    wallet: str | None = None,
    quote: str | None = None,
    effective_at: str | None = None,
    feature: Feature = None,
    tag: Tag = None,
    reason: Reason = None,
    actor: Actor = None,
    metadata: Metadata = None,
    retry_refused: Annotated[
        bool, Parameter(negative=(), help="Decide anew what was refused before.")
    ] = False,
    common: Common | None = None,
) -> None:
    """Take units in one step."""
    common = common or Common()
    with common.open() as ledger:
        receipt = ledger.consume(
            account,
            operation,
            units=units,
            meters=c.pairs(meter or (), "--meter"),
            model=model,
            attributes=c.pairs(attribute or (), "--attribute"),
            request_id=request_id,
            wallet=wallet,
            quote=quote,
            effective_at=effective_at,
            feature=feature,
            tags=c.pairs(tag or (), "--tag"),
            reason=reason,
            actor=actor,
            metadata=c.metadata_of(metadata),
            retry_refused=retry_refused,
        )
    show_receipt(receipt, common)


@app.command
def hold(
    account: str,
    operation: str | None = None,
    /,
    *,
    units: Units = None,
    floor: Annotated[str | None, Parameter(help="Take what is there, down to this.")] = None,
    meter: Meter = None,
    model: str | None = None,
    attribute: Attribute = None,
    expires_in: Annotated[str | None, Parameter(help="Such as 30m; 15m if absent.")] = None,
    request_id: RequestId = None,
    wallet: str | None = None,
    quote: str | None = None,
    effective_at: str | None = None,
    feature: Feature = None,
    tag: Tag = None,
    reason: Reason = None,
    actor: Actor = None,
    metadata: Metadata = None,
    retry_refused: Annotated[
        bool, Parameter(negative=(), help="Decide anew what was refused before.")
    ] = False,
    common: Common | None = None,
) -> None:
    """Reserve units before the work; the request id is the hold's id."""
    common = common or Common()
    with common.open() as ledger:
        held = ledger.hold(
            account,
            operation,
            units=units,
            floor=floor,
            meters=c.pairs(meter or (), "--meter"),
            model=model,
            attributes=c.pairs(attribute or (), "--attribute"),
            expires_in=expires_in,
            request_id=request_id,
            wallet=wallet,
            quote=quote,
            effective_at=effective_at,
            feature=feature,
            tags=c.pairs(tag or (), "--tag"),
            reason=reason,
            actor=actor,
            metadata=c.metadata_of(metadata),
            retry_refused=retry_refused,
        )
    show_receipt(held.receipt, common)


@app.command
def settle(
    account: str,
    hold_id: str,
    /,
    *,
    units: Annotated[
        str | None, Parameter(help="What was used; all that is held if absent.")
    ] = None,
    meter: Meter = None,
    attribute: Attribute = None,
    part: Annotated[bool, Parameter(negative=(), help="Leave the hold open.")] = False,
    above: Literal["available", "refuse", "overdraft"] = "available",
    request_id: RequestId = None,
    reason: Reason = None,
    actor: Actor = None,
    common: Common | None = None,
) -> None:
    """Take from a hold what was really used; the rest goes back."""
    common = common or Common()
    with common.known() as ledger:
        receipt = ledger.settle(
            account,
            hold_id,
            units=units,
            meters=c.pairs(meter or (), "--meter"),
            attributes=c.pairs(attribute or (), "--attribute"),
            final=not part,
            above=above,
            request_id=request_id,
            reason=reason,
            actor=actor,
        )
    show_receipt(receipt, common)


@app.command
def release(
    account: str,
    hold_id: str,
    /,
    *,
    request_id: RequestId = None,
    reason: Reason = None,
    actor: Actor = None,
    common: Common | None = None,
) -> None:
    """Give all of a hold back."""
    common = common or Common()
    with common.known() as ledger:
        receipt = ledger.release(
            account, hold_id, request_id=request_id, reason=reason, actor=actor
        )
    show_receipt(receipt, common)


@app.command
def extend(
    account: str,
    hold_id: str,
    /,
    *,
    expires_in: Annotated[str, Parameter(help="How long from now, such as 30m.")],
    request_id: RequestId = None,
    common: Common | None = None,
) -> None:
    """Prolong an open hold."""
    common = common or Common()
    with common.known() as ledger:
        receipt = ledger.extend(account, hold_id, expires_in=expires_in, request_id=request_id)
    show_receipt(receipt, common)


@app.command
def in_doubt(
    account: str,
    hold_id: str,
    /,
    *,
    deadline_in: Annotated[str | None, Parameter(help="Such as 6h; 24h if absent.")] = None,
    at_deadline: Literal["release", "settle"] = "release",
    request_id: RequestId = None,
    reason: Reason = None,
    common: Common | None = None,
) -> None:
    """Mark a hold whose outcome nobody knows."""
    common = common or Common()
    with common.known() as ledger:
        receipt = ledger.mark_in_doubt(
            account,
            hold_id,
            deadline_in=deadline_in,
            at_deadline=at_deadline,
            request_id=request_id,
            reason=reason,
        )
    show_receipt(receipt, common)


@app.command
def resolve(
    account: str,
    hold_id: str,
    outcome: Literal["done", "not_done"],
    /,
    *,
    units: Annotated[str | None, Parameter(help="What was used, where it was done.")] = None,
    meter: Meter = None,
    request_id: RequestId = None,
    reason: Reason = None,
    common: Common | None = None,
) -> None:
    """End doubt about a hold."""
    common = common or Common()
    with common.known() as ledger:
        receipt = ledger.resolve(
            account,
            hold_id,
            outcome,
            units=units,
            meters=c.pairs(meter or (), "--meter"),
            request_id=request_id,
            reason=reason,
        )
    show_receipt(receipt, common)


@app.command
def refund(
    account: str,
    charge: str,
    /,
    *,
    units: Annotated[str | None, Parameter(help="All that is left if absent.")] = None,
    expired: Literal["expire", "extend", "goodwill"] = "expire",
    extend_by: Annotated[str | None, Parameter(help="Such as 30d.")] = None,
    preview: Annotated[bool, Parameter(negative=(), help="Show it, write nothing.")] = False,
    request_id: RequestId = None,
    reason: Reason = None,
    actor: Actor = None,
    common: Common | None = None,
) -> None:
    """Give back part or all of a charge, to the grants that paid."""
    common = common or Common()
    with common.known() as ledger:
        verb = ledger.preview.refund if preview else ledger.refund
        receipt = verb(
            account,
            charge,
            units=units,
            expired=expired,
            extend_by=extend_by,
            request_id=request_id,
            reason=reason,
            actor=actor,
        )
    if preview and not common.json:
        c.out.print("preview, nothing was written:", style="yellow")
    show_receipt(receipt, common)


# ---------------------------------------------------------------- what may happen from now on


def _simple(name: str, help_text: str) -> None:
    """Add a command that takes an account and says yes or no to something."""

    def command(
        account: str,
        /,
        *,
        request_id: RequestId = None,
        reason: Reason = None,
        actor: Actor = None,
        common: Common | None = None,
    ) -> None:
        common = common or Common()
        with common.open() as ledger:
            verb = getattr(ledger, "close_account" if name == "close" else name)
            receipt = verb(account, request_id=request_id, reason=reason, actor=actor)
        show_receipt(receipt, common)

    app.command(command, name=name, help=help_text)


_simple("freeze", "Allow nothing new to be taken from an account.")
_simple("unfreeze", "End a freeze.")
_simple("close", "Close an account for good.")


@app.command
def overdraft(
    account: str,
    limit: str,
    /,
    *,
    wallet: str = "credits",
    request_id: RequestId = None,
    reason: Reason = None,
    common: Common | None = None,
) -> None:
    """Allow a wallet to owe up to a limit."""
    common = common or Common()
    with common.open() as ledger:
        receipt = ledger.set_overdraft(
            account, limit, wallet=wallet, request_id=request_id, reason=reason
        )
    show_receipt(receipt, common)


@app.command
def budget(
    account: str,
    name: str,
    cap: Annotated[str, Parameter(help="An amount, or 'none' to remove the budget.")],
    /,
    *,
    period: Literal["day", "week", "month", "total", "rolling"] = "month",
    window: Annotated[str | None, Parameter(help="The length of a rolling window.")] = None,
    match: Annotated[
        list[str] | None, Parameter(negative=(), help="TAG=VALUE or TAG=*, repeatable.")
    ] = None,
    wallet: str = "credits",
    request_id: RequestId = None,
    common: Common | None = None,
) -> None:
    """Cap what may be spent per period at one node of an account."""
    common = common or Common()
    with common.open() as ledger:
        if cap == "none":
            receipt = ledger.remove_budget(account, name, request_id=request_id)
        else:
            receipt = ledger.set_budget(
                account,
                name,
                cap,
                period=period,
                window=window,
                match=c.pairs(match or (), "--match"),
                wallet=wallet,
                request_id=request_id,
            )
    show_receipt(receipt, common)


@app.command
def configure(
    account: str,
    /,
    *,
    time_zone: Annotated[str | None, Parameter(help="An IANA name, as Europe/Berlin.")] = None,
    late_settlement: Annotated[
        bool | None, Parameter(help="Whether a hold may be settled after its deadline.")
    ] = None,
    late_usage: Annotated[str | None, Parameter(help="How far back usage may be, as 90d.")] = None,
    early_usage: Annotated[str | None, Parameter(help="How far ahead it may be, as 1h.")] = None,
    request_id: RequestId = None,
    reason: Reason = None,
    actor: Actor = None,
    common: Common | None = None,
) -> None:
    """Change how an account is treated; what is left out stays."""
    common = common or Common()
    with common.open() as ledger:
        receipt = ledger.configure(
            account,
            time_zone=time_zone,
            late_settlement=late_settlement,
            late_usage=late_usage,
            early_usage=early_usage,
            request_id=request_id,
            reason=reason,
            actor=actor,
        )
    show_receipt(receipt, common)


@app.command
def alert(
    account: str,
    name: str,
    on: Annotated[
        Literal["balance", "percent", "days_left", "depleted", "budget", "expiring", "none"],
        Parameter(help="What is measured, or 'none' to remove the alert."),
    ],
    threshold: Annotated[str | None, Parameter(help="Units, percent or days.")] = None,
    /,
    *,
    budget: Annotated[str | None, Parameter(help="The only budget that is meant.")] = None,
    wallet: str = "credits",
    request_id: RequestId = None,
    common: Common | None = None,
) -> None:
    """Have webhook endpoints told when an account comes near an end."""
    common = common or Common()
    with common.open() as ledger:
        if on == "none":
            receipt = ledger.remove_alert(account, name, request_id=request_id)
        else:
            receipt = ledger.set_alert(
                account,
                name,
                on,
                threshold,
                budget=budget,
                wallet=wallet,
                request_id=request_id,
            )
    show_receipt(receipt, common)


@app.command
def recurring(
    account: str,
    name: str,
    units: Annotated[str, Parameter(help="What each period brings, or 'stop'.")],
    /,
    *,
    anchor: Annotated[str, Parameter(help="The first occurrence, a local date or time.")] = "",
    every: Literal["day", "week", "month", "year"] = "month",
    count: int = 1,
    rollover_min: str = "0",
    rollover_max: str = "0",
    category: Literal["paid", "promo", "plan", "adjustment"] = "plan",
    wallet: str = "credits",
    priority: int = 0,
    applies_to: Annotated[list[str] | None, Parameter(negative=())] = None,
    ends_at: Annotated[str | None, Parameter(help="No renewal from then on; ISO 8601.")] = None,
    request_id: RequestId = None,
    common: Common | None = None,
) -> None:
    """Grant units again and again, counted from an anchor."""
    common = common or Common()
    with common.open() as ledger:
        if units == "stop":
            receipt = ledger.stop_recurring(account, name, request_id=request_id)
        elif not anchor:
            raise tillroll.InvalidInput(
                "give --anchor, the first occurrence: a local date or time such as 2026-01-31"
            )
        else:
            receipt = ledger.set_recurring(
                account,
                name,
                units,
                anchor=anchor,
                every=every,
                count=count,
                rollover_min=rollover_min,
                rollover_max=rollover_max,
                category=category,
                wallet=wallet,
                priority=priority,
                applies_to=applies_to or (),
                ends_at=ends_at,
                request_id=request_id,
            )
    show_receipt(receipt, common)


# ---------------------------------------------------------------- looking


@app.command
def balance(
    account: str,
    /,
    *,
    wallet: str = "credits",
    as_of: Annotated[str | None, Parameter(help="A moment of the past, ISO 8601.")] = None,
    clock: Literal["recorded", "effective"] = "recorded",
    common: Common | None = None,
) -> None:
    """Show a balance with its grants, open holds and budgets."""
    common = common or Common()
    with common.known() as ledger:
        found = ledger.balance(account, wallet, as_of=as_of, clock=clock)
    if common.json:
        print_json(found.to_dict())
    else:
        views.show_balance(found)


@app.command
def statement(
    account: str,
    /,
    *,
    limit: int = 50,
    before: Annotated[int | None, Parameter(help="Go on below this number.")] = None,
    kind: Annotated[list[str] | None, Parameter(negative=(), help="Only these kinds.")] = None,
    since: str | None = None,
    until: str | None = None,
    common: Common | None = None,
) -> None:
    """Show an account's entries, newest first."""
    common = common or Common()
    with common.known() as ledger:
        page = ledger.statement(
            account, limit=limit, before=before, kinds=kind or (), since=since, until=until
        )
    if common.json:
        print_json(page.to_dict())
    else:
        views.show_statement(account, page)


@app.command
def usage(
    account: str | None = None,
    /,
    *,
    by: Annotated[
        list[str] | None,
        Parameter(negative=(), help="account, operation, model, wallet, day, month or tag:NAME."),
    ] = None,
    since: str | None = None,
    until: str | None = None,
    common: Common | None = None,
) -> None:
    """Show what was used, grouped; refunds are taken off."""
    common = common or Common()
    groups = by or ["operation"]
    with common.known() as ledger, c.progress(quiet=common.json) as bar:
        task = bar.add_task("reading entries", total=None)
        rows = ledger.usage(
            account,
            by=groups,
            since=since,
            until=until,
            progress=lambda read: bar.update(task, completed=read),
        )
    if common.json:
        print_json(rows)
    else:
        views.show_usage(groups, rows)


@app.command
def explain(
    request_id: str,
    /,
    *,
    account: Annotated[str | None, Parameter(help="Whose, where several know the id.")] = None,
    common: Common | None = None,
) -> None:
    """Show why something was charged, or refused: the whole story of one request."""
    common = common or Common()
    with common.known() as ledger:
        story = ledger.explain(request_id, account=account)
    if common.json:
        print_json(story)
    else:
        views.show_story(story)


@app.command
def accounts(*, common: Common | None = None) -> None:
    """List the accounts that have a history."""
    common = common or Common()
    with common.known() as ledger:
        names = list(ledger.accounts())
    if common.json:
        print_json(names)
    else:
        for name in names:
            c.out.print(name, markup=False, soft_wrap=True)


@app.command
def verify(account: str | None = None, /, *, common: Common | None = None) -> int:
    """Refold every history from its stored bytes and compare with all that is stored."""
    common = common or Common()
    with common.known() as ledger, c.progress(quiet=common.json) as bar:
        task = bar.add_task("refolding entries", total=None)
        found = ledger.verify(account, progress=lambda done: bar.update(task, completed=done))
    if not found.accounts and common.project != Common.project:
        raise tillroll.NotFound(f"there is no account in a project {common.project!r} here")
    if common.json:
        print_json(found.to_dict())
    else:
        views.show_verification(found)
    return c.OK if found.ok else c.FAILED


@app.command
def export(
    path: Annotated[Path | None, Parameter(help="The file; standard output if absent.")] = None,
    /,
    *,
    account: str | None = None,
    common: Common | None = None,
) -> None:
    """Write every entry as CSV (with --json: JSON lines), account by account, oldest first.

    What fell due and is not booked yet follows, marked as `due`, so that it adds up. A line of JSON
    is what `Receipt.to_dict` gives: units are decimal texts, times ISO 8601, tags, meters and price
    objects, postings a list; `due` is true or false. In CSV all is text: tags, meters and postings
    are JSON, and what is not there is empty.
    """
    common = common or Common()
    with common.known() as ledger, c.progress(quiet=path is None) as bar:
        task = bar.add_task("writing entries", total=None)
        if path is None and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # data, not text for whoever looks
        target = sys.stdout if path is None else path.open("w", encoding="utf-8", newline="")
        try:
            writer = csv.DictWriter(target, views.EXPORT_COLUMNS, extrasaction="ignore")
            if not common.json:
                writer.writeheader()
            for receipt in ledger.entries(account, due=True):
                if common.json:
                    target.write(views.export_line(receipt))
                else:
                    writer.writerow(views.export_row(receipt))
                bar.advance(task)
        finally:
            if path is not None:
                target.close()


@app.command
def copy(
    source: Annotated[str, Parameter(help="The store to copy, such as sqlite:///credits.db.")],
    target: Annotated[str, Parameter(help="An empty store, or one that an earlier copy began.")],
    /,
    *,
    keep: Annotated[
        bool, Parameter(negative=(), help="Leave the source in use; copy again to catch up.")
    ] = False,
    common: Common | None = None,
) -> int:
    """Move a ledger to another store: copied, compared, and only then in use there.

    Every history is copied byte for byte and checked on the way. One that was cut off goes on
    where it was. At the end the source is read-only.
    """
    from tillroll.cli import moving  # noqa: PLC0415 - only when asked for

    return moving.run(source, target, common or Common(), keep=keep)


@app.command
def migrate(
    *,
    plan: Annotated[
        bool, Parameter(negative=(), help="Show what is pending and write nothing.")
    ] = False,
    role: Annotated[
        str | None,
        Parameter(help="PostgreSQL: give this role what the application needs, nothing else."),
    ] = None,
    row_level_security: Annotated[
        bool | None, Parameter(help="PostgreSQL: show a session the rows of its project only.")
    ] = None,
    writing: Annotated[
        Literal["locks", "append"] | None,
        Parameter(help="PostgreSQL: by locks, or by appending where one process is mostly alone."),
    ] = None,
    distributed: Annotated[
        Literal["citus"] | None, Parameter(help="Spread a new ledger over a cluster, by account.")
    ] = None,
    scale: Annotated[int | None, Parameter(help="Decimals of the units, fixed for ever.")] = None,
    common: Common | None = None,
) -> int:
    """Bring the tables up to date, or show what that would do."""
    from tillroll.cli import migrating  # noqa: PLC0415 - only when asked for

    return migrating.run(
        common or Common(),
        plan=plan,
        scale=scale,
        role=role,
        row_level_security=row_level_security,
        writing=writing,
        distributed=distributed,
    )


@app.command
def book_due(*, common: Common | None = None) -> None:
    """Book what fell due on accounts that nobody touched."""
    common = common or Common()
    with common.known() as ledger:
        count = ledger.book_due()
    if common.json:
        print_json({"accounts": count})
    else:
        c.out.print(f"[bold green]ok[/] booked what was due on {count} accounts")


@app.command
def doctor(
    *,
    conformance: Annotated[
        bool, Parameter(negative=(), help="Run the promises as tests on a store of their own.")
    ] = False,
    common: Common | None = None,
) -> int:
    """Check the installation, the database and every history in it."""
    from tillroll.cli import doctor as checks  # noqa: PLC0415 - only when asked for

    return checks.run(common or Common(), conformance=conformance)


# ---------------------------------------------------------------- the service

Config = Annotated[
    str | None, Parameter(env_var=["TILLROLL_CONFIG"], help="A TOML file of settings.")
]
KeyMode = Annotated[Literal["test", "live"], Parameter(help="Test and live data never meet.")]


@app.command
def serve(
    *,
    config: Config = None,
    host: Annotated[str | None, Parameter(help="The address to listen at.")] = None,
    port: Annotated[int | None, Parameter(help="The port; 0 for any that is free.")] = None,
    workers: Annotated[int | None, Parameter(help="How many processes serve.")] = None,
    common: Common | None = None,
) -> int:
    """Serve the HTTP API; the first start makes an admin key and prints it once."""
    from tillroll.cli import serving  # noqa: PLC0415 - only when asked for

    given = {"host": host, "port": port, "workers": workers}
    return serving.serve(common or Common(), config, given)


@config_app.command(name="check")
def config_check(*, config: Config = None, common: Common | None = None) -> int:
    """Read the settings as `serve` does, and show what they come to."""
    from tillroll.cli import serving  # noqa: PLC0415 - only when asked for

    return serving.config_check(common or Common(), config)


@projects_app.command(name="create")
def projects_create(name: str, /, *, common: Common | None = None) -> int:
    """Make a project and an admin key for its live mode."""
    from tillroll.cli import serving  # noqa: PLC0415 - only when asked for

    return serving.create_project(common or Common(), name)


@projects_app.command(name="list")
def projects_list(*, common: Common | None = None) -> int:
    """List the projects that have keys."""
    from tillroll.cli import serving  # noqa: PLC0415 - only when asked for

    return serving.list_projects(common or Common())


@keys_app.command(name="create")
def keys_create(
    *,
    name: Annotated[str, Parameter(help="What it is for, in your words.")] = "shell",
    scope: Annotated[
        list[Literal["consume", "read", "grant", "admin"]] | None,
        Parameter(negative=(), help="What it may do, repeatable; admin if left out."),
    ] = None,
    mode: KeyMode = "live",
    account: Annotated[
        list[str] | None,
        Parameter(negative=(), help="The only accounts it is open to, repeatable."),
    ] = None,
    expires_in: Annotated[str | None, Parameter(help="How long it is good, as in 90d.")] = None,
    common: Common | None = None,
) -> int:
    """Make an API key, as after the admin key was lost; it is shown once."""
    from tillroll.cli import serving  # noqa: PLC0415 - only when asked for

    common = common or Common()
    scopes = list(scope or ["admin"])
    return serving.create_key(common, name, scopes, mode, list(account or []), expires_in)


@keys_app.command(name="list")
def keys_list(*, common: Common | None = None) -> int:
    """List the API keys of all projects, those that have ended too."""
    from tillroll.cli import serving  # noqa: PLC0415 - only when asked for

    return serving.list_keys(common or Common())


@keys_app.command(name="revoke")
def keys_revoke(key_id: str, /, *, common: Common | None = None) -> int:
    """End an API key at once, on every server of this ledger."""
    from tillroll.cli import serving  # noqa: PLC0415 - only when asked for

    return serving.revoke_key(common or Common(), key_id)


# ---------------------------------------------------------------- prices


@catalog_app.command(name="plan")
def catalog_plan(
    file: Path = Path("tillroll.toml"),
    /,
    *,
    days: Annotated[int, Parameter(help="How much real usage to price anew.")] = 30,
    common: Common | None = None,
) -> None:
    """Show what a catalog file would change, who is affected, and what real usage would cost."""
    from tillroll.cli import prices  # noqa: PLC0415 - only when asked for

    prices.plan(common or Common(), file, days, "catalog")


@prices_app.command(name="plan")
def prices_plan(
    file: Path = Path("tillroll.toml"),
    /,
    *,
    source: Annotated[
        Literal["genai-prices"] | None,
        Parameter(name="--from", help="Propose prices from a list of vendors' prices."),
    ] = None,
    models: Annotated[
        list[str] | None,
        Parameter(name="--model", negative=(), help="PROVIDER:MODEL to propose, repeatable."),
    ] = None,
    markup: Annotated[str, Parameter(help="Factor on the vendor's price.")] = "1",
    units_per_usd: Annotated[str, Parameter(help="Units that one US dollar buys.")] = "1",
    operation: Annotated[str, Parameter(help="The operation of proposed prices.")] = "llm.chat",
    days: Annotated[int, Parameter(help="How much real usage to price anew.")] = 30,
    common: Common | None = None,
) -> None:
    """Show what a price file would change, and what it would have done to real usage."""
    from tillroll.cli import prices  # noqa: PLC0415 - only when asked for

    common = common or Common()
    if source is not None:
        prices.propose(common, models, markup, units_per_usd, operation)
    else:
        prices.plan(common, file, days)


@catalog_app.command(name="apply")
@prices_app.command(name="apply")
def prices_apply(
    file: Path = Path("tillroll.toml"),
    /,
    *,
    reason: Annotated[str, Parameter(help="Why these prices; kept with the version.")],
    author: Annotated[str | None, Parameter(help="Who applies them; you if absent.")] = None,
    common: Common | None = None,
) -> None:
    """Write the price file as a new, immutable version and have it in force."""
    from tillroll.cli import prices  # noqa: PLC0415 - only when asked for

    prices.apply(common or Common(), file, author or getpass.getuser(), reason)


@catalog_app.command(name="list")
@prices_app.command(name="list")
def prices_list(*, common: Common | None = None) -> None:
    """List the price versions, newest first."""
    from tillroll.cli import prices  # noqa: PLC0415 - only when asked for

    prices.show_versions(common or Common())


@catalog_app.command(name="show")
@prices_app.command(name="show")
def prices_show(version: int | None = None, /, *, common: Common | None = None) -> None:
    """Show one price version as a price file; the one in force if no number is given."""
    from tillroll.cli import prices  # noqa: PLC0415 - only when asked for

    prices.show_version(common or Common(), version)


@catalog_app.command(name="schema")
@prices_app.command(name="schema")
def prices_schema(*, common: Common | None = None) -> None:
    """Print the JSON Schema of the price file, for editors; it is JSON either way."""
    del common
    print_json(catalog.schema())


# ---------------------------------------------------------------- webhooks and jobs

Events = Annotated[
    list[str] | None,
    Parameter(name="--event", negative=(), help="Type, or beginning as in 'grant.*'; repeatable."),
]
Private = Annotated[
    bool,
    Parameter(
        negative=(),
        env_var=["TILLROLL_WEBHOOKS_PRIVATE"],
        help="Private addresses and plain HTTP, too.",
    ),
]
SendFormat = Literal["tillroll", "licenzy"]


@webhooks_app.command(name="create")
def webhooks_create(
    url: str,
    /,
    *,
    event: Events = None,
    format: SendFormat = "tillroll",  # noqa: A002 - the option's name
    description: str | None = None,
    private: Private = False,
    common: Common | None = None,
) -> int:
    """Make a webhook endpoint; its secret is shown once."""
    from tillroll.cli import webhooks  # noqa: PLC0415 - only when asked for

    common = common or Common()
    return webhooks.create(common, url, event, format, description, private=private)


@webhooks_app.command(name="list")
def webhooks_list(*, common: Common | None = None) -> int:
    """List the webhook endpoints of the project."""
    from tillroll.cli import webhooks  # noqa: PLC0415 - only when asked for

    return webhooks.list_endpoints(common or Common())


@webhooks_app.command(name="change")
def webhooks_change(
    endpoint_id: str,
    /,
    *,
    url: str | None = None,
    event: Events = None,
    enabled: Annotated[
        bool | None, Parameter(negative="--disabled", help="Send to it, or not.")
    ] = None,
    private: Private = False,
    common: Common | None = None,
) -> int:
    """Change a webhook endpoint; enabling it forgets its failures."""
    from tillroll.cli import webhooks  # noqa: PLC0415 - only when asked for

    disabled = None if enabled is None else not enabled
    given = {"url": url, "events": event, "disabled": disabled}
    wanted = {name: value for name, value in given.items() if value is not None}
    return webhooks.change(common or Common(), endpoint_id, private=private, wanted=wanted)


@webhooks_app.command(name="rotate")
def webhooks_rotate(
    endpoint_id: str,
    /,
    *,
    overlap: Annotated[str, Parameter(help="How long the old secret is good.")] = "24h",
    common: Common | None = None,
) -> int:
    """Give a webhook endpoint a new secret, shown once."""
    from tillroll.cli import webhooks  # noqa: PLC0415 - only when asked for

    return webhooks.rotate(common or Common(), endpoint_id, overlap)


@webhooks_app.command(name="remove")
def webhooks_remove(endpoint_id: str, /, *, common: Common | None = None) -> int:
    """Remove a webhook endpoint; what it did not get by now is given up."""
    from tillroll.cli import webhooks  # noqa: PLC0415 - only when asked for

    return webhooks.remove(common or Common(), endpoint_id)


@webhooks_app.command(name="deliveries")
def webhooks_deliveries(
    *,
    endpoint: str | None = None,
    state: Literal["pending", "delivered", "dead"] | None = None,
    event: Annotated[str | None, Parameter(help="The id of one event.")] = None,
    after: Annotated[str | None, Parameter(help="Where the page before ended.")] = None,
    limit: int = 100,
    common: Common | None = None,
) -> int:
    """Show what became of events at endpoints, the newest first."""
    from tillroll.cli import webhooks  # noqa: PLC0415 - only when asked for

    return webhooks.deliveries(
        common or Common(), endpoint=endpoint, state=state, event=event, after=after, limit=limit
    )


@webhooks_app.command(name="send-again")
def webhooks_send_again(
    *,
    endpoint: Annotated[str | None, Parameter(help="To this endpoint only.")] = None,
    event: Annotated[str | None, Parameter(help="One event, to that endpoint.")] = None,
    common: Common | None = None,
) -> int:
    """Send again what was given up; with --event and --endpoint, one, whatever came of it."""
    from tillroll.cli import webhooks  # noqa: PLC0415 - only when asked for

    return webhooks.send_again(common or Common(), endpoint, event)


@webhooks_app.command(name="types")
def webhooks_types(*, common: Common | None = None) -> int:
    """List the types of events; with --json, the JSON Schema of each."""
    from tillroll.cli import webhooks  # noqa: PLC0415 - only when asked for

    return webhooks.types(common or Common())


@jobs_app.command(name="status")
def jobs_status(*, common: Common | None = None) -> int:
    """Show who does which job, when that was last, and what waits to be sent."""
    from tillroll.cli import webhooks  # noqa: PLC0415 - only when asked for

    return webhooks.status(common or Common())


@jobs_app.command(name="run")
def jobs_run(
    *,
    once: Annotated[bool, Parameter(negative=(), help="Until there is no more to do.")] = False,
    private: Private = False,
    event_days: Annotated[float, Parameter(help="How long events are kept.")] = 30.0,
    common: Common | None = None,
) -> int:
    """Do the jobs that `serve` does beside the calls; any number of processes may."""
    from tillroll.cli import webhooks  # noqa: PLC0415 - only when asked for

    return webhooks.run(common or Common(), once=once, private=private, event_days=event_days)


@app.command
def quote(
    account: str,
    operation: str,
    /,
    *,
    meter: Meter = None,
    model: str | None = None,
    attribute: Attribute = None,
    lock_for: Annotated[
        str | None, Parameter(help="Give a locked price that is good for so long, such as 15m.")
    ] = None,
    common: Common | None = None,
) -> None:
    """Show what an operation would cost and why."""
    common = common or Common()
    with common.known() as ledger:
        found = ledger.quote(
            account,
            operation,
            meters=c.pairs(meter or (), "--meter"),
            model=model,
            attributes=c.pairs(attribute or (), "--attribute"),
            lock_for=lock_for,
        )
    if common.json:
        print_json(found.to_dict())
        return
    c.out.print(
        f"[bold]{found.units:,f}[/] {found.wallet} for {operation} "
        f"({found.available:,f} spendable)",
        soft_wrap=True,
    )
    for line in found.arithmetic:
        c.out.print(f"   {line}", markup=False, soft_wrap=True)
    if found.token:
        c.out.print(f"   locked until {found.expires_at}: --quote {found.token}", soft_wrap=True)


# ---------------------------------------------------------------- real input, demo, bench


@app.command
def replay(
    file: Path,
    /,
    *,
    meter: Annotated[
        list[str] | None,
        Parameter(name="--meter", negative=(), help="METER=COLUMN, repeatable."),
    ] = None,
    time_column: Annotated[str | None, Parameter(help="The column of the time.")] = None,
    account_column: Annotated[str | None, Parameter(help="The column of the account.")] = None,
    id_column: Annotated[str | None, Parameter(help="The column of the request id.")] = None,
    model_column: Annotated[str | None, Parameter(help="The column of the model.")] = None,
    operation: str = "llm.chat",
    prices: Annotated[Path | None, Parameter(help="The price file; a sample if absent.")] = None,
    accounts: Annotated[int, Parameter(help="How many, where the file names none.")] = 20,
    granted: Annotated[
        str, Parameter(name="--credits", help="What each account is granted at first.")
    ] = "450",
    worst_case: Annotated[
        list[str] | None,
        Parameter(negative=(), help="METER=QUANTITY to hold for, where only the end tells."),
    ] = None,
    callers: Annotated[int, Parameter(help="How many at once.")] = 64,
    retries: Annotated[float, Parameter(help="Share repeated at once.")] = 0.05,
    late: Annotated[float, Parameter(help="Share delivered again later.")] = 0.03,
    timeouts: Annotated[float, Parameter(help="Share whose provider times out.")] = 0.02,
    crashes: Annotated[float, Parameter(help="Share whose caller crashes.")] = 0.01,
    seed: int = 1,
    limit: Annotated[int | None, Parameter(help="Only so many requests.")] = None,
    common: Common | None = None,
) -> int:
    """Run a usage trace (CSV or JSON lines) through the whole path, faults included, and prove it.

    Without --db the ledger is a temporary file whose clock follows the trace.
    """
    from tillroll.cli import replay as driver  # noqa: PLC0415 - only when asked for
    from tillroll.cli import scenario  # noqa: PLC0415 - only when asked for

    options = scenario.Options(
        meters=c.pairs(meter or (), "--meter"),
        time_column=time_column,
        account_column=account_column,
        id_column=id_column,
        model_column=model_column,
        operation=operation,
        prices=prices,
        accounts=accounts,
        credits=granted,
        worst_case=c.pairs(worst_case or (), "--worst-case"),
        callers=callers,
        retries=retries,
        late=late,
        timeouts=timeouts,
        crashes=crashes,
        seed=seed,
        limit=limit,
    )
    return driver.run(file, options, common or Common(), temporary=_no_db(common))


def _no_db(common: Common | None) -> bool:
    return common is None or common.db == Common().db


@app.command
def demo(*, common: Common | None = None) -> int:
    """Run the sample trace on a temporary ledger and explain one of its charges."""
    from tillroll.cli import demo as show  # noqa: PLC0415 - only when asked for

    return show.run(common or Common())


@bench_app.command(name="race")
def bench_race(
    *,
    consumers: int = 200,
    granted: Annotated[int, Parameter(name="--credits")] = 100,
    common: Common | None = None,
) -> int:
    """Let 200 consumers race for 100 credits, next to the naive counter on the same store."""
    from tillroll.cli import bench  # noqa: PLC0415 - only when asked for

    return bench.race(common or Common(), consumers, granted)


@bench_app.command(name="consume")
def bench_consume(
    *,
    seconds: Annotated[float, Parameter(help="How long each row is measured.")] = 3.0,
    accounts: Annotated[int, Parameter(help="How many accounts the load is spread over.")] = 1_000,
    store: Annotated[
        str | None,
        Parameter(help="A PostgreSQL server to measure on; in a schema that is dropped again."),
    ] = None,
    common: Common | None = None,
) -> int:
    """Measure consumes a second, with the bare commit and the naive way in the same run."""
    if store is not None and not store.startswith(("postgresql:", "postgres:")):
        raise tillroll.InvalidInput("--store takes postgresql://...; SQLite needs none")
    if store is not None:
        from tillroll.cli import bench_postgres  # noqa: PLC0415 - an extra

        return bench_postgres.consume(common or Common(), store, seconds, accounts)
    from tillroll.cli import bench  # noqa: PLC0415 - only when asked for

    return bench.consume(common or Common(), seconds, accounts)


@app.command
def completion(
    shell: Annotated[
        Literal["bash", "zsh", "fish"] | None, Parameter(help="Your shell; found out if absent.")
    ] = None,
    /,
    *,
    common: Common | None = None,
) -> None:
    """Print the completion script of a shell: tillroll completion bash > ~/.tillroll-completion."""
    script = app.generate_completion(shell=shell)
    if common is not None and common.json:
        print_json({"script": script})
    else:
        sys.stdout.write(script)


__all__ = ["app", "run"]
