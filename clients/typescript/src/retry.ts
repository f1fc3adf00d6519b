/**
 * One call, made until it is answered: the same request again, its Idempotency-Key included, after
 * a pause that is drawn anew each time ("full jitter"), until a deadline.
 *
 * Repeated are 408, 429, 502, 503, 504 and calls that nobody answered. Never 402, 409 or 422, nor
 * what a payment provider refused: these are answers.
 */

export interface Patience {
  /** How many tries at most, the first included. */
  tries: number;
  /** Milliseconds from the first try until giving up. */
  deadlineMs: number;
  /** Milliseconds that one try may take. */
  tryMs: number;
  /** The longest pause before the second try; each further one may be twice as long. */
  pauseMs: number;
  /** The longest pause of all. */
  pauseMaxMs: number;
}

export const PATIENCE: Patience = {
  tries: 6,
  deadlineMs: 30_000,
  tryMs: 10_000,
  pauseMs: 100,
  pauseMaxMs: 5_000,
};

/** What a retry takes from the world around it. */
export interface World {
  fetch: (request: Request) => Promise<Response>;
  /** A number from 0 up to 1. */
  random: () => number;
  now: () => number;
  /** Resolves after so many milliseconds; rejects when the signal says so. */
  sleep: (ms: number, signal: AbortSignal) => Promise<void>;
}

const AGAIN: ReadonlySet<number> = new Set([408, 429, 502, 503, 504]);

/** Makes a call until it is answered, as patiently as asked. Throws what the last try threw. */
export async function persist(
  request: Request,
  patience: Patience,
  world: World,
): Promise<Response> {
  const until = world.now() + patience.deadlineMs;
  for (let tried = 1; ; tried += 1) {
    const left = Math.max(1, Math.min(patience.tryMs, until - world.now()));
    const signal = AbortSignal.any([request.signal, AbortSignal.timeout(left)]);
    let response: Response | undefined;
    let failure: unknown;
    try {
      // The body of a request is read once, so each try has a copy.
      response = await whole(await world.fetch(new Request(request.clone(), { signal })));
      if (!AGAIN.has(response.status) || (await isRefusedByProvider(response))) return response;
    } catch (error) {
      if (request.signal.aborted) throw error; // the caller has changed his mind
      failure = error;
    }
    const pause = pauseBefore(tried + 1, response, patience, world.random);
    if (tried >= patience.tries || world.now() + pause >= until) {
      if (response !== undefined) return response;
      throw failure;
    }
    await world.sleep(pause, request.signal);
  }
}

/** Whether a 502 is no gateway's trouble but the payment provider's no, which is an answer. */
async function isRefusedByProvider(response: Response): Promise<boolean> {
  if (response.status !== 502) return false;
  const said: unknown = await response.clone().json().catch(() => null);
  return (said as { code?: unknown } | null)?.code === "provider_refused";
}

/** Reads an answer to its end, since a connection may also break in the middle of it. */
async function whole(response: Response): Promise<Response> {
  const streamed = response.headers.get("content-type")?.startsWith("text/event-stream") ?? false;
  if (streamed || response.body === null) return response;
  const { status, statusText, headers } = response;
  return new Response(await response.arrayBuffer(), { status, statusText, headers });
}

function pauseBefore(
  nth: number,
  response: Response | undefined,
  patience: Patience,
  random: () => number,
): number {
  const most = Math.min(patience.pauseMaxMs, patience.pauseMs * 2 ** (nth - 2));
  const asked = Number(response?.headers.get("retry-after") ?? "0");
  return (asked > 0 ? asked * 1_000 : 0) + random() * most;
}

export function sleep(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = (): void => {
      clearTimeout(timer);
      reject(signal.reason as Error);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, ms);
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
  });
}
