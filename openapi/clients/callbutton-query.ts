// TanStack Query for the Callbutton gateway, beside callbutton-client.ts: lists page by page, and a copy that the change
// feed keeps exact. It needs @tanstack/react-query 5. It belongs to the contract of the client.
import { infiniteQueryOptions, queryOptions, useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { type Call, type Client, type Copy, LONG_POLL, type Parameters, ProblemError } from "./callbutton-client.js";
import type { components } from "./schema.js";

const PAUSE = 1000; // milliseconds between an answer of the change feed and the next request, which waits for a change
const MAX_PAUSE = 30_000; // milliseconds between repetitions
const RETRIES = 3;

type CallPage = components["schemas"]["CallPage"];
/** Why a query failed: the gateway answered with a problem, or there is no connection. */
export type Failure = ProblemError | TypeError;
/** Calls by `keyOf`, and the token that belongs to them. */
export interface Followed {
  calls: Copy;
  next: string;
}

type CopyPlace = Parameters & { start?: string };

const repeated = {
  retry: (failures: number, error: Failure) =>
    failures < RETRIES && (!(error instanceof ProblemError) || error.transient),
  retryDelay: (failures: number, error: Failure) =>
    Math.max(error instanceof ProblemError ? error.retryAfter * 1000 : 0, Math.min(MAX_PAUSE, 1000 * 2 ** failures)),
};

/** A list of calls, page by page. `data` is the calls of all pages so far. */
export function callsOptions(gateway: Client, clients: readonly string[], parameters: Parameters = {}) {
  return infiniteQueryOptions<CallPage, Failure, Call[], readonly unknown[], string | null>({
    queryKey: ["callbutton", "calls", clients, parameters],
    queryFn: ({ pageParam, signal }) =>
      gateway.get<CallPage>("/calls", { client: clients, ...parameters, cursor: pageParam }, signal),
    initialPageParam: null,
    getNextPageParam: (last) => last.page.nextCursor,
    select: (data) => data.pages.flatMap((page) => page.data),
    ...repeated,
  });
}

/**
 * A copy of calls in the query cache, which is exact and stays so while it is observed. `data` is a Map by `keyOf`,
 * a new one after each change. A query waits at the gateway for changes, and continues where the last one ended.
 */
export function copyOptions(gateway: Client, clients: readonly string[], place: CopyPlace = {}) {
  const queryKey = ["callbutton", "copy", clients, place] as const;
  return queryOptions<Followed, Failure, Copy, typeof queryKey>({
    queryKey,
    queryFn: async ({ client, signal }) => {
      const held = client.getQueryData<Followed>(queryKey);
      const calls: Copy = new Map(held?.calls);
      let page = await gateway.step(calls, clients, { ...place, since: held?.next, wait: LONG_POLL }, signal);
      let changes = page.changes;
      while (!page.upToDate) {
        page = await gateway.step(calls, clients, { ...place, since: page.next }, signal);
        changes += page.changes;
      }
      return { calls: held && changes === 0 ? held.calls : calls, next: page.next };
    },
    select: (data) => data.calls,
    structuralSharing: false, // two Maps share nothing
    refetchInterval: PAUSE,
    ...repeated,
  });
}

export const useCalls = (gateway: Client, clients: readonly string[], parameters: Parameters = {}) =>
  useInfiniteQuery(callsOptions(gateway, clients, parameters));

export const useCopy = (gateway: Client, clients: readonly string[], place: CopyPlace = {}) =>
  useQuery(copyOptions(gateway, clients, place));
