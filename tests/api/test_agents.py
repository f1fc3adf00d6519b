"""The tools for agents, used by the real client over a served process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx2
import jsonschema
import mcp
import pytest
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, ListToolsResult, TextContent

from tests.api.conftest import Served

TOOLS = {"balance", "statement", "explain", "usage", "prices"}


class Agent:
    """A program that talks to a service by MCP with one key."""

    def __init__(self, url: str, key: str) -> None:
        self._url = f"{url}/mcp"
        self._key = key

    def _ask(self, what: Callable[[mcp.Client], Any]) -> Any:
        async def go() -> Any:
            headers = {"authorization": f"Bearer {self._key}"}
            async with (
                httpx2.AsyncClient(headers=headers, timeout=30) as http,
                mcp.Client(streamable_http_client(self._url, http_client=http)) as client,
            ):
                return await what(client)

        return asyncio.run(go())

    def tools(self) -> ListToolsResult:
        return self._ask(lambda client: client.list_tools())

    def call(self, tool: str, **arguments: Any) -> CallToolResult:
        return self._ask(lambda client: client.call_tool(tool, arguments))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory):
    """A service on which something has happened."""
    one = Served(f"sqlite:///{tmp_path_factory.mktemp('agents')}/credits.db")
    price = {"operation": "image.generate", "rates": {"images": {"units": "5"}}}
    post(one, "/v1/prices", {"prices": [price], "author": "ann", "reason": "first"})
    post(one, "/v1/accounts/acme/grants", {"units": 100}, "order-1")
    body = {"operation": "image.generate", "meters": {"images": 4}}
    post(one, "/v1/accounts/acme/consume", body, "job-1")
    post(one, "/v1/accounts/a%2Fb/grants", {"units": 7}, "order 2/b")
    yield one
    one.stop()


def post(served: Served, path: str, body: object, once: str | None = None) -> httpx2.Response:
    headers = {"authorization": f"Bearer {served.key}"}
    if once:
        headers["idempotency-key"] = once
    answer = httpx2.post(f"{served.url}{path}", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def key_of(served: Served, name: str, scopes: list[str], **how: Any) -> str:
    return post(served, "/v1/keys", {"name": name, "scopes": scopes, **how}, name).json()["secret"]


@pytest.fixture(scope="module")
def agent(served: Served) -> Agent:
    return Agent(served.url, key_of(served, "agent", ["read"]))


def test_an_agent_is_told_what_there_is_and_that_it_only_reads(agent: Agent):
    tools = agent.tools().tools
    assert {tool.name for tool in tools} == TOOLS
    for tool in tools:
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint
        assert tool.description
        assert not tool.description.startswith(" ")
        jsonschema.Draft202012Validator.check_schema(tool.output_schema)
        parameters = tool.input_schema["properties"]
        assert all("description" in parameter for parameter in parameters.values())
        assert "ctx" not in parameters


def test_tools_say_what_the_api_says(agent: Agent, served: Served):
    headers = {"authorization": f"Bearer {served.key}"}
    for tool, arguments, path in (
        ("balance", {"account": "acme"}, "/v1/accounts/acme/balance"),
        ("balance", {"account": "a/b"}, "/v1/accounts/a%2Fb/balance"),
        ("statement", {"account": "acme"}, "/v1/accounts/acme/statement"),
        ("explain", {"request_id": "job-1"}, "/v1/explain/job-1"),
        (
            *("explain", {"request_id": "order 2/b", "account": "a/b"}),
            "/v1/accounts/a%2Fb/explain/order%202%2Fb",
        ),
        ("usage", {"by": "operation,day"}, "/v1/usage?by=operation,day"),
        ("usage", {"account": "acme"}, "/v1/accounts/acme/usage"),
    ):
        found = agent.call(tool, **arguments)
        said = httpx2.get(f"{served.url}{path}", headers=headers).json()
        assert not found.is_error
        told = dict(found.structured_content or {})
        assert {**told, "as_of": None} == {**said, "as_of": None}
        [content] = found.content
        assert isinstance(content, TextContent)
        assert json.loads(content.text) == told


def test_answers_are_of_the_shape_that_was_promised(agent: Agent):
    schemas = {tool.name: tool.output_schema for tool in agent.tools().tools}
    for tool, arguments in (
        ("balance", {"account": "acme"}),
        ("statement", {"account": "acme", "limit": 1}),
        ("explain", {"request_id": "job-1"}),
        ("usage", {}),
        ("prices", {}),
    ):
        found = agent.call(tool, **arguments).structured_content
        jsonschema.validate(found, schemas[tool])
        assert found


def test_a_statement_is_read_page_by_page(agent: Agent):
    first = agent.call("statement", account="acme", limit=1).structured_content or {}
    assert [entry["request_id"] for entry in first["entries"]] == ["job-1"]
    rest = agent.call("statement", account="acme", before=first["next"]).structured_content or {}
    assert [entry["request_id"] for entry in rest["entries"]] == ["order-1"]
    grants = agent.call("statement", account="acme", kinds="grant").structured_content or {}
    assert [entry["kind"] for entry in grants["entries"]] == ["grant"]


def test_one_version_of_the_price_book_is_shown(agent: Agent):
    found = agent.call("prices").structured_content or {}
    assert (found["current"], found["version"]["version"]) == (1, 1)
    assert found["version"]["prices"][0]["operation"] == "image.generate"
    assert agent.call("prices", version=9).structured_content == {"current": 1, "version": None}


def test_errors_are_problems(agent: Agent):
    for tool, arguments, code in (
        ("balance", {"account": "nobody"}, "not_found"),
        ("explain", {"request_id": "never"}, "not_found"),
        ("usage", {"by": "moon"}, "invalid_input"),
        ("statement", {"account": "acme", "since": "yesterday"}, "invalid_input"),
    ):
        found = agent.call(tool, **arguments)
        assert found.is_error
        assert (found.structured_content or {})["code"] == code
        [content] = found.content
        assert isinstance(content, TextContent)
        assert content.text.startswith(f"{code}: ")


def test_arguments_that_make_no_sense_are_told_to_the_model(agent: Agent):
    assert agent.call("statement", account="acme", limit=10_000).is_error
    assert agent.call("balance").is_error


def test_a_key_sees_its_own_accounts_only(served: Served):
    own = Agent(served.url, key_of(served, "own", ["read"], accounts=["acme"]))
    assert not own.call("balance", account="acme").is_error
    assert not own.call("explain", request_id="job-1", account="acme").is_error
    for tool, arguments in (
        ("balance", {"account": "a/b"}),
        ("usage", {}),
        ("explain", {"request_id": "job-1"}),
    ):
        found = own.call(tool, **arguments)
        assert (found.structured_content or {})["code"] == "forbidden"


def message(served: Served, key: str | None, method: str = "POST") -> httpx2.Response:
    headers = {"accept": "application/json, text/event-stream"}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    return httpx2.request(method, f"{served.url}/mcp", json=body, headers=headers)


def test_who_has_no_key_that_reads_learns_nothing(served: Served):
    nobody = message(served, None)
    assert (nobody.status_code, nobody.json()["code"]) == (401, "missing_bearer_token")
    assert nobody.headers["www-authenticate"] == "Bearer"
    wrong = message(served, f"tr_live_{'x' * 43}")
    assert (wrong.status_code, wrong.json()["code"]) == (401, "invalid_api_key")
    writes = message(served, key_of(served, "writes", ["consume", "grant"]))
    assert (writes.status_code, writes.json()["code"]) == (403, "forbidden")


def test_there_are_no_sessions(served: Served):
    for method in ("GET", "DELETE"):
        answer = message(served, served.key, method)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert answer.json()["code"] == "method_not_allowed"
    assert "mcp-session-id" not in message(served, served.key).headers


def test_a_message_is_bounded(served: Served):
    headers = {"authorization": f"Bearer {served.key}", "content-type": "application/json"}
    body = b'{"jsonrpc": "2.0", "id": 1, "method": "' + b"x" * 70_000 + b'"}'
    answer = httpx2.post(f"{served.url}/mcp", content=body, headers=headers)
    assert answer.status_code == 413


def test_it_may_be_turned_off(serve):
    served = serve(TILLROLL_MCP="off")
    answer = message(served, served.key)
    assert (answer.status_code, answer.json()["code"]) == (404, "no_such_address")
