/**
 * The client of tillroll: prepaid credits, every charge once, never below zero.
 *
 * `Tillroll` has a method for each thing that is done all day, and `http` for all of the API, typed
 * from its description. Every write has a request id, which is made once and kept across tries.
 */

import createClient, { type Client } from "openapi-fetch";

import { errorOf, TillrollError, Unanswered } from "./errors.js";
import { PATIENCE, type Patience, persist, sleep, type World } from "./retry.js";
import type { components, paths } from "./schema.js";

export { type Problem, type Refusal, type RefusalCode, type Written } from "./errors.js";
export { Refused, TillrollError, Unanswered } from "./errors.js";
export type { Patience } from "./retry.js";
export type { components, operations, paths } from "./schema.js";

type Shapes = components["schemas"];
export type Receipt = Shapes["Receipt"];
export type Balance = Shapes["Balance"];

export interface Options extends Partial<Patience> {
  /** An API key, `tr_live_...` or `tr_test_...`. Never give one to a browser. */
  apiKey: string;
  /** Where the service is, such as `https://credits.internal`. */
  baseUrl: string;
  /** For tests, and for what stands between: a proxy, a certificate. */
  fetch?: (request: Request) => Promise<Response>;
}

/** What may be said of one call. */
export interface How extends Partial<Patience> {
  /** Your id of this event: repeat it to ask again. Made for you if left out. */
  requestId?: string;
  /** Ends the call; what was sent may have been written. */
  signal?: AbortSignal;
}

export class Tillroll {
  /**
   * All of the API, typed; answers are `{ data, error, response }`. It repeats as the rest does.
   * Ids go into the header by `idempotencyKey`.
   */
  readonly http: Client<paths>;
  readonly #patience: Patience;
  readonly #world: World;

  constructor(options: Options) {
    this.#patience = patienceOf(options, PATIENCE);
    this.#world = {
      fetch: options.fetch ?? ((request) => globalThis.fetch(request)),
      random: Math.random,
      now: () => performance.now(),
      sleep,
    };
    this.http = createClient<paths>({
      baseUrl: options.baseUrl,
      headers: { authorization: `Bearer ${options.apiKey}` },
      redirect: "manual", // a key goes to nobody else
      pathSerializer: address,
      fetch: (request) => persist(request, this.#patience, this.#world),
    });
  }

