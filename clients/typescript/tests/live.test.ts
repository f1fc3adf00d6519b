// Against a service that runs: TILLROLL_URL is where, TILLROLL_KEY an admin key of it.

import assert from "node:assert/strict";
import { test } from "node:test";

import { idempotencyKey, Refused, Tillroll } from "../src/index.js";

const { TILLROLL_URL: baseUrl, TILLROLL_KEY: apiKey } = process.env;
const there = baseUrl !== undefined && apiKey !== undefined;
const client = new Tillroll({ baseUrl: baseUrl ?? "http://nowhere", apiKey: apiKey ?? "" });

async function grant(account: string, units: number): Promise<void> {
  const { error } = await client.http.POST("/v1/accounts/{account}/grants", {
    params: {
      path: { account },
      header: { "Idempotency-Key": idempotencyKey(`grant-${account}`) },
    },
    body: { units },
  });
  assert.equal(error, undefined);
}

test("a charge happens once", { skip: !there }, async () => {
  await grant("ts/größe", 100);
  const first = await client.consume("ts/größe", { units: "2.5" }, { requestId: "jöb-1" });
  const again = await client.consume("ts/größe", { units: "2.5" }, { requestId: "jöb-1" });
  assert.deepEqual([first.replayed, again.replayed], [false, true]);
  assert.deepEqual({ ...again, replayed: false }, first);
  assert.equal(first.request_id, "jöb-1");
  assert.equal((await client.balance("ts/größe")).available, "97.5");
});

test("a hold ends by settle or by release", { skip: !there }, async () => {
  await grant("ts-holds", 100);
  const hold = await client.hold("ts-holds", { units: 40, expires_in: "5m" });
  assert.equal((await client.balance("ts-holds")).held, "40");
  const settled = await hold.settle({ units: "12.5" });
  assert.deepEqual([settled.available, settled.held], ["87.5", "0"]);
  const other = await client.hold("ts-holds", { units: 40 });
  await other.markInDoubt();
  assert.equal((await other.release()).available, "87.5");
  const done = await other.settle({ units: 1 }).catch((error: unknown) => error);
  assert.ok(done instanceof Refused);
  assert.deepEqual([done.code, done.status], ["hold_finalized", 409]);
});

test("a refusal says what is missing", { skip: !there }, async () => {
  await grant("ts-poor", 5);
  const refused = await client.consume("ts-poor", { units: 7 }).catch((error: unknown) => error);
  assert.ok(refused instanceof Refused);
  assert.deepEqual([refused.code, refused.status, refused.written],
    ["insufficient_units", 402, "nothing"]);
  assert.deepEqual([refused.problem.needed, refused.problem.available], ["7", "5"]);
});

test("an account without a history has nothing", { skip: !there }, async () => {
  const balance = await client.balance("ts-nobody");
  assert.deepEqual([balance.available, balance.seq], ["0", 0]);
});

test("an endpoint of webhooks is made once, changed and removed", { skip: !there }, async () => {
  const header = { "Idempotency-Key": idempotencyKey("ts-endpoint") };
  const body = { url: "https://books.example.com/hooks", events: ["payment.*"] };
  const made = await client.http.POST("/v1/webhooks", { params: { header }, body });
  const again = await client.http.POST("/v1/webhooks", { params: { header }, body });
  assert.match(made.data?.secret ?? "", /^whsec_/);
  assert.deepEqual([again.data?.id, again.data?.secret], [made.data?.id, null]);
  const path = { endpoint_id: made.data?.id ?? "" };
  const changed = await client.http.PATCH("/v1/webhooks/{endpoint_id}", {
    params: { path },
    body: { events: ["topup.*"] },
  });
  assert.deepEqual(changed.data?.events, ["topup.*"]);
  const sent = await client.http.POST("/v1/deliveries/send-again", { body: {} });
  assert.equal(sent.data?.queued, 0);
  const gone = await client.http.DELETE("/v1/webhooks/{endpoint_id}", { params: { path } });
  assert.equal(gone.data?.id, path.endpoint_id);
});

test("who has no payments has no checkout", { skip: !there }, async () => {
  await grant("ts-shop", 1);
  const { error } = await client.http.POST("/v1/accounts/{account}/checkouts", {
    params: {
      path: { account: "ts-shop" },
      header: { "Idempotency-Key": idempotencyKey("ts-order") },
    },
    body: { product: "starter" },
  });
  assert.equal(error?.code, "payments_not_set_up");
});

test("a key that is none opens nothing", { skip: !there }, async () => {
  const other = new Tillroll({ baseUrl: baseUrl ?? "", apiKey: `tr_live_${"x".repeat(43)}` });
  await assert.rejects(other.balance("acme"), { code: "invalid_api_key", status: 401 });
});
