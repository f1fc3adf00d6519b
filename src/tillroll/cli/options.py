"""Options that several commands have, each described once."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

RequestId = Annotated[
    str | None,
    Parameter(name=["--request-id", "--key"], help="Your id of this event; repeat it to retry."),
]

Meter = Annotated[
    list[str] | None, Parameter(name="--meter", negative=(), help="METER=QUANTITY, repeatable.")
]
Tag = Annotated[
    list[str] | None, Parameter(name="--tag", negative=(), help="NAME=VALUE, repeatable.")
]
Attribute = Annotated[
    list[str] | None, Parameter(name="--attribute", negative=(), help="NAME=VALUE, repeatable.")
]
Units = Annotated[
    str | None, Parameter(help="An exact amount; priced by the price book if absent.")
]
Reason = Annotated[str | None, Parameter(help="Why, in your words.")]
Actor = Annotated[str | None, Parameter(help="Who acts.")]
Metadata = Annotated[str | None, Parameter(help="A JSON object kept beside the entry.")]
Feature = Annotated[
    str | None, Parameter(help="What the account must be entitled to, checked in the same step.")
]
