"""Worlds without a network: something that carries out the steps of a conversation by a script."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from tillroll.client.conversation import Call, Do, Lost, Reply, Rules, Send, Sleep, Steps

T = TypeVar("T")


def reply(status: int = 200, body: object = None, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, named, b"" if body is None else json.dumps(body).encode())


def problem(status: int, code: str, **more: object) -> Reply:
    body = {"code": code, "status": status, "detail": f"it is {code}", **more}
    headers = {"retry_after": str(more["after"])} if "after" in more else {}
    return reply(status, body, **headers)


UNREACHED = Lost(sent=False, why="refused")
UNHEARD = Lost(sent=True, why="reset")
WRITE = Call(verb="consume", method="POST", path="/v1/x", body=b"{}", request_id="r", writes=True)
LOOK = Call(verb="balance", method="GET", path="/v1/x")


class World:
    """Carries out steps; time passes only when it is slept away, or taken by an answer."""

    def __init__(self, heard: Iterable[Reply | Lost] = (), timeout: float = 30.0) -> None:
        self.now = 1_000.0
        self.sent: list[Call] = []
        self.given: list[float] = []  # the seconds that each attempt was given
        self.slept: list[float] = []
        self.rules = Rules(timeout=timeout, clock=lambda: self.now, chance=lambda: 1.0)
        self._heard: Iterator[Reply | Lost] = iter(heard)

    def answer(self, call: Call) -> Reply | Lost:  # noqa: ARG002 - a script does not listen
        return next(self._heard)

    def carry_out(self, step: Any) -> object:
        match step:
            case Send(call, seconds):
                self.sent.append(call)
                self.given.append(seconds)
                return self.answer(call)
            case Sleep(seconds):
                self.slept.append(seconds)
                self.now += seconds
                return None
            case Do(work):
                return work()
        raise AssertionError(f"no step: {step!r}")

    def run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    heard = self.carry_out(step)
                except Exception as error:  # noqa: BLE001 - as the drivers do
                    step = steps.throw(error)
                else:
                    step = steps.send(heard)
        except StopIteration as end:
            result: T = end.value
            return result


class Answering(World):
    """A world whose service is a function."""

    def __init__(self, service: Callable[[Call], Reply | Lost], timeout: float = 30.0) -> None:
        super().__init__((), timeout)
        self._service = service

    def answer(self, call: Call) -> Reply | Lost:
        return self._service(call)
