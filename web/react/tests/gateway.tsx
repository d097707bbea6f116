/** A gateway for tests: answers by method and path, and an event stream that the test writes. */

import { render } from "@testing-library/react";
import axe from "axe-core";
import type { ReactNode } from "react";
import { expect } from "vitest";
import { FaregateProvider, type FaregateProviderProps } from "../src/index.js";
import type { Credits, Offers, Payment, Standing, Subscription, UsageSum } from "../src/index.js";

type Reply = { status?: number; body?: unknown } | "never" | "offline";
type Handler = Reply | ((request: { path: string; body: unknown; headers: Headers }) => Reply);

export class Gateway {
  readonly calls: { method: string; path: string; body: unknown; headers: Headers }[] = [];
  /** Streams that the page ended. */
  aborted = 0;
  #streams: ReadableStreamDefaultController<Uint8Array>[] = [];
  #routes = new Map<string, Handler>();

  /** `GET /plans`; the query is not looked at unless it is named. */
  on(route: string, handler: Handler): this {
    this.#routes.set(route, handler);
    return this;
  }

  fetch = async (input: RequestInfo | URL, init: RequestInit = {}): Promise<Response> => {
    const path = String(input).replace(/^\/api/, "");
    const method = init.method ?? "GET";
    const body: unknown = typeof init.body === "string" ? JSON.parse(init.body) : undefined;
    const headers = new Headers(init.headers);
    this.calls.push({ method, path, body, headers });
    const key = `${method} ${path}`;
    const handler = this.#routes.get(key) ?? this.#routes.get(key.split("?")[0] ?? "");
    if (path === "/events" && handler === undefined) return this.#stream(init.signal ?? undefined);
    const reply = typeof handler === "function" ? handler({ path, body, headers }) : (handler ?? { status: 404 });
    if (reply === "never") return new Promise(() => {});
    if (reply === "offline") throw new TypeError("Failed to fetch");
    const status = reply.status ?? 200;
    const text = status === 204 ? null : JSON.stringify(reply.body ?? { detail: "no" });
    return new Response(text, { status, headers: { "x-request-id": "r-1" } });
  };

  #stream(signal: AbortSignal | undefined): Response {
    const body = new ReadableStream<Uint8Array>({
      start: (controller) => {
        this.#streams.push(controller);
        signal?.addEventListener("abort", () => {
          this.aborted += 1;
          try {
            controller.error(new Error("aborted"));
          } catch {
            // It was closed before.
          }
        });
      },
    });
    return new Response(body, { headers: { "content-type": "text/event-stream" } });
  }

  get streams(): number {
    return this.#streams.length;
  }

  /** Writes to every open stream. */
  emit(event: string, data: unknown, id = ""): void {
    const text = `${id && `id: ${id}\n`}event: ${event}\ndata: ${JSON.stringify(data)}\n\n`;
    for (const stream of this.#streams) stream.enqueue(new TextEncoder().encode(text));
  }

  cut(): void {
    for (const stream of this.#streams.splice(0)) stream.close();
  }

  made(method: string, path: string): unknown[] {
    return this.calls.filter((call) => call.method === method && call.path === path).map((call) => call.body);
  }
}

export const credits = (more: Partial<Credits> = {}): Credits => ({
  available: 40,
  held: 0,
  debt: 0,
  low: false,
  plan: "free",
  resets_at: null,
  ...more,
});

export const subscription = (more: Partial<Subscription> = {}): Subscription => ({
  id: "sub_1",
  plan: "basic",
  status: "active",
  interval: "month",
  currency: "usd",
  amount: 1000,
  current_period_start: "2026-03-01T12:00:00Z",
  current_period_end: "2026-04-01T12:00:00Z",
  trial_end: null,
  cancel_at_period_end: false,
  cancel_at: null,
  ended_at: null,
  next_plan: null,
  past_due_since: null,
  grace_ends_at: null,
  pay_url: null,
  ...more,
});

export const standing = (more: Partial<Subscription> | null): Standing =>
  more === null ? { plan: "free", subscription: null } : { plan: more.plan ?? "basic", subscription: subscription(more) };

const plan = { signup_credits: 0, rollover_cap: 0, trial_days: 0, trial_credits: 0, requests_per_minute: 0, tokens_per_minute: 0, concurrency: 0 };

export const offers: Offers = {
  plans: [
    { ...plan, name: "free", credits: 0, signup_credits: 5, prices: [] },
    {
      ...plan,
      name: "basic",
      credits: 400,
      prices: [
        { currency: "usd", interval: "month", amount: 1000 },
        { currency: "eur", interval: "month", amount: 900 },
      ],
    },
    {
      ...plan,
      name: "pro",
      credits: 1000,
      rollover_cap: 300,
      trial_days: 14,
      requests_per_minute: 60,
      tokens_per_minute: 9000,
      concurrency: 4,
      prices: [
        { currency: "usd", interval: "month", amount: 2000 },
        { currency: "usd", interval: "year", amount: 20000 },
      ],
    },
  ],
  packs: [{ name: "small", credits: 100, expires_after_days: 90, prices: [{ currency: "usd", amount: 550 }] }],
};

export const payment = (more: Partial<Payment> = {}): Payment => ({
  id: "in_1",
  kind: "invoice",
  number: "F-1",
  status: "paid",
  amount: 1000,
  currency: "usd",
  created_at: "2026-03-01T12:00:00Z",
  hosted_url: "https://pay.example/in_1",
  pdf_url: "https://pay.example/in_1.pdf",
  ...more,
});

export const sum = (more: Partial<UsageSum>): UsageSum => ({
  requests: 2,
  credits: 2,
  input_tokens: 10,
  cached_tokens: 0,
  output_tokens: 20,
  estimated: 0,
  errors: { "4xx": 0, "5xx": 0 },
  ...more,
});

/** A gateway on which everything is well. */
export function gateway(): Gateway {
  return new Gateway()
    .on("GET /credits/check", { body: credits() })
    .on("GET /plans", { body: offers })
    .on("GET /billing/subscription", { body: standing(null) })
    .on("GET /billing/history", { body: { data: [], next: null } })
    .on("GET /usage", { body: { data: [], next: null, complete: true } })
    .on("GET /notifications", { body: { data: [], next: null } });
}

export function show(gate: Gateway, children: ReactNode, more: Partial<FaregateProviderProps> = {}) {
  return render(
    <FaregateProvider baseUrl="/api" fetch={gate.fetch as typeof fetch} locale="en-US" {...more}>
      {children}
    </FaregateProvider>,
  );
}

/** No rule of axe's is broken; colours are for a real browser to see. */
export async function accessible(): Promise<void> {
  const found = await axe.run(document.body, { rules: { "color-contrast": { enabled: false }, region: { enabled: false } } });
  expect(found.violations.map((one) => `${one.id}: ${one.nodes.map((node) => node.html).join(" ")}`)).toEqual([]);
}