  /** Takes units: an amount, or an operation and its meters, priced by the price book. */
  async consume(account: string, body: Shapes["Consume"], how: How = {}): Promise<Receipt> {
    return this.#write(how, ({ header, ...init }) =>
      this.http.POST("/v1/accounts/{account}/consume", {
        ...init,
        params: { path: { account }, header },
        body,
      }),
    );
  }

  /** Reserves the most that some work can cost, before it is done. */
  async hold(account: string, body: Shapes["Hold"], how: How = {}): Promise<Hold> {
    const receipt = await this.#write(how, ({ header, ...init }) =>
      this.http.POST("/v1/accounts/{account}/holds", {
        ...init,
        params: { path: { account }, header },
        body,
      }),
    );
    return new Hold(this, account, receipt);
  }

  /** Takes what was really used of a hold and gives the rest back. */
  async settle(
    account: string,
    holdId: string,
    body: Shapes["Settle"] = {},
    how: How = {},
  ): Promise<Receipt> {
    return this.#write(how, ({ header, ...init }) =>
      this.http.POST("/v1/accounts/{account}/holds/{hold_id}/settle", {
        ...init,
        params: { path: { account, hold_id: holdId }, header },
        body,
      }),
    );
  }

  /** Gives all of a hold back. */
  async release(
    account: string,
    holdId: string,
    body: Shapes["Write"] = {},
    how: How = {},
  ): Promise<Receipt> {
    return this.#write(how, ({ header, ...init }) =>
      this.http.POST("/v1/accounts/{account}/holds/{hold_id}/release", {
        ...init,
        params: { path: { account, hold_id: holdId }, header },
        body,
      }),
    );
  }

  /** Says that nobody knows whether the work was done; its deadline decides, or a probe. */
  async markInDoubt(
    account: string,
    holdId: string,
    body: Shapes["InDoubt"] = {},
    how: How = {},
  ): Promise<Receipt> {
    return this.#write(how, ({ header, ...init }) =>
      this.http.POST("/v1/accounts/{account}/holds/{hold_id}/in-doubt", {
        ...init,
        params: { path: { account, hold_id: holdId }, header },
        body,
      }),
    );
  }

  /** Returns the balance of a wallet; an account without a history has zeros. */
  async balance(account: string, wallet = "credits", how: How = {}): Promise<Balance> {
    try {
      return await this.#read(how, (init) =>
        this.http.GET("/v1/accounts/{account}/balance", {
          ...init,
          params: { path: { account }, query: { wallet } },
        }),
      );
    } catch (error) {
      if (error instanceof TillrollError && error.code === "not_found") {
        return nothing(account, wallet);
      }
      throw error;
    }
  }

  async #write<T>(how: How, act: (init: Init & Keyed) => Promise<Answer<T>>): Promise<T> {
    const requestId = how.requestId ?? crypto.randomUUID();
    return finished(requestId, () =>
      act({ ...this.#init(how), header: { "Idempotency-Key": idempotencyKey(requestId) } }),
    );
  }

  async #read<T>(how: How, act: (init: Init) => Promise<Answer<T>>): Promise<T> {
    return finished(null, () => act(this.#init(how)));
  }

  #init(how: How): Init {
    const patience = patienceOf(how, this.#patience);
    return {
      fetch: (request) => persist(request, patience, this.#world),
      ...(how.signal === undefined ? {} : { signal: how.signal }),
    };
  }
}

/** A hold that was opened. It ends by settle, by release or at its deadline. */
export class Hold {
  constructor(
    readonly client: Tillroll,
    readonly account: string,
    /** The entry that opened it. */
    readonly receipt: Receipt,
  ) {}

  /** The id of the hold: the request id that opened it. */
  get id(): string {
    return this.receipt.request_id ?? "";
  }

  settle(body: Shapes["Settle"] = {}, how: How = {}): Promise<Receipt> {
    return this.client.settle(this.account, this.id, body, how);
  }

  release(body: Shapes["Write"] = {}, how: How = {}): Promise<Receipt> {
    return this.client.release(this.account, this.id, body, how);
  }

  markInDoubt(body: Shapes["InDoubt"] = {}, how: How = {}): Promise<Receipt> {
    return this.client.markInDoubt(this.account, this.id, body, how);
  }
}

interface Init {
  fetch: (request: Request) => Promise<Response>;
  signal?: AbortSignal;
}

interface Keyed {
  header: { "Idempotency-Key": string };
}

interface Answer<T> {
  data?: T | undefined;
  error?: unknown;
  response: Response;
}

async function finished<T>(requestId: string | null, act: () => Promise<Answer<T>>): Promise<T> {
  let answer: Answer<T>;
  try {
    answer = await act();
  } catch (error) {
    if (error instanceof RangeError) throw error; // never sent
    throw new Unanswered(error, requestId);
  }
  if (answer.response.ok && answer.data !== undefined) return answer.data;
  throw errorOf(answer.response, answer.error, requestId);
}

function patienceOf(given: Partial<Patience>, otherwise: Patience): Patience {
  const names = Object.keys(otherwise) as (keyof Patience)[];
  const pairs = names.map((name) => [name, given[name] ?? otherwise[name]]);
  return Object.fromEntries(pairs) as Record<keyof Patience, number>;
}

/** Fills an address in. A `.` or `..` would be folded away by any URL, percent-encoded or not. */
function address(path: string, params: Record<string, unknown>): string {
  return path.replaceAll(/\{(\w+)\}/g, (_, name: string) => {
    const value = String(params[name]);
    if (value === "." || value === "..") {
      throw new RangeError(`${JSON.stringify(value)} cannot be part of an address`);
    }
    return encodeURIComponent(value);
  });
}

/** Returns an id as the header Idempotency-Key carries it: each byte of its UTF-8 a character. */
export function idempotencyKey(id: string): string {
  if (id !== id.trim()) throw new RangeError("a request id must not begin or end with blanks");
  return String.fromCharCode(...new TextEncoder().encode(id));
}

function nothing(account: string, wallet: string): Balance {
  const zeros = { available: "0", held: "0", used: "0", expired: "0", issued: "0" };
  return {
    account,
    wallet,
    ...zeros,
    overdraft_limit: "0",
    spendable: "0",
    status: "open",
    as_of: new Date().toISOString(),
    seq: 0,
    grants: [],
    holds: [],
    budgets: [],
  };
}
