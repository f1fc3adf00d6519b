"""What the service is measured beside: a bare route that does nothing, and the usual way.

Each is an ASGI application for the same server with the same settings. `noop` reads the body and
answers a receipt's worth of bytes. The two others are the same charge as a careful author of an
ordinary FastAPI application writes it: a pool, one transaction with the check in the UPDATE, the
id unique in the table of charges.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import asyncpg
from fastapi import FastAPI, Header
from fastapi.responses import JSONResponse
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BODY = b'{"ok":true}' + b" " * 700
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(BODY)).encode()),
    ],
}
TABLES = """
CREATE TABLE balances (account TEXT PRIMARY KEY, units BIGINT NOT NULL);
CREATE TABLE charges (
    account TEXT NOT NULL,
    request_id TEXT NOT NULL,
    units BIGINT NOT NULL,
    operation TEXT,
    charged_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (account, request_id)
);
"""


async def noop(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer every request with the same bytes."""
    if scope["type"] != "http":
        await receive()
        await send({"type": f"{scope['type']}.startup.complete"})
        await receive()
        await send({"type": f"{scope['type']}.shutdown.complete"})
        return
    await receive()
    await send(START)
    await send({"type": "http.response.body", "body": BODY})


class Charge(BaseModel):
    """The body of a charge."""

    units: int
    operation: str | None = None


Key = Annotated[str, Header(alias="Idempotency-Key")]
LEFT = "UPDATE balances SET units = units - {0} WHERE account = {1} AND units >= {0}"


def usual_postgres() -> FastAPI:
    """Return the usual way on PostgreSQL, by asyncpg."""

    @asynccontextmanager
    async def live(app: FastAPI) -> AsyncIterator[None]:
        async with asyncpg.create_pool(os.environ["BENCH_DSN"], min_size=16, max_size=16) as pool:
            app.state.pool = pool
            yield

    app = FastAPI(lifespan=live)

    @app.post("/v1/accounts/{account}/consume")
    async def consume(account: str, charge: Charge, key: Key) -> Any:
        async with app.state.pool.acquire() as connection, connection.transaction():
            left = await connection.fetchval(
                LEFT.format("$1", "$2") + " RETURNING units", charge.units, account
            )
            if left is None:
                return JSONResponse({"error": "insufficient"}, 402)
            await connection.execute(
                "INSERT INTO charges (account, request_id, units, operation) "
                "VALUES ($1, $2, $3, $4)",
                *(account, key, charge.units, charge.operation),
            )
        return {"account": account, "available": left}

    return app


def usual_sqlite() -> FastAPI:
    """Return the usual way on SQLite: a connection a thread, a transaction a charge."""
    app = FastAPI()
    local = threading.local()

    def connection() -> sqlite3.Connection:
        if not hasattr(local, "connection"):
            local.connection = sqlite3.connect(
                os.environ["BENCH_DSN"], timeout=30, isolation_level=None
            )
            local.connection.execute("PRAGMA synchronous = FULL")
        return local.connection

    @app.post("/v1/accounts/{account}/consume")
    def consume(account: str, charge: Charge, key: Key) -> Any:
        db = connection()
        db.execute("BEGIN IMMEDIATE")
        try:
            row = db.execute(
                LEFT.format("?1", "?2") + " RETURNING units", (charge.units, account)
            ).fetchone()
            if row is None:
                db.execute("ROLLBACK")
                return JSONResponse({"error": "insufficient"}, 402)
            db.execute(
                "INSERT INTO charges (account, request_id, units, operation) VALUES (?, ?, ?, ?)",
                (account, key, charge.units, charge.operation),
            )
            db.execute("COMMIT")
        except BaseException:
            db.rollback()
            raise
        return {"account": account, "available": row[0]}

    return app
