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

type By = "link" | "token" | "cookie";

export class SignInError extends Error {
  readonly status: number;
  /** What was to sign in: a link, a token, or the session that a cookie carries. */
  readonly by: By;
  constructor(status: number, by: By) {
    super(`HTTP ${status}`);
    this.status = status;
    this.by = by;
  }
}

async function call(
  method: string,
  by: By = "cookie",
  headers: Record<string, string> = {},
  body?: unknown,
): Promise<Session> {
  const init: RequestInit = { method, headers: { ...OWN_CALL, ...headers }, cache: "no-store" };
  if (body !== undefined) {
    init.body = JSON.stringify(body);
    init.headers = { ...init.headers, "content-type": "application/json" };
  }
  const response = await fetch(`${facts().page}/session`, init);
  if (!response.ok) throw new SignInError(response.status, by);
  return response.status === 204 ? { user: null, expires_at: null } : ((await response.json()) as Session);
}

/** Whether the address has a link or a token. */
export function bringsSignIn(): boolean {
  const found = new URLSearchParams(window.location.hash.slice(1));
  return found.has("link") || found.has("token");
}

/** What the address brought along: `#link=…` opens once, `#token=…` is the product's own. It leaves the address at once. */
function brought(): URLSearchParams {
  const found = new URLSearchParams(window.location.hash.slice(1));
  if (!bringsSignIn()) return new URLSearchParams();
  const rest = new URL(window.location.href);
  rest.hash = "";
  window.history.replaceState(null, "", rest);
  return found;
}

let begun: Promise<Session> | undefined;
/** Kept until it has an answer: it may have to be sent again, or somebody asked whether another account is meant. */
let pending: ((more: { switch?: true }) => Promise<Session>) | undefined;

/** Once for each time the page is opened: a link does not open twice. */
export function begin(): Promise<Session> {
  begun ??= (() => {
    const found = brought();
    const link = found.get("link");
    const token = found.get("token");
    if (link !== null) pending = (more) => call("POST", "link", {}, { link, ...more });
    else if (token !== null) pending = (more) => call("POST", "token", { "x-stack-access-token": token }, more);
    return pending === undefined ? current() : open({});
  })();
  return begun;
}

/** The status that tells that another user is signed in here. */
export const SOMEBODY_ELSE = 409;

async function open(more: { switch?: true }): Promise<Session> {
  try {
    const session = await (pending === undefined ? current() : pending(more));
    pending = undefined;
    return session;
  } catch (error) {
    if (!(error instanceof SignInError) || error.status >= 500 || error.status === SOMEBODY_ELSE) throw error;
    // It does not open, and will not: whoever is signed in already stays.
    pending = undefined;
    const here = await current().catch(() => undefined);
    if (here?.user) return here;
    throw error;
  }
}

/** Whoever is signed in makes way for the one whom the link or the token names. */
export function switchUser(): Promise<Session> {
  return open({ switch: true });
}

/** Who is signed in, and nothing else. */
export function current(): Promise<Session> {
  return call("GET");
}

export function again(): Promise<Session> {
  begun = undefined;
  return begin();
}

export function end(): Promise<Session> {
  return call("DELETE");
}
