"""The description of the API, OpenAPI 3.1, made from the routes and the shapes themselves."""

from __future__ import annotations

import functools
from typing import Any

import msgspec

import tillroll
from tillroll.api.calls import Route
from tillroll.api.reads import SEQ_MAX
from tillroll.api.routes import routes
from tillroll.ledger.values import ID_MAX
from tillroll.wire import answers, bodies, problems

PARAMETERS = {
    "account": "Your own id of the balance owner.",
    "hold_id": "The hold: the request_id that opened it.",
    "grant_id": "The grant: the request_id that gave it.",
    "request_id": "Your id of an event: a charge, a hold, a grant, a refused request.",
    "name": "What it is called.",
    "key_id": "The id of an API key, not the key itself.",
    "endpoint_id": "The id of a webhook endpoint.",
    "event_id": "The id of an event: the header webhook-id.",
    "provider": "The payment provider's short name, such as `stripe`.",
    "wallet": "The kind of credits, such as `credits`.",
    "ref": "Your own id of the subject: an account.",
    "code": "A stable code, as in `code` of a problem.",
}
_EDGE = ("missing_bearer_token", "invalid_api_key", "forbidden", "not_found", "invalid_input")
_BODY = ("request_timeout", "body_too_large", "unsupported_media_type")
_KEYED = ("idempotency_key_missing", "idempotency_conflict")
_STORE = tuple(
    code
    for code, kind in problems.ERRORS.items()
    if kind.status == 503  # noqa: PLR2004
)
_ALWAYS = ("too_many_requests", "headers_too_large", "internal_error", *_STORE)
_REPLAYED = {
    "Idempotent-Replayed": {
        "description": "true where this is the first answer to a repeat.",
        "schema": {"type": "string", "enum": ["true"]},
    }
}
_RETRY_AFTER = {
    "Retry-After": {
        "description": "After so many seconds one may ask again.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    }
}
_OF_STATUS: dict[int, dict[str, Any]] = {
    401: {
        "WWW-Authenticate": {
            "description": "How to say who calls.",
            "required": True,
            "schema": {"type": "string"},
        }
    },
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}
# What can be done next, and from what: operation, its parameters.
_HOLD = {"account": "$request.path.account", "hold_id": "$response.body#/request_id"}
_CHARGE = {"account": "$request.path.account", "request_id": "$response.body#/request_id"}
_LINKS: dict[str, dict[str, dict[str, str]]] = {
    "hold": {"settle": _HOLD, "release": _HOLD, "extend": _HOLD, "mark_in_doubt": _HOLD}
    | {"resolve": _HOLD, "get_hold": _HOLD},
    "consume": {"explain": _CHARGE, "receipt": _CHARGE},
    "grant": {
        "void": {"account": "$request.path.account", "grant_id": "$response.body#/request_id"},
        "consume": {"account": "$request.path.account"},
        "balance": {"account": "$request.path.account"},
        "statement": {"account": "$request.path.account"},
        "account": {"account": "$request.path.account"},
    },
    "make_endpoint": {
        name: {"endpoint_id": "$response.body#/id"}
        for name in ("get_endpoint", "change_endpoint", "rotate_endpoint", "remove_endpoint")
    },
    "make_key": {
        "get_key": {"key_id": "$response.body#/id"},
        "rotate_key": {"key_id": "$response.body#/id"},
        "revoke_key": {"key_id": "$response.body#/id"},
    },
}


@functools.cache
def description() -> bytes:
    """Return the description as JSON."""
    return msgspec.json.encode(document())


def document() -> dict[str, Any]:
    """Return the description as plain values."""
    known = routes()
    schemas = _schemas(known)
    shared = _Responses()
    paths: dict[str, dict[str, Any]] = {}
    for route in known:
        operation = _operation(route, schemas, shared)
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tillroll",
            "version": tillroll.__version__,
            "summary": "Prepaid credits: every charge once, in order, never below zero, explained.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "tags": [{"name": group} for group in dict.fromkeys(route.group for route in known)],
        "paths": {**paths, **_public(shared)},
        "components": {
            "schemas": schemas,
            "responses": shared.components,
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key: tr_test_... or tr_live_...",
                }
            },
        },
    }


