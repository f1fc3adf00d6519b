"""What is sent: every verb at its address, every value exact, nothing malformed."""

import enum
import inspect
import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

import tillroll
from tillroll.client.asking import Asking
from tillroll.client.calls import ROUTES, batch_item, look_call, part, plain, write_call
from tillroll.client.conversation import Call
from tillroll.embedded import Preview
from tillroll.embedded.answers import new_id
from tillroll.ledger import quotes
from tillroll.ledger.commands import QuoteClaims
from tillroll.ledger.errors import InvalidInput
from tillroll.ledger.verbs import Verbs

VERBS = Verbs("", 6, new_id, quotes.read_unsealed)


def call(verb: str, *args: object, **kwargs: object) -> Call:
    return write_call(VERBS, verb, args, kwargs)


def body(verb: str, *args: object, **kwargs: object) -> Any:
    sent = call(verb, *args, **kwargs).body
    return None if sent is None else json.loads(sent, parse_float=_no_float)


def _no_float(text: str) -> float:
    raise AssertionError(f"a float was sent: {text}")


def test_every_verb_of_a_ledger_has_a_route():
    verbs = {name for name in vars(Verbs) if not name.startswith("_")}
    assert set(ROUTES) == verbs
    for name in verbs:
        assert inspect.signature(getattr(tillroll.Client, name)).parameters.keys()


def test_the_clients_have_what_ledgers_have():
    not_over_http = {"join", "book_due", "prune_refusals", "store", "is_joined"}
    for client, ledger in (
        (tillroll.Client, tillroll.Ledger),
        (tillroll.AsyncClient, tillroll.AsyncLedger),
    ):
        wanted = {name for name in dir(ledger) if not name.startswith("_")} - not_over_http
        assert wanted <= set(dir(client)), wanted - set(dir(client))
    from tillroll.client import ClientPreview  # noqa: PLC0415 - imported when it is used

    wanted = {name for name in vars(Preview) if not name.startswith("_")}
    assert wanted <= set(vars(ClientPreview))


@pytest.mark.parametrize(
    "name",
    ["balance", "statement", "usage", "explain", "hold_state", "verify", "apply_prices", "quote"],
)
def test_reads_take_what_those_of_a_ledger_take(name: str):
    asked = inspect.signature(getattr(Asking, name)).parameters
    wanted = inspect.signature(getattr(tillroll.Ledger, name)).parameters
    assert [(p.name, p.kind, p.default) for p in asked.values()] == [
        (p.name, p.kind, p.default) for p in wanted.values()
    ]


@pytest.mark.parametrize(
    ("verb", "args", "kwargs", "method", "path"),
    [
        ("grant", ("a", 1), {}, "POST", "/grants"),
        ("void", ("a", "g"), {}, "POST", "/grants/g/void"),
        ("void", ("a", "g"), {"units": 5}, "POST", "/grants/g/void"),
        ("adjust", ("a", -1), {"reason": "why"}, "POST", "/adjustments"),
        ("consume", ("a", "op"), {}, "POST", "/consume"),
        ("hold", ("a",), {"units": 1}, "POST", "/holds"),
        ("extend", ("a", "h"), {"expires_in": "1h"}, "POST", "/holds/h/extend"),
        ("settle", ("a", "h"), {}, "POST", "/holds/h/settle"),
        ("release", ("a", "h"), {}, "POST", "/holds/h/release"),
        ("mark_in_doubt", ("a", "h"), {}, "POST", "/holds/h/in-doubt"),
        ("resolve", ("a", "h", "done"), {}, "POST", "/holds/h/resolve"),
        ("refund", ("a", "c"), {}, "POST", "/refunds"),
        ("freeze", ("a",), {}, "POST", "/freeze"),
        ("unfreeze", ("a",), {}, "POST", "/unfreeze"),
        ("close_account", ("a",), {}, "POST", "/close"),
        ("set_overdraft", ("a", 5), {}, "PUT", "/overdraft"),
        ("set_budget", ("a", "b", 5), {}, "PUT", "/budgets/b"),
        ("remove_budget", ("a", "b"), {}, "DELETE", "/budgets/b"),
        ("set_recurring", ("a", "r", 5), {"anchor": "2026-01-31"}, "PUT", "/recurring/r"),
        ("stop_recurring", ("a", "r"), {}, "DELETE", "/recurring/r"),
        ("configure", ("a",), {"time_zone": "UTC"}, "PATCH", "/settings"),
    ],
)
def test_each_verb_goes_where_it_belongs(
    verb: str, args: tuple[object, ...], kwargs: dict[str, object], method: str, path: str
):
    made = call(verb, *args, **kwargs, request_id="id-1")
    assert (made.method, made.path) == (method, f"/v1/accounts/a{path}")
    assert (made.request_id, made.writes, made.account) == ("id-1", True, "a")


def test_an_id_is_made_where_none_is_given_and_previews_have_none():
    first, second = call("consume", "a", units=1), call("consume", "a", units=1)
    assert first.request_id
    assert first.request_id != second.request_id
    assert first.fingerprint == second.fingerprint
    preview = write_call(VERBS, "consume", ("a",), {"units": 1}, preview=True)
    assert (preview.path, preview.request_id) == ("/v1/accounts/a/preview/consume", None)
    preview = write_call(VERBS, "consume", ("a",), {"units": 1, "request_id": "r"}, preview=True)
    assert preview.request_id == "r"
    assert not preview.writes


class Tone(enum.StrEnum):
    LOUD = "loud"


