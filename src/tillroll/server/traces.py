"""Spans for OpenTelemetry: one for each call, and below it the commit that carried its write.

Made when the call is over, from what is known then: a service without traces does nothing for
them. No span has an id of a customer, a request or a key; the route is named, not the address.
"""

from __future__ import annotations

import os
import sys
import time
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

import tillroll
from tillroll.ledger.commands import account_id
from tillroll.ledger.errors import TillrollError

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from tillroll.api.calls import Call
    from tillroll.engine import Batch

COMMITS_MAX = 20_000  # of writes whose call has not ended yet; x 300 B = 6 MB
_FAILED = 500
_CONTEXT = (b"traceparent", b"tracestate")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

log = structlog.get_logger("tillroll")


class Commit(NamedTuple):
    """The batch that carried a write."""

    began_ns: int
    ended_ns: int
    requests: int


class Traces:
    """Turns calls and batches into spans."""

    def __init__(self, provider: TracerProvider) -> None:
        """Give spans to this provider."""
        from opentelemetry import trace  # noqa: PLC0415 - an extra
        from opentelemetry.trace.propagation import tracecontext  # noqa: PLC0415

        self._trace = trace
        self._provider = provider
        self._tracer = provider.get_tracer("tillroll", tillroll.__version__)
        self._propagator = tracecontext.TraceContextTextMapPropagator()
        self._commits: dict[tuple[bytes, str], Commit] = {}

    def batch(self, batch: Batch) -> None:
        """Remember who was carried by a batch; called by the thread that wrote it."""
        commits = self._commits
        commit = Commit(batch.began_ns, batch.ended_ns, len(batch.requests))
        for request in batch.requests:
            commits[request.account_id, request.request_id] = commit
        while len(commits) > COMMITS_MAX:  # those of batches in one call, which nobody asks for
            commits.pop(next(iter(commits)), None)

    def called(self, call: Call, status: int, seconds: float, problem: Exception | None) -> None:
        """Make the spans of a call that was answered."""
        ended = time.time_ns()
        began = ended - int(seconds * 1e9)
        commit = self._commit_of(call)
        carrier = {
            name.decode(): call.headers[name].decode("latin-1")
            for name in _CONTEXT
            if name in call.headers
        }
        route = call.route
        span = self._tracer.start_span(
            f"{route.method} {route.path}",
            context=self._propagator.extract(carrier),
            kind=self._trace.SpanKind.SERVER,
            attributes=_attributes(call, status, problem),
            start_time=began,
        )
        if status >= _FAILED:
            span.set_status(self._trace.StatusCode.ERROR)
        if commit is not None:
            child = self._tracer.start_span(
                "tillroll.commit",
                context=self._trace.set_span_in_context(span),
                attributes={"tillroll.batch.requests": commit.requests},
                start_time=max(began, commit.began_ns),
            )
            child.end(max(began, commit.ended_ns))
        span.end(ended)

    def close(self) -> None:
        """Send what was not sent yet."""
        end = getattr(self._provider, "shutdown", None)
        if end is not None:
            end()

    def _commit_of(self, call: Call) -> Commit | None:
        event = call.headers.get(b"idempotency-key")
        if event is None or call.key is None or not call.route.has_account:
            return None
        owner = account_id(call.key.ledger, call.account)
        return self._commits.pop((owner, event.decode(errors="replace")), None)


def _attributes(call: Call, status: int, problem: Exception | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "http.request.method": call.route.method,
        "http.route": call.route.path,
        "http.response.status_code": status,
    }
    if isinstance(problem, TillrollError):
        found["tillroll.code"] = problem.code
        if getattr(problem, "replayed", False):
            found["tillroll.replayed"] = True
    if status >= _FAILED:
        found["error.type"] = found.get("tillroll.code", type(problem).__name__)
    return found


def begin() -> Traces | None:
    """Return what makes spans, None where nobody wants any: see the variables OTEL_*.

    Who has set up a provider in this process, as `opentelemetry-instrument` does, gets the spans.
    """
    names = _exporters()
    if not names and "opentelemetry.sdk.trace" not in sys.modules:
        return None
    try:
        from opentelemetry import trace  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as problem:
        log.warning("no traces: pip install 'tillroll[otel]'", problem=str(problem))
        return None
    there = trace.get_tracer_provider()
    if isinstance(there, TracerProvider):
        return Traces(there)
    if not names:
        return None
    os.environ.setdefault("OTEL_SERVICE_NAME", "tillroll")
    # Sampler, limits and resource are read from OTEL_* by the SDK itself, addresses by exporters.
    provider = TracerProvider()
    for name in names:
        found = entry_points(group="opentelemetry_traces_exporter", name=name)
        if not found:
            log.warning("no traces: there is no such exporter", exporter=name)
            return None
        provider.add_span_processor(BatchSpanProcessor(next(iter(found)).load()()))
    return Traces(provider)


def _exporters() -> list[str]:
    """Return the exporters that the environment asks for, as the SDK names them."""
    environ = os.environ
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    asked = environ.get("OTEL_TRACES_EXPORTER", "")
    if not asked and any(environ.get(name) for name in _ENDPOINTS):
        asked = "otlp"
    protocols = [environ[name] for name in _PROTOCOLS if environ.get(name)]
    grpc = protocols[:1] == ["grpc"]
    names = [name.strip() for name in asked.split(",")]
    otlp = "otlp_proto_grpc" if grpc else "otlp_proto_http"
    return [otlp if name == "otlp" else name for name in names if name not in ("", "none")]
