// The example for the AI SDK, with the SDK itself, a model that is made up and a service that runs.

import assert from "node:assert/strict";
import { before, test } from "node:test";

import { APICallError, type LanguageModelV3Usage } from "@ai-sdk/provider";
import { generateText, simulateReadableStream, streamText, wrapLanguageModel } from "ai";
import { MockLanguageModelV3 } from "ai/test";

import { prepaid } from "../examples/ai-sdk.js";
import { idempotencyKey, Refused, Tillroll } from "../src/index.js";

const { TILLROLL_URL: baseUrl, TILLROLL_KEY: apiKey } = process.env;
const there = baseUrl !== undefined && apiKey !== undefined;
const tillroll = new Tillroll({ baseUrl: baseUrl ?? "http://nowhere", apiKey: apiKey ?? "" });
const usage: LanguageModelV3Usage = {
  inputTokens: { total: 10, noCache: 10, cacheRead: 0, cacheWrite: 0 },
  outputTokens: { total: 20, text: 20, reasoning: 0 },
};
const finish = { type: "finish", usage, finishReason: { unified: "stop", raw: "stop" } } as const;

before(async () => {
  if (!there) return;
  const { error } = await tillroll.http.POST("/v1/prices", {
    body: {
      prices: [
        {
          operation: "llm.chat",
          rates: {
            input_tokens: { units: "1", per: 10 },
            output_tokens: { units: "1", per: 10 },
          },
        },
      ],
      author: "test",
      reason: "to have prices",
    },
  });
  assert.equal(error, undefined, JSON.stringify(error));
});

async function grant(account: string, units: number): Promise<void> {
  await tillroll.http.POST("/v1/accounts/{account}/grants", {
    params: {
      path: { account },
      header: { "Idempotency-Key": idempotencyKey(`grant-${account}`) },
    },
    body: { units },
  });
}

function wrapped(account: string, mock: ConstructorParameters<typeof MockLanguageModelV3>[0]) {
  const middleware = prepaid({ tillroll, account, mostTokens: 100 });
  return wrapLanguageModel({ model: new MockLanguageModelV3(mock), middleware });
}

test("text is charged by what it used", { skip: !there }, async () => {
  await grant("ai-text", 1_000);
  let held = "";
  const model = wrapped("ai-text", {
    doGenerate: async () => {
      held = (await tillroll.balance("ai-text")).held;
      const { finishReason } = finish;
      return { content: [{ type: "text", text: "Hi" }], finishReason, usage, warnings: [] };
    },
  });
  const { text } = await generateText({ model, prompt: "Hello" });
  assert.equal(text, "Hi");
  assert.ok(Number(held) > 10); // 100 tokens of the answer, and the prompt
  const balance = await tillroll.balance("ai-text");
  assert.deepEqual([balance.used, balance.held], ["3", "0"]);
});

test("a stream is charged when it has ended", { skip: !there }, async () => {
  await grant("ai-stream", 1_000);
  const model = wrapped("ai-stream", {
    doStream: async () => ({
      stream: simulateReadableStream({
        chunks: [
          { type: "text-start", id: "1" },
          { type: "text-delta", id: "1", delta: "Hi" },
          { type: "text-end", id: "1" },
          finish,
        ],
      }),
    }),
  });
  assert.equal(await streamText({ model, prompt: "Hello" }).text, "Hi");
  const balance = await tillroll.balance("ai-stream");
  assert.deepEqual([balance.used, balance.held], ["3", "0"]);
});

test("without units the model is not asked, and once only", { skip: !there }, async () => {
  let asked = 0;
  const model = wrapped("ai-poor", {
    doGenerate: async () => {
      asked += 1;
      throw new Error("not reached");
    },
  });
  const refused = await generateText({ model, prompt: "Hello" }).catch((error: unknown) => error);
  assert.ok(refused instanceof Refused);
  assert.equal(refused.code, "insufficient_units");
  assert.equal(asked, 0);
});

test("a no of the provider costs nothing, silence leaves doubt", { skip: !there }, async () => {
  await grant("ai-fails", 1_000);
  const how = { url: "", requestBodyValues: {}, message: "no" };
  const failures = [
    new APICallError({ ...how, statusCode: 400, isRetryable: false }),
    new APICallError({ ...how, isRetryable: false }),
  ];
  const model = wrapped("ai-fails", { doGenerate: () => Promise.reject(failures.shift()) });
  await assert.rejects(generateText({ model, prompt: "Hello", maxRetries: 0 }));
  assert.equal((await tillroll.balance("ai-fails")).held, "0");
  await assert.rejects(generateText({ model, prompt: "Hello", maxRetries: 0 }));
  const { held, holds } = await tillroll.balance("ai-fails");
  assert.notEqual(held, "0");
  assert.deepEqual(holds.map((hold) => hold["state"]), ["in_doubt"]);
});
