"""What callers ask, made into what is sent: one table of routes, one way to write a value.

Every argument is checked by the ledger's own `Verbs` before anything is sent. What is sent are the
caller's arguments by their names, exact: amounts as integers or decimal texts, times as ISO 8601.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import quote as encoded

import msgspec
from msgspec.structs import replace

from tillroll.client.conversation import Call
from tillroll.embedded.answers import new_id
from tillroll.ledger.calendar import show_span, span
from tillroll.ledger.commands import Request
from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.units import parse_decimal
from tillroll.ledger.verbs import Verbs

_ACCOUNT = "/v1/accounts/{account}"
_HOLD = f"{_ACCOUNT}/holds/{{hold_id}}"


class Route(NamedTuple):
    """Where a verb is asked; names in braces are arguments."""

    method: str
    path: str


ROUTES: dict[str, Route] = {
    "grant": Route("POST", f"{_ACCOUNT}/grants"),
    "void": Route("POST", f"{_ACCOUNT}/grants/{{grant_id}}/void"),
    "adjust": Route("POST", f"{_ACCOUNT}/adjustments"),
    "consume": Route("POST", f"{_ACCOUNT}/consume"),
    "hold": Route("POST", f"{_ACCOUNT}/holds"),
    "extend": Route("POST", f"{_HOLD}/extend"),
    "settle": Route("POST", f"{_HOLD}/settle"),
    "release": Route("POST", f"{_HOLD}/release"),
    "mark_in_doubt": Route("POST", f"{_HOLD}/in-doubt"),
    "resolve": Route("POST", f"{_HOLD}/resolve"),
    "refund": Route("POST", f"{_ACCOUNT}/refunds"),
    "freeze": Route("POST", f"{_ACCOUNT}/freeze"),
    "unfreeze": Route("POST", f"{_ACCOUNT}/unfreeze"),
    "close_account": Route("POST", f"{_ACCOUNT}/close"),
    "set_overdraft": Route("PUT", f"{_ACCOUNT}/overdraft"),
    "set_budget": Route("PUT", f"{_ACCOUNT}/budgets/{{name}}"),
    "remove_budget": Route("DELETE", f"{_ACCOUNT}/budgets/{{name}}"),
    "set_alert": Route("PUT", f"{_ACCOUNT}/alerts/{{name}}"),
    "remove_alert": Route("DELETE", f"{_ACCOUNT}/alerts/{{name}}"),
    "set_recurring": Route("PUT", f"{_ACCOUNT}/recurring/{{name}}"),
    "stop_recurring": Route("DELETE", f"{_ACCOUNT}/recurring/{{name}}"),
    "configure": Route("PATCH", f"{_ACCOUNT}/settings"),
    "buy": Route("POST", f"{_ACCOUNT}/purchases"),
    "redeem": Route("POST", f"{_ACCOUNT}/redemptions"),
    "subscribe": Route("POST", f"{_ACCOUNT}/subscriptions"),
    "entitle": Route("PUT", f"{_ACCOUNT}/entitlements/{{name}}"),
    "change_entitlement": Route("PATCH", f"{_ACCOUNT}/entitlements/{{name}}"),
    "end_entitlement": Route("DELETE", f"{_ACCOUNT}/entitlements/{{name}}"),
}


def part(name: str) -> str:
    """Return a name as one part of a path; no dot may be left that HTTP would fold away."""
    return name.replace(".", "%2E") if name in (".", "..") else encoded(name, safe="")


def named(value: str, name: str) -> str:
    """Return a name as one part of a path.

    Raises:
        InvalidInput: It is no text that could be stored.
    """
    try:
        value.encode()
    except (AttributeError, UnicodeEncodeError):
        raise InvalidInput(f"{name} must be a text, whole and well encoded") from None
    return part(value)


def write_call(
    verbs: Verbs,
    verb: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    preview: bool = False,
) -> Call:
    """Return the call of a verb that writes, or of its preview.

    Raises:
        InvalidInput: Malformed; nothing was sent.
    """
    given, request = _checked(verbs, verb, args, kwargs)
    route = ROUTES[verb]
    named = {
        name: given.pop(name)
        for name in ("hold_id", "grant_id", "name")
        if f"{{{name}}}" in route.path
    }
    pattern = route.path.replace("{account}", "{account}/preview") if preview else route.path
    path = pattern.format(
        account=part(request.account), **{name: part(str(value)) for name, value in named.items()}
    )
    units = given.get("units")
    body = _body(given, request)
    return Call(
        verb=verb,
        method=route.method,
        path=path,
        body=None if route.method == "DELETE" and body == b"{}" else body,
        request_id=request.request_id if not preview or kwargs.get("request_id") else None,
        writes=not preview,
        account=request.account,
        queue=str(named.get("hold_id", request.request_id)),
        units=None if units is None else format(parse_decimal(units), "f"),
        wallet=getattr(request.command, "wallet", None),
        operation=getattr(request.command, "operation", None),
        fingerprint=request.fingerprint.hex(),
    )


def batch_item(verbs: Verbs, item: Mapping[str, Any]) -> tuple[str, msgspec.Raw]:
    """Return request id and JSON of one item of a batch; checked as `consume` is."""
    given, request = _checked(verbs, "consume", (), item)
    shown = {"account": request.account, "request_id": request.request_id}
    return request.request_id, msgspec.Raw(_body({**shown, **given}, request))


def batch_call(items: Sequence[msgspec.Raw]) -> Call:
    """Return the call that carries many items."""
    body = msgspec.json.encode({"items": items})
    return Call(verb="consume_many", method="POST", path="/v1/batch", body=body, writes=True)


def look_call(verb: str, path: str, **query: object) -> Call:
    """Return a call that only looks; what is None is left out of its query."""
    pairs = [(name, _text(value)) for name, value in query.items() if value is not None]
    text = "&".join(f"{name}={encoded(value, safe='')}" for name, value in pairs)
    return Call(verb=verb, method="GET", path=f"{path}?{text}" if text else path)


def send_call(verb: str, method: str, path: str, body: object, *, writes: bool) -> Call:
    """Return a call that carries a body, or None, and needs no request id."""
    content = None if body is None else msgspec.json.encode(plain(body))
    return Call(verb=verb, method=method, path=path, body=content, writes=writes)


def change_call(verb: str, method: str, path: str, given: Mapping[str, Any]) -> Call:
    """Return a call that changes something and may be repeated; what is None is left out."""
    body = {name: value for name, value in given.items() if value is not None}
    return send_call(verb, method, path, body, writes=True)


def keyed_call(verb: str, path: str, body: object, request_id: str | None) -> Call:
    """Return a call that is carried out once for each request id.

    Raises:
        InvalidInput: The id is none that HTTP could carry.
    """
    name = new_id() if request_id is None else request_id
    if not isinstance(name, str) or not name or name != name.strip(" \t"):
        raise InvalidInput("request_id must be a text that does not begin or end with a blank")
    return replace(send_call(verb, "POST", path, body, writes=True), request_id=name)


def _text(value: object) -> str:
    if isinstance(value, str | int):
        return str(value)
    assert isinstance(value, Iterable)
    return ",".join(str(one) for one in value)


def _checked(
    verbs: Verbs, verb: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], Request]:
    """Return what was given, by name and without account and id, and the checked request."""
    build = getattr(Verbs, verb)
    bound = _signature(verb).bind(verbs, *args, **kwargs).arguments
    del bound["self"]
    for rest in ("how", "who"):
        bound.update(bound.pop(rest, {}))
    applies_to = bound.get("applies_to")
    if applies_to is not None and not isinstance(applies_to, str):
        bound["applies_to"] = list(applies_to)  # an iterator can be read once only
    grants = bound.get("grants")
    if isinstance(grants, Iterable) and not isinstance(grants, str | Mapping):
        bound["grants"] = list(grants)
    request = build(verbs, **bound)
    if request.request_id != request.request_id.strip(" \t"):
        raise InvalidInput("request_id must not begin or end with a blank: HTTP cannot carry it")
    given = {
        name: value
        for name, value in bound.items()
        if value is not None and name not in ("account", "request_id")
    }
    return given, request


@functools.cache
def _signature(verb: str) -> inspect.Signature:
    return inspect.signature(getattr(Verbs, verb))


def _body(given: dict[str, Any], request: Request) -> bytes:
    metadata = given.pop("metadata", None)
    body = {name: plain(value) for name, value in given.items()}
    if metadata is not None and request.metadata is not None:
        body["metadata"] = msgspec.Raw(request.metadata.encode())
    return msgspec.json.encode(body)


def plain(value: object) -> object:
    """Return a checked value as JSON has it, exact: no amount ever becomes a float."""
    if value is None or isinstance(value, bool | float | msgspec.Raw):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # the text itself, where an enum was given
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return show_span(span(value, "span"))
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    assert isinstance(value, Iterable), f"{type(value).__name__} has no place in a request"
    return [plain(one) for one in value]
