// What is repeated, for how long, and how: against a service that is made up.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Refused, Tillroll, TillrollError, Unanswered } from "../src/index.js";
import { PATIENCE, persist } from "../src/retry.js";

const RECEIPT = { request_id: "job-1", available: "5" };

function json(status: number, body: unknown, headers: Record<string, string> = {}): Response {
  return new Response(JSON.stringify(body), {
    status,
    headers: { "content-type": "application/json", ...headers },
  });
}

function problem(code: string, status: number): object {
  return { type: `/problems/${code}`, title: code, status, detail: code, instance: "", code,
    written: "nothing", request_id: "job-1" };
}

/** A service that gives these answers in turn, the last one for ever. */
function serviceOf(...answers: (() => Response)[]) {
  const seen: { key: string | null; body: string; url: string }[] = [];
  const fetch = async (request: Request): Promise<Response> => {
    const key = request.headers.get("idempotency-key");
    seen.push({ key, body: await request.text(), url: request.url });
    const answer = answers[Math.min(seen.length, answers.length) - 1];
    assert.ok(answer);
    return answer();
  };
  const client = new Tillroll({ apiKey: "k", baseUrl: "http://credits", fetch, pauseMs: 1 });
  return { client, seen };
}

for (const status of [408, 429, 502, 503, 504]) {
  test(`${status} is repeated with the same id and the same body`, async () => {
    const { client, seen } = serviceOf(
      () => json(status, problem("busy", status)),
      () => { throw new TypeError("connection reset"); },
      () => json(200, RECEIPT),
    );
    const receipt = await client.consume("acme", { units: 1 });
    assert.equal(receipt.available, "5");
    assert.equal(seen.length, 3);
    assert.equal(new Set(seen.map((call) => call.key)).size, 1);
    assert.match(seen[0]?.key ?? "", /^[0-9a-f-]{36}$/);
    assert.deepEqual(new Set(seen.map((call) => call.body)), new Set(['{"units":1}']));
  });
}

for (const status of [402, 409, 422]) {
  test(`${status} is an answer`, async () => {
    const body = { ...problem("insufficient_units", status), ways_out: [], replayed: false };
    const { client, seen } = serviceOf(() => json(status, body));
    await assert.rejects(client.consume("acme", { units: 1 }, { requestId: "job-1" }), (error) => {
      assert.ok(error instanceof Refused);
      assert.equal(error.code, "insufficient_units");
      assert.equal(error.requestId, "job-1");
      return true;
    });
    assert.equal(seen.length, 1);
  });
}

test("what a payment provider refuses is an answer", async () => {
  const { client, seen } = serviceOf(() => json(502, problem("provider_refused", 502)));
  const { error } = await client.http.POST("/v1/accounts/{account}/checkouts", {
    params: { path: { account: "acme" }, header: { "Idempotency-Key": "order-1" } },
    body: { product: "starter" },
  });
  assert.equal(error?.code, "provider_refused");
  assert.equal(seen.length, 1);
});

test("it gives up after so many tries, with the last answer", async () => {
  const { client, seen } = serviceOf(() => json(503, problem("overloaded", 503)));
  await assert.rejects(client.hold("acme", { units: 1 }, { tries: 3 }), (error) => {
    assert.ok(error instanceof TillrollError);
    assert.deepEqual([error.code, error.status], ["overloaded", 503]);
    return true;
  });
  assert.equal(seen.length, 3);
});

test("a write that nobody answered is unknown, a read is nothing", async () => {
  const { client } = serviceOf(() => { throw new TypeError("connection refused"); });
  const written = async (call: Promise<unknown>): Promise<unknown> => {
    const error = await call.then(() => assert.fail(), (problem: unknown) => problem);
    assert.ok(error instanceof Unanswered);
    return [error.written, error.requestId];
  };
  const how = { tries: 2, requestId: "job-1" };
  assert.deepEqual(await written(client.consume("acme", {}, how)), ["unknown", "job-1"]);
  assert.deepEqual(await written(client.balance("acme", "credits", how)), ["nothing", null]);
});

test("a page of a proxy is no problem of ours", async () => {
  const { client } = serviceOf(() => new Response("<h1>Bad gateway</h1>", { status: 500 }));
  await assert.rejects(client.consume("acme", {}), { code: "http_500", written: "unknown" });
});

test("pauses are drawn from a doubling range, and heed Retry-After and the deadline", async () => {
  const pauses: number[] = [];
  let now = 0;
  const world = {
    fetch: () => Promise.resolve(json(503, {}, pauses.length === 2 ? { "retry-after": "3" } : {})),
    random: () => 0.5,
    now: () => now,
    sleep: (ms: number) => {
      pauses.push(ms);
      now += ms;
      return Promise.resolve();
    },
  };
  const patience = { ...PATIENCE, tries: 100, pauseMs: 100, pauseMaxMs: 1_000, deadlineMs: 5_000 };
  const response = await persist(new Request("http://credits"), patience, world);
  assert.equal(response.status, 503);
  assert.deepEqual(pauses.slice(0, 5), [50, 100, 3_200, 400, 500]);
  assert.ok(now < 5_000);
});

test("who changes his mind is not kept waiting", async () => {
  const stop = new AbortController();
  const { client, seen } = serviceOf(() => {
    setTimeout(() => { stop.abort(); }, 5);
    return json(503, {});
  });
  const how = { signal: stop.signal, pauseMs: 60_000, deadlineMs: 1e9 };
  await assert.rejects(client.consume("acme", {}, how), Unanswered);
  assert.equal(seen.length, 1);
});

test("ids go into the address and the header as they are", async () => {
  const { client, seen } = serviceOf(() => json(200, RECEIPT));
  await client.settle("a/b ?", "h#1", {}, { requestId: "größe" });
  assert.equal(seen[0]?.url, "http://credits/v1/accounts/a%2Fb%20%3F/holds/h%231/settle");
  const bytes = Uint8Array.from(seen[0].key ?? "", (character) => character.charCodeAt(0));
  assert.equal(new TextDecoder().decode(bytes), "größe");
  await assert.rejects(client.consume("..", {}), RangeError);
  await assert.rejects(client.consume("acme", {}, { requestId: " job" }), RangeError);
  assert.equal(seen.length, 1);
});
