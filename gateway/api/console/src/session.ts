// The credential of this tab, in its session storage, shared with the page at /docs. It is never in an address.

const KEY = "callbutton-gateway:access-key";
const TOKEN = "callbutton-gateway:access-bearer";
const PENDING = "callbutton-gateway:sign-in"; // state and verifier of a sign-in in progress

function read(name: string): string {
  try {
    return sessionStorage.getItem(name) ?? "";
  } catch {
    return ""; // the browser forbids storage: the credential lasts as long as the page
  }
}

function write(name: string, value: string): void {
  try {
    if (value) sessionStorage.setItem(name, value);
    else sessionStorage.removeItem(name);
  } catch {
    // as in `read`
  }
}

const memory = { key: read(KEY), token: read(TOKEN) };

/** The headers of a request. */
export function credentials(): Record<string, string> {
  if (memory.key) return { "X-API-Key": memory.key };
  return memory.token ? { Authorization: `Bearer ${memory.token}` } : {};
}

export function signedIn(): boolean {
  return Boolean(memory.key || memory.token);
}

export function signIn(kind: "key" | "token", value: string): void {
  signOut();
  memory[kind] = value;
  write(kind === "key" ? KEY : TOKEN, value);
}

export function signOut(): void {
  memory.key = memory.token = "";
  write(KEY, "");
  write(TOKEN, "");
}

// Authorization code flow with PKCE (RFC 7636), when the operator has configured an issuer for the console.

interface Issuer {
  authorization_endpoint: string;
  token_endpoint: string;
}

/** The issuer and client id, or null. */
export function issuer(): { url: string; clientId: string } | null {
  const { oidcIssuer, oidcClientId } = document.documentElement.dataset;
  return oidcIssuer && oidcClientId ? { url: oidcIssuer, clientId: oidcClientId } : null;
}

function base64url(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes))
    .replaceAll("+", "-")
    .replaceAll("/", "_")
    .replaceAll("=", "");
}

const redirectUri = () => location.origin + location.pathname;

async function discover(url: string): Promise<Issuer> {
  const answer = await fetch(`${url.replace(/\/$/, "")}/.well-known/openid-configuration`);
  if (!answer.ok) throw new Error(`The issuer answers ${answer.status}.`);
  return answer.json();
}

/** Leave for the issuer's sign-in page. */
export async function beginSignIn(): Promise<void> {
  const configured = issuer();
  if (!configured) throw new Error("No issuer is configured.");
  const { authorization_endpoint } = await discover(configured.url);
  const verifier = base64url(crypto.getRandomValues(new Uint8Array(32)));
  const state = base64url(crypto.getRandomValues(new Uint8Array(16)));
  const challenge = new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(verifier)));
  write(PENDING, JSON.stringify({ state, verifier, view: location.search }));
  const query = new URLSearchParams({
    response_type: "code",
    client_id: configured.clientId,
    redirect_uri: redirectUri(),
    scope: "openid",
    state,
    code_challenge: base64url(challenge),
    code_challenge_method: "S256",
  });
  location.assign(`${authorization_endpoint}?${query}`);
}

/** Complete a sign-in if the issuer has sent the browser back here. Restores the view in the address. */
export async function completeSignIn(): Promise<void> {
  const given = new URLSearchParams(location.search);
  const code = given.get("code");
  const configured = issuer();
  const pending = JSON.parse(read(PENDING) || "null");
  if (!configured || !pending || !given.has("state")) return;
  write(PENDING, "");
  history.replaceState(null, "", location.pathname + pending.view);
  if (!code || given.get("state") !== pending.state)
    throw new Error(given.get("error_description") ?? "The sign-in was not completed.");
  const { token_endpoint } = await discover(configured.url);
  const body = new URLSearchParams({
    grant_type: "authorization_code",
    code,
    redirect_uri: redirectUri(),
    client_id: configured.clientId,
    code_verifier: pending.verifier,
  });
  const answer = await fetch(token_endpoint, { method: "POST", body });
  const { access_token } = answer.ok ? await answer.json() : {};
  if (!access_token) throw new Error(`The issuer gave no token (${answer.status}).`);
  signIn("token", access_token);
}
