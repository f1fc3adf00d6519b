"""U+0000, which PostgreSQL cannot hold, in every place of every call: an error of the caller's."""

import re

import pytest

import tillroll
from tillroll.ledger.errors import InvalidInput, NotFound

METHODS = ("get", "post", "put", "patch", "delete")


def operations(api):
    spec = api.call("GET", "/openapi.json").json()
    schemas = spec["components"]["schemas"]
    for path, methods in spec["paths"].items():
        if path.endswith("/stream"):
            continue
        for method in METHODS:
            if method in methods:
                yield method, path, methods[method], schemas


def calls(api):
    """Yield method, address and body: the character in each part, each value, each field."""
    for method, path, operation, schemas in operations(api):
        plain = re.sub(r"\{[^}]*\}", "x", path)
        names = re.findall(r"\{[^}]*\}", path)
        for name in names:
            yield method, re.sub(r"\{[^}]*\}", "x", path.replace(name, "a%00b")), {}
        for given in operation.get("parameters", []):
            if given["in"] == "query":
                yield method, f"{plain}?{given['name']}=a%00b", None
        if "requestBody" in operation:
            (content,) = operation["requestBody"]["content"].values()
            shape = schemas[content["schema"]["$ref"].rpartition("/")[2]]
            needed = dict.fromkeys(shape.get("required", ()), "1")
            for field in shape.get("properties", {}):
                yield method, plain, {**needed, field: "a\0b"}


def test_it_is_never_a_failure_of_the_service(api):
    asked = 0
    for n, (method, address, body) in enumerate(calls(api)):
        told = api.call(method.upper(), address, body, once=f"call-{n}")
        assert told.status_code < 500, (method, address, body, told.text)
        asked += 1
    assert asked > 200
    assert api.call("GET", "/v1/accounts").status_code == 200


@pytest.mark.parametrize("look", ["explain", "receipt", "hold_state"])
def test_nothing_has_it_as_its_name(store_url, look):
    with tillroll.open(store_url) as ledger:
        ledger.grant("acme", 10)
        ids = ("a\0b",) if look == "explain" else ("acme", "a\0b")
        with pytest.raises((NotFound, InvalidInput)):
            getattr(ledger, look)(*ids)
        assert ledger.consume("acme", units=1).available == 9
