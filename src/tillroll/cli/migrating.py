"""`tillroll migrate`: what is pending, shown or done."""

from __future__ import annotations

from typing import Literal

import tillroll
from tillroll.cli import terminal as c


def run(
    common: c.Common,
    *,
    plan: bool,
    scale: int | None,
    role: str | None,
    row_level_security: bool | None,
    writing: Literal["locks", "append"] | None,
    distributed: Literal["citus"] | None,
) -> int:
    """Migrate, or only plan it; print what was done; return the exit code."""
    found = tillroll.migrate(
        common.db,
        plan=plan,
        scale=scale,
        role=role,
        row_level_security=row_level_security,
        writing=writing,
        distributed=distributed,
    )
    if common.json:
        c.print_json(found.to_dict())
        return c.OK
    for step in found.steps:
        if plan:
            c.out.print(f"-- {step.name}, sha256 {step.checksum}", style="bold", soft_wrap=True)
            c.out.print(step.sql, markup=False, soft_wrap=True)
        else:
            c.say(f"[bold green]ok[/] applied {step.name}")
    for statement in found.statements:
        c.out.print(f"{statement};", markup=False, soft_wrap=True)
    if plan:
        counted = c.counted(len(found.steps), "step")
        c.say(f"[bold]{counted} pending[/] for {found.url}; nothing was written")
    else:
        c.say(f"[bold green]ok[/] {found.url} has schema {found.schema}")
    return c.OK


__all__ = ["run"]
