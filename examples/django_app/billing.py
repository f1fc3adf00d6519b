"""The ledger of this process, and what its errors look like over HTTP."""

from __future__ import annotations

import functools
from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse

import tillroll

STATUS = {
    "insufficient_units": 402,
    "budget_exceeded": 402,
    "account_frozen": 403,
    "account_closed": 403,
    "hold_expired": 410,
    "hold_finalized": 409,
    "idempotency_conflict": 422,
    "invalid_input": 422,
}


@functools.cache
def ledger() -> tillroll.Ledger:
    """Return the one ledger of this process, opened when it is first needed.

    All threads share it: those that write at the same time share a commit. It survives the fork of
    a pre-forking server, and is closed in order when the process ends.
    """
    return tillroll.open(settings.TILLROLL_DATABASE_URL)


def problem(status: int, code: str, detail: str, **more: object) -> JsonResponse:
    """Answer with a problem document (RFC 9457)."""
    body = {"type": f"urn:tillroll:{code}", "status": status, "code": code, "detail": detail}
    return JsonResponse({**body, **more}, status=status, content_type="application/problem+json")


class ProblemsAsAnswers:
    """Middleware: whatever the ledger raises in a view becomes one kind of answer."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        """Stand before this view."""
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Pass the request on."""
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """Answer for a view that raised; Django asks here before it makes a 500 of it."""
        if isinstance(error, TimeoutError):
            return problem(504, "in_doubt", "the model did not answer in time")
        if not isinstance(error, tillroll.TillrollError):
            return None
        status = STATUS.get(error.code, 503 if isinstance(error, tillroll.StoreError) else 409)
        facts = error.to_dict()
        return problem(status, str(facts.pop("code")), str(facts.pop("message")), **facts)
