"""A task that retries, and is charged once: Celery, one hold for all attempts of a task.

`celery -A celery_worker worker` runs it; `python celery_worker.py` shows it without a broker. The
model and the table of results are stand-ins.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from celery import Celery, Task

import tillroll

MOST_UNITS = 40  # the most that one image can cost

app = Celery(
    "celery_worker",
    broker=os.environ.get("CELERY_BROKER", "memory://"),
    backend=os.environ.get("CELERY_BACKEND", "cache+memory://"),
)
app.conf.task_acks_late = True  # a task whose worker died is delivered again
app.conf.task_reject_on_worker_lost = True
RESULTS: dict[str, dict[str, str]] = {}  # by request id: a table of your database


@functools.cache
def ledger() -> tillroll.Ledger:
    """Return the one ledger of this process, opened when its first task needs it."""
    return tillroll.open(os.environ.get("TILLROLL_DATABASE_URL", "sqlite:///credits.db"))


class ModelBusyError(Exception):
    """The model did nothing, and may be asked again."""


def model(prompt: str, key: str, attempt: int) -> tuple[str, int]:
    """Stand in for a model that is busy as often as the prompt says, or hangs."""
    if "hang" in prompt:
        raise TimeoutError
    if attempt < prompt.count("busy"):
        raise ModelBusyError
    return f"https://images.example/{key}.png", min(20 + len(prompt), MOST_UNITS)


@app.task(bind=True, max_retries=3, default_retry_delay=1, autoretry_for=(tillroll.StoreError,))
def generate(self: Task, account: str, prompt: str) -> dict[str, Any]:
    """Make one image. The task's id is the request_id; its retries and redeliveries keep it."""
    key = self.request.id
    try:
        hold = ledger().hold(
            account, "image.generate", units=MOST_UNITS, expires_in="1h", request_id=key
        )
    except tillroll.Refused as refusal:
        return refusal.to_dict()  # an answer, not a failure: trying again would not help

    if hold.replayed:
        state = hold.state
        if state not in ("open", "settled"):
            return {"code": state, "message": f"this task is over, its hold is {state}"}

    if key not in RESULTS:
        RESULTS[key] = work(self, hold, prompt)  # first the result is kept, then it is charged
    hold.settle(units=RESULTS[key]["units"])  # of a settled hold: changes nothing
    return RESULTS[key]


def work(task: Task, hold: tillroll.OpenHold, prompt: str) -> dict[str, str]:
    """Ask the model. Not under `with hold`: a retry must find the hold open."""
    try:
        url, units = model(prompt, hold.id, task.request.retries)
    except ModelBusyError as busy:
        if task.request.retries < task.max_retries:
            raise task.retry(exc=busy) from busy
        hold.release(reason="the model stayed busy")
        raise
    except TimeoutError:
        hold.mark_in_doubt(reason="the model did not answer", deadline_in="6h")
        raise
    except Exception:
        hold.release(reason="the model failed")
        raise
    return {"url": url, "units": str(units)}


def main() -> None:
    """Show a task that is busy twice, the same delivered again, one that hangs, one refused."""
    os.environ.setdefault("TILLROLL_DATABASE_URL", "memory://")
    app.conf.task_always_eager = True
    ledger().grant("acme", 100, request_id="pay-1")

    for key, prompt in [
        ("task-1", "busy busy fox"),
        ("task-1", "busy busy fox"),
        ("task-2", "hang, please"),
        ("task-3", "a green fox"),
    ]:
        result = generate.apply_async(("acme", prompt), task_id=key)
        answer = result.result if result.successful() else {"message": repr(result.result)}
        print(key, result.state, answer.get("url") or answer["message"])

    for key in ("task-1", "task-2", "task-3"):
        story = ledger().explain(key)
        print(key, story["outcome"], "charged", story["charged"], "repeats", story["replays"])
    balance = ledger().balance("acme")
    print("available", balance.available, "held", balance.held)


if __name__ == "__main__":
    main()