def test_values_are_exact():
    later = datetime(2026, 1, 31, 12, 0, 0, 123_456, tzinfo=timezone(timedelta(hours=5.5)))
    assert body("consume", "a", units=Decimal("1.500000"))["units"] == "1.500000"
    assert body("consume", "a", units=Decimal("1E+3"))["units"] == "1000"
    assert body("consume", "a", units=2)["units"] == 2
    assert body("hold", "a", units=9, floor="0.5", expires_in=timedelta(milliseconds=1_500)) == {
        "units": 9,
        "floor": "0.5",
        "expires_in": "1.500000s",
    }
    assert body("consume", "a", "op", meters={"s": Decimal("0.1"), "n": 7, "t": "2.50"}) == {
        "operation": "op",
        "meters": {"s": "0.1", "n": 7, "t": "2.50"},
    }
    assert body("grant", "a", 1, expires_at=date(2026, 7, 31))["expires_at"] == "2026-07-31"
    shown = body("grant", "a", 1, expires_at=later)["expires_at"]
    assert datetime.fromisoformat(shown) == later
    assert body("grant", "a", 1, applies_to=iter(["image.*", "x"]))["applies_to"] == [
        "image.*",
        "x",
    ]
    assert body("consume", "a", units=1, tags={"tone": Tone.LOUD})["tags"] == {"tone": "loud"}
    local = datetime(2026, 1, 31, 8)  # noqa: DTZ001 - by design
    assert body("set_recurring", "a", "r", 1, anchor=local)["anchor"] == "2026-01-31T08:00:00"


def test_metadata_is_sent_as_the_ledger_would_keep_it():
    metadata = {"ratio": 0.1, "when": datetime(2026, 1, 31, tzinfo=UTC), "price": Decimal("1.10")}
    sent = call("consume", "a", units=1, metadata=metadata).body
    assert sent is not None
    assert json.loads(sent)["metadata"] == {
        "ratio": 0.1,
        "when": "2026-01-31T00:00:00Z",
        "price": "1.10",
    }


def test_only_what_was_given_is_sent():
    assert body("release", "a", "h") == {}
    assert body("remove_budget", "a", "b") is None
    assert body("remove_budget", "a", "b", reason="over") == {"reason": "over"}
    given = {"reason": "r", "actor": "ann", "retry_refused": True, "metadata": {"a": None}}
    assert body("consume", "a", units=1, **given) == {"units": 1, **given}


@pytest.mark.parametrize(
    "name", ["a/b", "..", ".", "ä b", "100%", "a?b#c", "a+b", "\U0001f600", "a;b=c", "~", "x.y"]
)
def test_any_name_is_one_part_of_the_path(name: str):
    import httpx2  # noqa: PLC0415 - an extra

    sent = httpx2.URL("http://h/v1/accounts/" + part(name) + "/holds").raw_path.decode()
    parts = sent.split("/")
    assert len(parts) == 5
    from urllib.parse import unquote  # noqa: PLC0415 - here only

    assert unquote(parts[3]) == name


@pytest.mark.parametrize(
    ("verb", "args", "kwargs"),
    [
        ("consume", ("a",), {"units": 0.1}),
        ("consume", ("a",), {"units": "1e3"}),
        ("consume", ("a",), {"units": "0.0000001"}),
        ("consume", ("",), {"units": 1}),
        ("consume", ("a",), {}),
        ("consume", ("a",), {"units": 1, "colour": "blue"}),
        ("consume", ("a",), {"units": 1, "request_id": " r"}),
        ("consume", ("a",), {"units": 1, "request_id": "~ours"}),
        ("consume", ("a", "op"), {"quote": "that is none"}),
        ("grant", ("a", 1), {"expires_at": "soon"}),
        ("grant", ("a", 1), {"effective_at": datetime(2026, 1, 1)}),  # noqa: DTZ001 - naive
        ("settle", ("a", "h"), {"above": "clouds"}),
        ("configure", ("a",), {"time_zone": "Mars/Olympus"}),
    ],
)
def test_what_is_malformed_is_not_sent(
    verb: str, args: tuple[object, ...], kwargs: dict[str, object]
):
    with pytest.raises(InvalidInput) as raised:
        call(verb, *args, **kwargs)
    assert raised.value.written == "nothing"


def test_what_python_would_not_call_is_not_called():
    with pytest.raises(TypeError, match="grant_id"):
        call("void", "a")


def test_a_quote_is_sent_as_it_is_and_must_be_for_this_work():
    claims = QuoteClaims("a", "op", 1, 5_000_000, "credits", 1)
    quote = quotes.sign(b"secret of the service", claims)
    assert body("consume", "a", "op", quote=quote) == {"operation": "op", "quote": quote}
    with pytest.raises(InvalidInput, match="another account"):
        call("consume", "b", "op", quote=quote)


def test_what_must_keep_its_order_is_known_by_the_hold():
    assert call("hold", "a", units=1, request_id="h").queue == "h"
    assert call("settle", "a", "h", units=1, request_id="s").queue == "h"
    assert call("consume", "a", units=1, request_id="c").queue == "c"


def test_items_of_a_batch_carry_account_and_id():
    request_id, raw = batch_item(VERBS, {"account": "a", "units": "1.5", "request_id": "r"})
    assert request_id == "r"
    assert json.loads(bytes(raw)) == {"account": "a", "request_id": "r", "units": "1.5"}


def test_queries_are_encoded_and_leave_out_what_is_not_there():
    made = look_call("usage", "/v1/usage", by=("operation", "tag:a b"), since=None)
    assert made.path == "/v1/usage?by=operation%2Ctag%3Aa%20b"
    assert plain({"a": (1, None)}) == {"a": [1, None]}