def _schemas(known: list[Route]) -> dict[str, Any]:
    """Return every shape by its name."""
    shapes: list[type[msgspec.Struct]] = [
        *(answers.Problem, answers.Refusal, answers.LicenzyError, answers.Health, bodies.Item)
    ]
    for route in known:
        shapes += [shape for shape in (route.body, route.query, route.answer) if shape is not None]
    _, found = msgspec.json.schema_components(
        list(dict.fromkeys(shapes)), ref_template="#/components/schemas/{name}"
    )
    found["Batch"]["properties"]["items"]["items"] = _ref(bodies.Item)  # decoded one by one
    return found


def _operation(route: Route, schemas: dict[str, Any], shared: _Responses) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.group],
        "parameters": [*_in_path(route.path), *_in_query(route, schemas), *_in_header(route)],
        "responses": _responses(route, shared),
    }
    if route.signed:
        operation["security"] = []
        operation["description"] = "Needs no key: the provider's signature says who calls."
    if route.scopes:
        scopes = " or ".join(sorted(route.scopes | {"admin"}))
        operation["description"] = f"Needs a key with the scope {scopes}."
    if route.body is not None:
        operation["requestBody"] = {
            "required": bool(schemas[route.body.__name__].get("required")),
            "content": {"application/json": {"schema": _ref(route.body)}},
        }
    return operation


def _in_path(path: str) -> list[dict[str, Any]]:
    return [
        {
            "name": part[1:-1],
            "in": "path",
            "required": True,
            "description": PARAMETERS[part[1:-1]],
            "schema": {"type": "string", "minLength": 1, "maxLength": ID_MAX},
        }
        for part in path.split("/")
        if part.startswith("{")
    ]


def _in_query(route: Route, schemas: dict[str, Any]) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    shape = schemas[route.query.__name__]
    return [
        {"name": name, "in": "query", "required": False, "schema": _not_null(schema)}
        for name, schema in shape["properties"].items()
    ]


def _not_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a query's value, which is left out rather than null."""
    choices = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
    return choices[0] if choices else {k: v for k, v in schema.items() if k != "default"}


def _in_header(route: Route) -> list[dict[str, Any]]:
    if route.name == "follow":
        return [
            {
                "name": "Last-Event-ID",
                "in": "header",
                "description": "The id of the last event that was seen: what came since is sent.",
                "schema": {"type": "integer", "minimum": 0, "maximum": SEQ_MAX},
            }
        ]
    if not route.keyed:
        return []
    return [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": True,
            "description": "Your id of this one event, the same at every retry.",
            "schema": {
                "type": "string",
                "minLength": 1,
                "maxLength": ID_MAX,
                "pattern": r"^[!-}]([ -}]*[!-}])?$",  # UTF-8 may be sent, but few tools can
                "examples": ["order-17"],
            },
        }
    ]


def _responses(route: Route, shared: _Responses) -> dict[str, Any]:
    media_type = "text/event-stream" if route.name == "follow" else "application/json"
    schema = {} if route.name == "follow" else _ref(route.answer)
    good: dict[str, Any] = {
        "description": (route.answer.__doc__ or "").split("\n")[0],
        "content": {media_type: {"schema": schema}},
    }
    if route.keyed:
        good["headers"] = _REPLAYED
    if route.name in _LINKS:
        good["links"] = {
            name: {"operationId": name, "parameters": parameters}
            for name, parameters in _LINKS[route.name].items()
        }
    by_status: dict[int, list[str]] = {}
    for code in _codes(route):
        by_status.setdefault(problems.KINDS[code].status, []).append(code)
    if route.licenzy:
        statuses = {*by_status, 400, 409} - {402, 410, 422}
        said = {str(status): _licenzy_no(status) for status in sorted(statuses)}
    else:
        said = {
            str(status): shared.of(status, codes) for status, codes in sorted(by_status.items())
        }
    return {"200": good, **said}


