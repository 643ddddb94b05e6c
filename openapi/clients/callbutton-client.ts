// A client of the Callbutton gateway in one file: lists, the change feed, problems. It needs `fetch` (a browser, Node 18,
// Deno or Bun), and `schema.d.ts`, which openapi-typescript makes from openapi.yaml. It belongs to contract CONTRACT.
import type { components } from "./schema.js";

export const CONTRACT = "0.1.0";
export const LONG_POLL = 60; // seconds for which the gateway waits for changes
const MAX_PAUSE = 30; // seconds between repetitions
const TRANSIENT = [429, 500, 502, 503, 504]; // HTTP statuses after which the same request may succeed

type Schemas = components["schemas"];
export type Call = Schemas["Call"];
export type FeedCall = Schemas["FeedCall"];
export type Page = Schemas["ChangesPage"];
export type Parameters = Record<string, string | number | boolean | readonly string[] | null | undefined>;
/** Calls by `keyOf`. */
export type Copy = Map<string, FeedCall>;
/** How to continue a copy, and how many items of the feed were applied to it. */
export type Step = Page & { changes: number };
/** Where a copy continues (`since`, the token) or begins (`start`), and parameters of the API such as `include`. */
export type Place = Parameters & { since?: string | undefined; start?: string; wait?: number | undefined };

/** An answer that is not a success (RFC 9457). `type` tells what happened, such as `/problems/rate-limited`. */
export class ProblemError extends Error {
  readonly type: string;
  readonly transient: boolean;

  constructor(readonly status: number, readonly problem: Partial<Schemas["Problem"]>, readonly retryAfter: number) {
    super(`${status} ${problem.title ?? ""}: ${problem.detail ?? ""}`);
    this.type = problem.type ?? "about:blank";
    this.transient = TRANSIENT.includes(status);
  }

  refuses(parameter: string): boolean {
    return (this.problem.errors ?? []).some((error) => error.parameter === parameter);
  }
}

export const keyOf = (call: { clientCode: string; id: string }): string => `${call.clientCode}/${call.id}`;

/** A connection to the gateway at an address. Parameters are those of the API, such as `start`, `end` and `result`. */
export class Client {
  constructor(private readonly address: string, private readonly key = "") {}

  /** An answer in JSON. Throws ProblemError, and TypeError without a connection. */
  async get<Body>(path: string, parameters: Parameters = {}, signal?: AbortSignal): Promise<Body> {
    const url = new URL(path, this.address);
    for (const [name, value] of Object.entries(parameters)) {
      for (const text of Array.isArray(value) ? value : value == null ? [] : [value]) {
        url.searchParams.append(name, String(text));
      }
    }
    const headers: Record<string, string> = this.key ? { "X-API-Key": this.key } : {};
    const response = await fetch(url, { headers, ...(signal ? { signal } : {}) });
    if (response.ok) return (await response.json()) as Body;
    const problem = (await response.json().catch(() => ({}))) as Partial<Schemas["Problem"]>;
    throw new ProblemError(response.status, problem, Number(response.headers.get("Retry-After")) || 0);
  }

  /** All calls of a list, page by page. */
  async *calls(clients: readonly string[], parameters: Parameters = {}): AsyncGenerator<Call, void> {
    let cursor: string | null | undefined;
    do {
      const query = { client: clients, limit: 1000, ...parameters, cursor };
      const body = await this.get<Schemas["CallPage"]>("/calls", query);
      yield* body.data;
      cursor = body.page.nextCursor;
    } while (cursor !== null);
  }

  /**
   * Applies the next page of the change feed to a copy, after `wait` seconds at most, and returns how to continue.
   *
   * `since` is the token that belongs to the copy. Without it, and if it is of another key, the copy begins again, and
   * also if it has another number of calls than the gateway says. Throws ProblemError, TypeError without a connection.
   */
  async step(copy: Copy, clients: readonly string[], place: Place = {}, signal?: AbortSignal): Promise<Step> {
    const { since, wait, start, ...rest } = place;
    const query = { client: clients, ...rest, ...(since ? { since, wait } : { start }) };
    let body: Schemas["Changes"];
    try {
      body = await this.get("/changes", query, signal);
    } catch (error) {
      if (!(since && error instanceof ProblemError && error.refuses("since"))) throw error;
      return this.step(copy, clients, { ...place, since: undefined }, signal);
    }
    apply(body.data, copy);
    const held = () => [...copy.values()].filter((call) => call.startTime >= body.meta.start).length;
    if (body.page.upToDate && body.page.calls !== held()) {
      return this.step(copy, clients, { ...place, since: undefined }, signal);
    }
    return { ...body.page, changes: body.data.length };
  }

  /**
   * Keeps a copy equal to the gateway's calls. Yields `page` after each change; `next` is the token to keep.
   *
   * It ends with `signal`, and tries again after transient failures. With `upToDate` the copy is exact.
   */
  async *follow(
    copy: Copy,
    clients: readonly string[],
    place: Place = {},
    signal?: AbortSignal,
  ): AsyncGenerator<Step, void> {
    let { since, wait } = place;
    let failures = 0;
    while (!signal?.aborted) {
      let page: Step;
      try {
        page = await this.step(copy, clients, { ...place, since, wait }, signal);
      } catch (error) {
        if (signal?.aborted) return;
        if (error instanceof ProblemError && !error.transient) throw error;
        const least = error instanceof ProblemError ? error.retryAfter : 0;
        const pause = Math.max(least, Math.min(MAX_PAUSE, 2 ** failures++));
        await new Promise((resume) => setTimeout(resume, pause * 1000));
        continue;
      }
      failures = 0;
      since = page.next;
      wait = page.upToDate ? LONG_POLL : undefined;
      yield page;
    }
  }
}

/** Applies items of the change feed to a copy, in their order. */
export function apply(items: Schemas["Changes"]["data"], copy: Copy): void {
  for (const item of items) {
    if (item.op === "remove") copy.delete(keyOf(item));
    if (item.op === "replace") {
      const { start, end } = item.window;
      for (const [key, call] of copy) {
        if (start <= call.startTime && call.startTime < end) copy.delete(key);
      }
      for (const call of item.calls) copy.set(keyOf(call), call);
    }
    if (item.op === "upsert") copy.set(keyOf(item.call), item.call);
  }
}
