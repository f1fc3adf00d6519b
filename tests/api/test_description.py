"""The description of the API: it is OpenAPI, it says everything, and the service keeps to it."""

import pytest
from jsonschema import Draft202012Validator

from tillroll.api.openapi import document
from tillroll.api.routes import routes
from tillroll.ledger.errors import REFUSALS
from tillroll.ledger.verbs import Verbs
from tillroll.wire import problems

OPENAPI = document()


def refs(value):
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for part in value.values():
            yield from refs(part)
    elif isinstance(value, list):
        for part in value:
            yield from refs(part)


def test_every_reference_leads_somewhere():
    found = set(refs(OPENAPI))
    for ref in found:
        value = OPENAPI
        for part in ref.removeprefix("#/").split("/"):
            value = value[part]
    assert len(found) > 50


def test_every_schema_is_one():
    for schema in OPENAPI["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    assert OPENAPI["openapi"] == "3.1.0"


def test_operation_ids_are_unique_and_links_lead_to_them():
    operations = [o for path in OPENAPI["paths"].values() for o in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names)) >= 60
    links = [
        link
        for operation in operations
        for response in operation["responses"].values()
        for link in response.get("links", {}).values()
    ]
    assert {link["operationId"] for link in links} <= set(names)
    assert len(links) > 10


def test_every_verb_has_a_route():
    verbs = {name for name in vars(Verbs) if not name.startswith("_")}
    assert verbs <= {route.name for route in routes()}


def test_every_code_is_described():
    described = {
        code
        for response in OPENAPI["components"]["responses"].values()
        for content in response["content"].values()
        for choice in content["schema"].get("anyOf", [content["schema"]])
        for code in choice["allOf"][1]["properties"]["code"]["enum"]
    }
    # Before a route is found, or where no route is: in no operation's description.
    outside = {"method_not_allowed", "no_such_address", "malformed_request", "copy_mismatch"}
    assert described == problems.KINDS.keys() - outside
    assert REFUSALS.keys() <= described


@pytest.mark.parametrize("code", problems.KINDS)
def test_every_problem_has_a_page(api, code):
    page = api.call("GET", f"/problems/{code}", headers={"authorization": ""})
    assert (page.status_code, code in page.text) == (200, True)
    assert len(page.text.splitlines()) >= 5


def test_the_description_is_served_to_anybody(api):
    served = api.call("GET", "/openapi.json", headers={"authorization": ""})
    assert served.json() == OPENAPI
    assert api.call("GET", "/problems/nothing").status_code == 404
    assert api.call("POST", "/openapi.json").status_code == 405


def test_headers_that_matter_are_described():
    components = OPENAPI["components"]["responses"]

    def header(operation, status):
        said = operation["responses"][status]
        said = components[said["$ref"].rpartition("/")[2]] if "$ref" in said else said
        return [*said.get("headers", {})]

    for path, operations in OPENAPI["paths"].items():
        for operation in operations.values():
            known = {status for status in ("401", "429", "503") if status in operation["responses"]}
            if operation["tags"] == ["Public"]:
                continue
            for status in known:
                wanted = "WWW-Authenticate" if status == "401" else "Retry-After"
                assert header(operation, status) == [wanted], path
    consume = OPENAPI["paths"]["/v1/accounts/{account}/consume"]["post"]
    assert header(consume, "402") == ["Idempotent-Replayed"]
    stream = OPENAPI["paths"]["/v1/accounts/{account}/balance/stream"]["get"]
    assert "Last-Event-ID" in [one["name"] for one in stream["parameters"]]
