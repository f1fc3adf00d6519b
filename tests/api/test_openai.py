"""The official `openai` client's own retries, met with our answers: a refusal is sent once."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest

from tillroll.ledger.errors import REFUSALS, IdempotencyConflict, Refused
from tillroll.wire import problems
from tillroll.wire.answers import render


class Gateway(BaseHTTPRequestHandler):
    """A gateway that answers every completion with one of our problems."""

    answer: tuple[int, dict[str, str], bytes]
    asked = 0

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        type(self).asked += 1
        status, headers, body = self.answer
        self.send_response(status)
        for name, value in {**headers, "content-type": "application/problem+json"}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def gateway():
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Once", (Gateway,), {"asked": 0}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join(60)
    server.server_close()


def ask(gateway, problem):
    handler = gateway.RequestHandlerClass
    shown = problems.document(problem)
    handler.answer = (shown["status"], problems.headers_of(problem), render(shown))
    base = f"http://127.0.0.1:{gateway.server_address[1]}/v1"
    with (
        openai.OpenAI(api_key="k", base_url=base, max_retries=2) as client,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert json.loads(caught.value.response.text)["code"] == problem.code
    return handler.asked


# All but `hold_finalized`, a 409: no completion is ever answered with it.
KINDS = [kind for code, kind in REFUSALS.items() if code != "hold_finalized"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
def test_a_refusal_is_sent_once(gateway, kind):
    assert issubclass(kind, Refused)
    assert ask(gateway, kind("no")) == 1


def test_a_conflict_of_ids_is_sent_once(gateway):
    assert ask(gateway, IdempotencyConflict("used before")) == 1
