import { FaregateError } from "@faregate/react";
import { facts } from "../shared/facts.js";

export interface Session {
  signed_in: boolean;
  expires_at: string | null;
}

/** Set on every call: with it, and the cookie, the gateway knows the console's own scripts. */
export const OWN_CALL = { "x-faregate-console": "1" };

export async function call(method: string, body?: unknown): Promise<Session> {
  const init: RequestInit = { method, headers: OWN_CALL, cache: "no-store" };
  if (body !== undefined) {
    init.body = JSON.stringify(body);
    init.headers = { ...OWN_CALL, "content-type": "application/json" };
  }
  const response = await fetch(`${facts().page}/session`, init);
  if (response.status === 204) return { signed_in: false, expires_at: null };
  if (!response.ok) {
    throw new FaregateError(response.status === 401 ? "unauthorized" : "other", response.status, "not signed in");
  }
  return (await response.json()) as Session;
}
