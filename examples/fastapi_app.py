"""Sell images for credits over HTTP: FastAPI, a hold around the model call, refusals as 402.

`uvicorn fastapi_app:app` serves it; `python fastapi_app.py` shows what it answers. The model, the
sign-in and the table of images are stand-ins, the rest is what a real service needs.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request
from fastapi.exceptions import HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

import tillroll

MOST_UNITS = 40  # the most that one image can cost

# The status of each refusal and error that this service can meet; see docs/reference/refusals.md.
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


class Order(BaseModel):
    """What the client asks for."""

    prompt: str = Field(min_length=1, max_length=2000)


class Payment(BaseModel):
    """What the payment provider reports, and may report twice."""

    payment_id: str
    account: str
    units: int


class Image(BaseModel):
    """What the client gets."""

    url: str
    units: str
    available: str


async def provider(prompt: str) -> tuple[str, int]:
    """Stand in for a model: return the image and what it cost, or fail as the prompt says."""
    await asyncio.sleep(0.01)
    if "fail" in prompt:
        raise HTTPException(502, "the model failed")
    if "hang" in prompt:
        raise TimeoutError
    return f"https://images.example/{len(prompt)}.png", min(20 + len(prompt), MOST_UNITS)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the ledger with the service and close it with the service."""
    url = os.environ.get("TILLROLL_DATABASE_URL", "sqlite:///credits.db")
    async with tillroll.open_async(url) as ledger:
        app.state.ledger = ledger
        app.state.images = {}  # answers by request id: a table of your database
        yield


app = FastAPI(title="Images for credits", lifespan=lifespan)


def problem(status: int, code: str, detail: str, **more: object) -> JSONResponse:
    """Answer with a problem document (RFC 9457)."""
    body = {"type": f"urn:tillroll:{code}", "status": status, "code": code, "detail": detail}
    return JSONResponse({**body, **more}, status_code=status, media_type="application/problem+json")


@app.exception_handler(tillroll.TillrollError)
async def refuse(request: Request, error: tillroll.TillrollError) -> JSONResponse:
    """Turn whatever the ledger raises into one kind of answer: the only handler needed."""
    status = STATUS.get(error.code, 503 if isinstance(error, tillroll.StoreError) else 409)
    facts: dict[str, Any] = error.to_dict()
    facts.pop("code")
    return problem(status, error.code, facts.pop("message"), **facts)


@app.exception_handler(TimeoutError)
async def timed_out(request: Request, error: TimeoutError) -> JSONResponse:
    """Say that nobody knows yet; the hold is in doubt until somebody finds out."""
    return problem(504, "in_doubt", "the model did not answer in time; you are not charged yet")


async def request_key(idempotency_key: Annotated[str | None, Header()] = None) -> str:
    """Require the header: without a key nobody could tell a retry from a second order."""
    if not idempotency_key:
        raise HTTPException(400, "send an Idempotency-Key header, one for each order")
    return idempotency_key


async def signed_in(x_account: Annotated[str, Header()]) -> str:
    """Stand in for your sign-in: who pays."""
    return x_account


@app.post("/payments", status_code=201)
async def paid(payment: Payment, request: Request) -> object:
    """Grant what was paid for, once, however often it is reported. Check its signature first."""
    receipt = await request.app.state.ledger.grant(
        payment.account, payment.units, request_id=payment.payment_id, source=payment.payment_id
    )
    return {"granted": str(receipt.units), "available": str(receipt.available)}


@app.post("/images", status_code=201, response_model=Image)
async def create_image(
    order: Order,
    request: Request,
    key: Annotated[str, Depends(request_key)],
    account: Annotated[str, Depends(signed_in)],
) -> object:
    """Hold the most it can cost, do the work, charge what was used."""
    ledger: tillroll.AsyncLedger = request.app.state.ledger
    images: dict[tuple[str, str], Image] = request.app.state.images

    # The digest is part of the request: the same key with another order is a conflict.
    body = hashlib.sha256(order.model_dump_json().encode()).hexdigest()
    hold = await ledger.hold(
        account, "image.generate", units=MOST_UNITS, request_id=key, metadata={"body": body}
    )
    if hold.replayed:
        return await answer_again(hold, images)

    async with hold:
        url, units = await provider(order.prompt)
        receipt = await hold.settle(units=units)

    image = Image(url=url, units=str(receipt.units), available=str(receipt.available))
    images[account, key] = image
    return image


async def answer_again(
    hold: tillroll.AsyncOpenHold, images: dict[tuple[str, str], Image]
) -> object:
    """Answer a repeat: the first answer, or what became of the first attempt."""
    if (hold.account, hold.id) in images:
        return images[hold.account, hold.id]
    state = await hold.state()
    if state == "open":
        return problem(409, "in_progress", "this order is being worked on; ask again soon")
    return problem(409, state, "this order is over; send a new one with a new key")


@app.get("/balance")
async def balance(request: Request, account: Annotated[str, Depends(signed_in)]) -> object:
    """Show what is left."""
    found = await request.app.state.ledger.balance(account)
    return {"available": str(found.available), "held": str(found.held)}


@app.get("/why/{request_id}")
async def why(
    request_id: str, request: Request, account: Annotated[str, Depends(signed_in)]
) -> object:
    """Answer "why was I charged?"."""
    try:
        return await request.app.state.ledger.explain(request_id, account=account)
    except tillroll.NotFound:
        raise HTTPException(404, "no such order") from None


def main() -> None:
    """Show a payment, an order, a repeat, a failure, a time-out, a conflict and a refusal."""
    from fastapi.testclient import TestClient  # noqa: PLC0415 - only the demonstration needs it

    os.environ.setdefault("TILLROLL_DATABASE_URL", "memory://")
    with TestClient(app) as client:
        payment = {"payment_id": "pay-1", "account": "acme", "units": 100}
        client.post("/payments", json=payment)
        client.post("/payments", json=payment)
        for key, prompt in [
            ("click-1", "a red fox"),
            ("click-1", "a red fox"),
            ("click-1", "a blue fox"),
            ("click-2", "fail, please"),
            ("click-3", "hang, please"),
            ("click-4", "a green fox"),
        ]:
            headers = {"Idempotency-Key": key, "X-Account": "acme"}
            answer = client.post("/images", json={"prompt": prompt}, headers=headers)
            body = answer.json()
            print(key, answer.status_code, body.get("url") or body["detail"])
        print(client.get("/balance", headers={"X-Account": "acme"}).json())
        print(client.get("/why/click-1", headers={"X-Account": "acme"}).json()["charged"])


if __name__ == "__main__":
    main()
