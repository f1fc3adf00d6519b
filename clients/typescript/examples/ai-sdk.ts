/**
 * Prepaid credits around the Vercel AI SDK: a middleware that holds units before the model is
 * asked and settles with the tokens that were really used.
 *
 *     const model = wrapLanguageModel({
 *       model: openai("gpt-5"),
 *       middleware: prepaid({ tillroll, account: "acme", mostTokens: 4_000 }),
 *     });
 *     await generateText({ model, prompt: "..." });
 *
 * Prices are those of your price book, by operation, model and the meters `input_tokens` and
 * `output_tokens`. A caller without units gets `Refused` (402), which the SDK does not repeat.
 */

import type {
  LanguageModelV3,
  LanguageModelV3Middleware,
  LanguageModelV3StreamPart,
  LanguageModelV3Usage,
} from "@ai-sdk/provider";
import { APICallError } from "@ai-sdk/provider";

import type { Hold, Tillroll } from "../src/index.js"; // in your program: from "tillroll"

export interface Prepaid {
  tillroll: Tillroll;
  account: string;
  /** The name in the price book. */
  operation?: string;
  /** The most tokens that an answer may have, where the call does not say. */
  mostTokens: number;
  /** The id of the event that a call is made for. Without it every call is an event of its own. */
  requestId?: () => string;
}

export function prepaid(options: Prepaid): LanguageModelV3Middleware {
  return {
    specificationVersion: "v3",

    wrapGenerate: async ({ doGenerate, params, model }) => {
      const hold = await holdFor(options, model, params);
      const result = await orEnd(hold, doGenerate);
      await hold.settle({ meters: metersOf(result.usage) });
      return result;
    },

    wrapStream: async ({ doStream, params, model }) => {
      const hold = await holdFor(options, model, params);
      const { stream, ...rest } = await orEnd(hold, doStream);
      return { stream: settled(hold, stream), ...rest };
    },
  };
}

/** Holds what the call can cost at the most. */
function holdFor(
  { tillroll, account, operation = "llm.chat", mostTokens, requestId }: Prepaid,
  model: LanguageModelV3,
  params: { prompt: unknown; maxOutputTokens?: number | undefined },
): Promise<Hold> {
  // No token is shorter than a byte of the prompt, so this many there cannot be more of.
  const inputs = new TextEncoder().encode(JSON.stringify(params.prompt)).length;
  const meters = {
    input_tokens: inputs,
    output_tokens: params.maxOutputTokens ?? mostTokens,
  };
  const body = { operation, model: model.modelId, meters };
  return tillroll.hold(account, body, requestId === undefined ? {} : { requestId: requestId() });
}

/** Asks the model; a hold whose call fails is ended, as far as one can know. */
async function orEnd<T>(hold: Hold, ask: () => PromiseLike<T>): Promise<T> {
  try {
    return await ask();
  } catch (error) {
    await end(hold, error);
    throw error;
  }
}

async function end(hold: Hold, error: unknown): Promise<void> {
  const refused = APICallError.isInstance(error) && (error.statusCode ?? 500) < 500;
  // The provider said no: nothing was done. Anything else may have been done, and paid for.
  await (refused ? hold.release() : hold.markInDoubt()).catch(() => undefined); // the deadline will
}

/** Passes a stream on, and settles when it has told what was used. */
function settled(
  hold: Hold,
  stream: ReadableStream<LanguageModelV3StreamPart>,
): ReadableStream<LanguageModelV3StreamPart> {
  const reader = stream.getReader();
  let done = false;
  return new ReadableStream({
    async pull(controller) {
      try {
        const { done: ended, value } = await reader.read();
        if (ended) {
          if (!done) await hold.markInDoubt();
          controller.close();
          return;
        }
        if (value.type === "finish") {
          await hold.settle({ meters: metersOf(value.usage) });
          done = true;
        }
        controller.enqueue(value);
      } catch (error) {
        if (!done) await end(hold, error);
        controller.error(error);
      }
    },
    async cancel(reason) {
      await reader.cancel(reason);
      if (!done) await hold.markInDoubt(); // whoever hangs up was served so far
    },
  });
}

function metersOf(usage: LanguageModelV3Usage): { input_tokens: number; output_tokens: number } {
  return {
    input_tokens: usage.inputTokens.total ?? 0,
    output_tokens: usage.outputTokens.total ?? 0,
  };
}
