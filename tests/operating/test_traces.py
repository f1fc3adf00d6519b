"""Spans: one for each call, the commit below it, and nothing of a customer in either."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tests.api.conftest import Api
from tillroll.ledger.errors import StoreUnavailable
from tillroll.server import traces

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CONSUME = "/v1/accounts/the customer/consume"


class Traced:
    """A service whose spans are kept."""

    def __init__(self, small: Any) -> None:
        self._kept = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self._traces = traces.Traces(provider)
        self.api: Api = small(done=self._done)
        self.api.engine.observe = self._traces.batch
        self.api.call("POST", "/v1/accounts/the customer/grants", {"units": 9}, once="the grant")
        self._kept.clear()

    def _done(self, call: Any, *what: Any) -> None:
        if call is not None:
            self._traces.called(call, *what)

    def spans(self) -> list[ReadableSpan]:
        """Return the spans since the last look, the outer ones first."""
        found = sorted(self._kept.get_finished_spans(), key=lambda span: span.parent is not None)
        self._kept.clear()
        return found


@pytest.fixture
def traced(small: Any) -> Traced:
    return Traced(small)


def test_a_write_has_the_commit_that_carried_it(traced: Traced):
    traced.api.call("POST", CONSUME, {"units": 1}, once="the job")
    call, commit = traced.spans()
    assert (call.name, call.kind) == ("POST /v1/accounts/{account}/consume", SpanKind.SERVER)
    assert dict(call.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/accounts/{account}/consume",
        "http.response.status_code": 200,
    }
    assert commit.name == "tillroll.commit"
    assert commit.parent is not None
    assert commit.parent.span_id == call.context.span_id
    assert dict(commit.attributes or {}) == {"tillroll.batch.requests": 1}
    moments = (call.start_time, commit.start_time, commit.end_time, call.end_time)
    assert list(moments) == sorted(moments)


def test_a_span_belongs_to_who_called(traced: Traced):
    path = "/v1/accounts/the customer/balance"
    traced.api.call("GET", path, headers={"traceparent": PARENT})
    [call] = traced.spans()
    assert call.name == "GET /v1/accounts/{account}/balance"
    assert f"{call.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert call.parent is not None
    assert f"{call.parent.span_id:016x}" == "b7ad6b7169203331"
    traced.api.call("GET", path, headers={"traceparent": "nonsense"})
    [call] = traced.spans()
    assert call.parent is None


def test_who_is_not_sampled_is_not_told_of(traced: Traced):
    unsampled = PARENT.removesuffix("01") + "00"
    traced.api.call("POST", CONSUME, {"units": 1}, once="j", headers={"traceparent": unsampled})
    assert traced.spans() == []


def test_a_refusal_is_no_error(traced: Traced):
    for replayed in (None, True):
        traced.api.call("POST", CONSUME, {"units": 99}, once="too much")
        call, commit = traced.spans()
        told = dict(call.attributes or {})
        assert (told["http.response.status_code"], told["tillroll.code"]) == (
            *(402, "insufficient_units"),
        )
        assert told.get("tillroll.replayed") is replayed
        assert call.status.status_code is StatusCode.UNSET
        assert commit.name == "tillroll.commit"


def test_a_failure_is_one(traced: Traced, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(traced.api.engine.store, "write", fail)
    traced.api.call("POST", CONSUME, {"units": 1}, once="the job")
    call, *_ = traced.spans()
    assert call.status.status_code is StatusCode.ERROR
    assert dict(call.attributes or {})["error.type"] == "unavailable"


def test_nothing_of_a_customer_is_in_a_span(traced: Traced):
    traced.api.call("POST", CONSUME, {"units": 1, "tags": {"member": "ann"}}, once="the job")
    traced.api.call("POST", CONSUME, {"units": 99, "metadata": {"a": "b"}}, once="too much")
    traced.api.call("GET", "/v1/accounts/the customer/explain/the job")
    told = " ".join(span.to_json() for span in traced.spans())
    assert "POST /v1/accounts/{account}/consume" in told
    for secret in ("customer", "the job", "too much", "ann", "key_", "tr_live"):
        assert secret not in told


def test_what_nobody_asks_for_is_forgotten(traced: Traced, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(traces, "COMMITS_MAX", 3)
    items = [{"account": "a", "request_id": f"job-{n}", "units": 1} for n in range(10)]
    traced.api.call("POST", "/v1/batch", {"items": items})
    [call] = traced.spans()
    assert call.name == "POST /v1/batch"
    assert len(traced._traces._commits) == 3


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """The address of a collector, and the spans it was sent."""
    got: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            request = ExportTraceServiceRequest.FromString(body)
            for resource in request.resource_spans:
                of = {item.key: item.value.string_value for item in resource.resource.attributes}
                for scope in resource.scope_spans:
                    got.extend((of["service.name"], span) for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", got
        server.shutdown()
        thread.join()


def test_a_collector_is_sent_the_spans_of_a_process(serve, collector):
    address, got = collector
    served = serve(OTEL_EXPORTER_OTLP_ENDPOINT=address, OTEL_EXPORTER_OTLP_COMPRESSION="none")
    headers = {"authorization": f"Bearer {served.key}", "idempotency-key": "g"}
    url = f"{served.url}/v1/accounts/acme/grants"
    assert httpx2.post(url, json={"units": 5}, headers=headers).status_code == 200
    served.stop()  # sends what is left
    names = {span.name for _, span in got}
    assert names == {"POST /v1/accounts/{account}/grants", "tillroll.commit"}
    assert {service for service, _ in got} == {"tillroll"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"},
    ],
    ids=["unset", "none", "disabled"],
)
def test_where_it_is_off_nothing_of_it_is_loaded(environ: dict[str, str]):
    source = """
        import sys
        from tillroll.server import app, traces
        assert traces.begin() is None
        print([name for name in sys.modules if name.startswith("opentelemetry")])
    """
    usual = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = [sys.executable, "-c", textwrap.dedent(source)]
    said = subprocess.run(command, env=usual | environ, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_exporters_are_named_as_the_sdk_names_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    assert traces._exporters() == ["otlp_proto_http"]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert traces._exporters() == ["otlp_proto_grpc"]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console, otlp")
    assert traces._exporters() == ["console", "otlp_proto_http"]


def test_an_exporter_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "nosuch")
    assert traces.begin() is None