def _codes(route: Route) -> list[str]:
    """Return the codes that may be answered instead."""
    edge = ("not_found", "invalid_input") if route.signed else _EDGE
    codes = [*route.refusals, *edge, *_ALWAYS]
    if route.body is not None:
        codes += _BODY
    if route.keyed:
        codes += _KEYED
    return list(dict.fromkeys(codes))


class _Responses:
    """The problems of the API, each set of codes described once."""

    def __init__(self) -> None:
        self.components: dict[str, Any] = {}
        self._names: dict[tuple[str, ...], str] = {}

    def of(self, status: int, codes: list[str]) -> dict[str, str]:
        """Return a reference to the description of these codes."""
        key = tuple(codes)
        if key not in self._names:
            number = sum(name.startswith(f"No{status}") for name in self.components) + 1
            self._names[key] = f"No{status}-{number}"
            self.components[self._names[key]] = _no(status, codes)
        return {"$ref": f"#/components/responses/{self._names[key]}"}


def _no(status: int, codes: list[str]) -> dict[str, Any]:
    """Return the description of a problem: its shape, and the codes it may have."""
    refusals = [code for code in codes if code in problems.REFUSALS]
    others = [code for code in codes if code not in problems.REFUSALS]
    choices = [
        {"allOf": [_ref(shape), {"properties": {"code": {"enum": some}}}]}
        for shape, some in ((answers.Refusal, refusals), (answers.Problem, others))
        if some
    ]
    return {
        "description": "; ".join(f"`{code}`: {problems.title_of(code)}" for code in codes),
        **_headers(status, replayed=bool(refusals)),
        "content": {
            "application/problem+json": {
                "schema": choices[0] if len(choices) == 1 else {"anyOf": choices}
            }
        },
    }


def _licenzy_no(status: int) -> dict[str, Any]:
    return {
        "description": "One word for what is the matter.",
        **_headers(status, replayed=status == 409),  # noqa: PLR2004 - where units are missing
        "content": {"application/json": {"schema": _ref(answers.LicenzyError)}},
    }


def _headers(status: int, *, replayed: bool) -> dict[str, Any]:
    """Describe the headers of a no; none where it has none of its own."""
    found = _REPLAYED if replayed else _OF_STATUS.get(status)
    return {} if found is None else {"headers": found}


def _public(shared: _Responses) -> dict[str, Any]:
    """Describe what needs no key."""
    health = {"application/json": {"schema": _ref(answers.Health)}}
    text = {"text/plain": {"schema": {"type": "string"}}}
    plain = {"application/json": {"schema": {"type": "object"}}}
    pages = (
        ("/livez", "livez", "Whether the process answers", health),
        ("/readyz", "readyz", "Whether it can do its work: database, schema, writing", health),
        ("/metrics", "metrics", "Figures for Prometheus", text),
        ("/openapi.json", "openapi", "This description", plain),
        ("/problems/{code}", "problem", "What a problem's code means and what to do", text),
    )
    described: dict[str, Any] = {}
    for path, name, summary, content in pages:
        responses: dict[str, Any] = {"200": {"description": summary, "content": content}}
        if path == "/readyz":
            responses["503"] = {
                "description": "It cannot now; the checks say why.",
                "content": health,
            }
        if path in ("/metrics", "/problems/{code}"):
            responses["404"] = shared.of(404, ["not_found"])
        described[path] = {
            "get": {
                "operationId": name,
                "summary": summary,
                "tags": ["Public"],
                "security": [],
                "parameters": _in_path(path),
                "responses": responses,
            }
        }
    return described


def _ref(shape: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{shape.__name__}"}
