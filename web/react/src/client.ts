/** Calls of the gateway's API. */

export interface ClientOptions {
  /** Where the API answers: `https://gate.example.com/api`, or `/api` on the same host. */
  baseUrl: string;
  /** A fresh token of the signed-in user, or null when nobody is; called before every request. */
  getToken?: (() => Promise<string | null> | string | null) | undefined;
  /** The header that carries the token. `authorization` sends it as a bearer token. */
  tokenHeader?: "authorization" | "x-stack-access-token" | undefined;
  /** Sent with every request. */
  headers?: Readonly<Record<string, string>> | undefined;
  /** Called when the gateway does not know who is calling any more: the token or the session has ended. */
  onUnauthorized?: (() => void) | undefined;
  /** Instead of the global one. */
  fetch?: typeof fetch | undefined;
}

/** Why a call failed. */
export type FailureKind = "offline" | "unauthorized" | "forbidden" | "insufficient" | "conflict" | "unavailable" | "other";

/** A call that did not succeed; `problem` is the RFC 9457 body, if there was one. */
export class FaregateError extends Error {
  readonly kind: FailureKind;
  readonly status: number;
  readonly problem: Readonly<Record<string, unknown>>;
  /** The gateway's id of the request, for whoever looks into its log. */
  readonly requestId: string | null;

  constructor(kind: FailureKind, status: number, detail: string, problem = {}, requestId: string | null = null) {
    super(detail);
    this.name = "FaregateError";
    this.kind = kind;
    this.status = status;
    this.problem = problem;
    this.requestId = requestId;
  }
}

const KINDS: Record<number, FailureKind> = {
  401: "unauthorized",
  402: "insufficient",
  403: "forbidden",
  409: "conflict",
  429: "unavailable",
  503: "unavailable",
};

/** Longest answer to a call that is read, in milliseconds. */
const CALL_TIMEOUT_MS = 20_000;

export class FaregateClient {
  readonly #options: ClientOptions;

  constructor(options: ClientOptions) {
    this.#options = options;
  }

  get<T>(path: string, signal?: AbortSignal): Promise<T> {
    return this.#call<T>("GET", path, undefined, signal);
  }

  /** A repetition under the same key is answered and not done twice. */
  post<T>(path: string, body: unknown, idempotencyKey?: string): Promise<T> {
    return this.#call<T>("POST", path, body, undefined, idempotencyKey);
  }

  patch<T>(path: string, body: unknown): Promise<T> {
    return this.#call<T>("PATCH", path, body);
  }

  delete<T>(path: string): Promise<T> {
    return this.#call<T>("DELETE", path);
  }

  /** The answer's head, its body still to be read. */
  async open(path: string, init: RequestInit): Promise<Response> {
    const headers = new Headers({ ...this.#options.headers, ...(init.headers as Record<string, string>) });
    const token = await this.#options.getToken?.();
    if (token) {
      if (token.startsWith("fg_")) {
        throw new FaregateError("other", 0, "API keys stay on your server: give the browser a token of the user's");
      }
      const name = this.#options.tokenHeader ?? "authorization";
      headers.set(name, name === "authorization" ? `Bearer ${token}` : token);
    }
    const call = this.#options.fetch ?? fetch;
    let response: Response;
    try {
      response = await call(this.#options.baseUrl.replace(/\/$/, "") + path, {
        credentials: "same-origin",
        cache: "no-store",
        ...init,
        headers,
      });
    } catch (error) {
      if (init.signal?.aborted && init.signal.reason === undefined) throw error;
      throw new FaregateError("offline", 0, error instanceof Error ? error.message : "the gateway is out of reach");
    }
    if (response.status === 401) this.#options.onUnauthorized?.();
    if (!response.ok) throw await failure(response);
    return response;
  }

  async #call<T>(method: string, path: string, body?: unknown, signal?: AbortSignal, key?: string): Promise<T> {
    const headers: Record<string, string> = { accept: "application/json" };
    if (body !== undefined) headers["content-type"] = "application/json";
    if (key !== undefined) headers["idempotency-key"] = key;
    const clock = new AbortController();
    const timer = setTimeout(() => clock.abort(new Error("no answer in time")), CALL_TIMEOUT_MS);
    const stop = () => clock.abort(signal?.reason);
    signal?.addEventListener("abort", stop);
    try {
      const init: RequestInit = { method, headers, signal: clock.signal };
      if (body !== undefined) init.body = JSON.stringify(body);
      const response = await this.open(path, init);
      if (response.status === 204) return undefined as T;
      return (await response.json()) as T;
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", stop);
    }
  }
}

async function failure(response: Response): Promise<FaregateError> {
  const problem = (await response.json().catch(() => ({}))) as Record<string, unknown>;
  const detail = typeof problem["detail"] === "string" ? problem["detail"] : `HTTP ${response.status}`;
  const kind = KINDS[response.status] ?? (response.status >= 500 ? "unavailable" : "other");
  return new FaregateError(kind, response.status, detail, problem, response.headers.get("x-request-id"));
}
