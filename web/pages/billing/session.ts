/** Who is signed in: by a link, by a token, or by the session that a cookie carries. */
import { facts } from "../shared/facts.js";

export interface User {
  id: string;
  email: string | null;
  plan: string;
}

export interface Session {
  user: User | null;
  expires_at: string | null;
}

/** Set on every call: with it, and the cookie, the gateway knows the page's own scripts. */
export const OWN_CALL = { "x-faregate-page": "1" };

export class SignInError extends Error {
  readonly status: number;
  constructor(status: number) {
    super(`HTTP ${status}`);
    this.status = status;
  }
}

async function call(method: string, headers: Record<string, string> = {}, body?: unknown): Promise<Session> {
  const init: RequestInit = { method, headers: { ...OWN_CALL, ...headers }, cache: "no-store" };
  if (body !== undefined) {
    init.body = JSON.stringify(body);
    init.headers = { ...init.headers, "content-type": "application/json" };
  }
  const response = await fetch(`${facts().page}/session`, init);
  if (!response.ok) throw new SignInError(response.status);
  return response.status === 204 ? { user: null, expires_at: null } : ((await response.json()) as Session);
}

/** What the address brought along: `#link=…` opens once, `#token=…` is the product's own. It leaves the address at once. */
function brought(): URLSearchParams {
  const found = new URLSearchParams(window.location.hash.slice(1));
  if (!found.has("link") && !found.has("token")) return new URLSearchParams();
  const rest = new URL(window.location.href);
  rest.hash = "";
  window.history.replaceState(null, "", rest);
  return found;
}

let begun: Promise<Session> | undefined;

/** Once for each time the page is opened: a link does not open twice. */
export function begin(): Promise<Session> {
  begun ??= (() => {
    const found = brought();
    const link = found.get("link");
    const token = found.get("token");
    if (link !== null) return call("POST", {}, { link });
    if (token !== null) return call("POST", { "x-stack-access-token": token }, {});
    return call("GET");
  })();
  return begun;
}

export function again(): Promise<Session> {
  begun = undefined;
  return begin();
}

export function end(): Promise<Session> {
  return call("DELETE");
}
