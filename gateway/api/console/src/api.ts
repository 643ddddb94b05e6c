// Requests to the public API, with types from the OpenAPI document.

import createClient, { type Middleware } from "openapi-fetch";
import type { components, paths } from "./contract";
import { credentials } from "./session";

export type Call = components["schemas"]["Call"];
export type Problem = components["schemas"]["Problem"];
export type AnswerMeta = components["schemas"]["AnswerMeta"];

/** The address of the gateway, with the path of the ingress if there is one. */
export const BASE = new URL(".", location.href);

const authentication: Middleware = {
  onRequest({ request }) {
    for (const [name, value] of Object.entries(credentials())) request.headers.set(name, value);
    return request;
  },
};

export const api = createClient<paths, "application/json">({ baseUrl: BASE.href.replace(/\/$/, "") });
api.use(authentication);

/** A problem that the API reports, or a connection that failed. */
export class ApiError extends Error {
  constructor(
    readonly status: number, // 0: no connection
    readonly problem: Partial<Problem>,
  ) {
    super(problem.detail || problem.title || "The gateway cannot be reached.");
  }
}

interface Answer<Data> {
  data?: Data;
  error?: unknown;
  response: Response;
}

/** The data of a response. Raises ApiError. */
export async function unwrap<Data>(request: Promise<Answer<Data>>): Promise<Data> {
  let answer: Answer<Data>;
  try {
    answer = await request;
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(0, {});
  }
  if (answer.data === undefined) throw new ApiError(answer.response.status, (answer.error ?? {}) as Partial<Problem>);
  return answer.data;
}

/** The address of a path and its parameters. */
export function addressOf(path: string, query: Record<string, unknown>): URL {
  const address = new URL(path.replace(/^\//, ""), BASE);
  for (const [name, value] of Object.entries(query))
    for (const one of Array.isArray(value) ? value : [value]) address.searchParams.append(name, String(one));
  return address;
}

/** A curl command for a request. The key is a variable of the shell, so that it is in no history. */
export function curl(address: URL): string {
  return `curl -H "X-API-Key: $CALLBUTTON_KEY" '${address.href.replaceAll("'", "%27")}'`;
}

/** Send a request whose body is read as a stream. Raises ApiError. */
export async function stream(address: URL, headers: Record<string, string>, signal: AbortSignal): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(address, { headers: { ...credentials(), ...headers }, signal });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new ApiError(0, {});
  }
  if (!answer.ok || !answer.body) throw new ApiError(answer.status, await answer.json().catch(() => ({})));
  return answer;
}
