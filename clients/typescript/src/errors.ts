/** Every no: a refusal of the ledger, a problem of the service, or no answer at all. */

import type { components } from "./schema.js";

export type Problem = components["schemas"]["Problem"];
export type Refusal = components["schemas"]["Refusal"];

/** The closed list of refusals, in their order of precedence. */
export type RefusalCode =
  | "account_frozen"
  | "account_closed"
  | "not_entitled"
  | "unpriced"
  | "quote_expired"
  | "hold_not_found"
  | "grant_not_found"
  | "charge_not_found"
  | "entitlement_not_found"
  | "coupon_used"
  | "hold_finalized"
  | "hold_expired"
  | "settle_exceeds_hold"
  | "refund_exceeds_charge"
  | "budget_exceeded"
  | "insufficient_units";

/** Whether anything was written. After "unknown" the same request id settles which. */
export type Written = "nothing" | "unknown";

/** What every no has in common. */
export class TillrollError extends Error {
  override readonly name: string = "TillrollError";

  constructor(
    message: string,
    /** Stable, for programs: see the page on refusals and errors. */
    readonly code: string,
    readonly written: Written,
    /** Ask again with it. Null for a read. */
    readonly requestId: string | null,
    /** The HTTP status; null where nobody answered. */
    readonly status: number | null = null,
    /** The problem document, where there was one. */
    readonly problem: Problem | null = null,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** An expected no, which is remembered: the same id is given the same answer. */
export class Refused extends TillrollError {
  override readonly name = "Refused";
  declare readonly code: RefusalCode;
  declare readonly problem: Refusal;

  constructor(problem: Refusal, status: number, requestId: string | null) {
    super(problem.detail, problem.code, problem.written, requestId, status, problem);
  }
}

/** Nobody answered before the deadline. */
export class Unanswered extends TillrollError {
  override readonly name = "Unanswered";

  constructor(cause: unknown, requestId: string | null) {
    const why = cause instanceof Error ? cause.message : String(cause);
    const written = requestId === null ? "nothing" : "unknown";
    super(`no answer: ${why}`, "unanswered", written, requestId, null, null, { cause });
  }
}

/** Returns the error of an answer that is not 200. */
export function errorOf(
  response: Response,
  body: unknown,
  requestId: string | null,
): TillrollError {
  const { status } = response;
  if (!isProblem(body)) {
    // No document of ours: a proxy spoke, or the address is wrong.
    const written = requestId !== null && status >= 500 ? "unknown" : "nothing";
    return new TillrollError(`HTTP ${status}`, `http_${status}`, written, requestId, status);
  }
  const id = requestId ?? body.request_id;
  if ("ways_out" in body) return new Refused(body as Refusal, status, id);
  return new TillrollError(body.detail, body.code, body.written, id, status, body);
}

function isProblem(body: unknown): body is Problem {
  return typeof body === "object" && body !== null && "code" in body && "written" in body;
}
