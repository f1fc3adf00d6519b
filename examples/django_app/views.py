"""The views: a payment's webhook, an order, what is left, and why."""

from __future__ import annotations

import json

from django.core.cache import cache
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

import tillroll
from django_app.billing import ledger, problem

MOST_UNITS = 40  # the most that one image can cost


def model(prompt: str) -> tuple[str, int]:
    """Stand in for a model: return the image and what it cost, or fail as the prompt says."""
    if "fail" in prompt:
        raise ConnectionError("the model failed")
    if "hang" in prompt:
        raise TimeoutError
    return f"https://images.example/{len(prompt)}.png", min(20 + len(prompt), MOST_UNITS)


@csrf_exempt
@require_POST
def payments(request: HttpRequest) -> HttpResponse:
    """Grant what was paid for, once, however often it is reported. Check its signature first."""
    body = json.loads(request.body)
    receipt = ledger().grant(
        body["account"], body["units"], request_id=body["payment_id"], source=body["payment_id"]
    )
    return JsonResponse({"available": str(receipt.available)}, status=201)


@csrf_exempt
@require_POST
def images(request: HttpRequest) -> HttpResponse:
    """Hold the most it can cost, do the work, charge what was used."""
    account, key = request.headers["X-Account"], request.headers.get("Idempotency-Key")
    if not key:
        return problem(400, "key_missing", "send an Idempotency-Key header, one for each order")
    prompt = json.loads(request.body)["prompt"]

    hold = ledger().hold(account, "image.generate", units=MOST_UNITS, request_id=key)
    if hold.replayed:
        return answer_again(hold)

    with hold:
        url, units = model(prompt)
        receipt = hold.settle(units=units)

    image = {"url": url, "units": str(receipt.units), "available": str(receipt.available)}
    cache.set(f"{account}:{key}", image, timeout=None)  # a table of your database
    return JsonResponse(image, status=201)


def answer_again(hold: tillroll.OpenHold) -> HttpResponse:
    """Answer a repeat: the first answer, or what became of the first attempt."""
    image = cache.get(f"{hold.account}:{hold.id}")
    if image is not None:
        return JsonResponse(image, status=201)
    state = hold.state
    if state == "open":
        return problem(409, "in_progress", "this order is being worked on; ask again soon")
    return problem(409, state, "this order is over; send a new one with a new key")


@require_GET
def balance(request: HttpRequest) -> HttpResponse:
    """Show what is left."""
    found = ledger().balance(request.headers["X-Account"])
    return JsonResponse({"available": str(found.available), "held": str(found.held)})


@require_GET
def why(request: HttpRequest, request_id: str) -> HttpResponse:
    """Answer "why was I charged?"."""
    return JsonResponse(ledger().explain(request_id, account=request.headers["X-Account"]))
