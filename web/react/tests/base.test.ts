import { describe, expect, it, vi } from "vitest";
import { FaregateClient, FaregateError, en, formatCredits, formatDay, formatMoney, nl, textsFor } from "../src/index.js";
import { niceCeiling } from "../src/components/BarChart.js";
import { everyDay } from "../src/components/UsageAnalytics.js";
import { EventParser, follow } from "../src/events.js";
import { Resource } from "../src/store.js";
import { gateway } from "./gateway.js";

describe("money and dates", () => {
  it("knows each currency's smallest unit", () => {
    expect(formatMoney(2000, "usd", "en-US")).toBe("$20");
    expect(formatMoney(1999, "eur", "nl-NL")).toBe("€\u00a019,99");
    expect(formatMoney(500, "jpy", "en-US")).toBe("¥500");
    expect(formatMoney(1500, "kwd", "en-US")).toBe("KWD\u00a01.500");
    expect(formatMoney(-50, "usd", "en-US")).toBe("-$0.50");
  });

  it("keeps the digits that tell small amounts apart", () => {
    expect(formatCredits(0.000001, "en-US")).toBe("0.000001");
    expect(formatCredits(12.345, "nl-NL")).toBe("12,35");
    expect(formatCredits(1_234_567.8, "en-US")).toBe("1,234,568");
    expect(formatCredits(0, "en-US")).toBe("0");
  });

  it("keeps UTC's days whatever the clock here says", () => {
    expect(formatDay("2026-03-01", "en-US")).toBe("Mar 1");
    const days = everyDay([], 3, new Date("2026-03-01T00:30:00Z")).map((sum) => sum.day);
    expect(days).toEqual(["2026-02-27", "2026-02-28", "2026-03-01"]);
  });

  it("ends an axis at a round number", () => {
    expect([0, 0.3, 1, 7, 12, 20.5, 999].map(niceCeiling)).toEqual([1, 0.5, 1, 10, 20, 25, 1000]);
  });
});

describe("texts", () => {
  it("are whole in both languages", () => {
    expect(Object.keys(nl).sort()).toEqual(Object.keys(en).sort());
    expect([textsFor("nl-BE"), textsFor("fr-FR")]).toEqual([nl, en]);
    const same = Object.entries(en).filter(([name, text]) => typeof text === "string" && text === nl[name as keyof typeof nl]);
    expect(same.map(([name]) => name).sort()).toEqual(["downloadPdf", "live", "model", "state", "tokensIn"]);
  });
});

describe("client", () => {
  const client = (token: string | null, tokenHeader?: "x-stack-access-token") => {
    const gate = gateway();
    return { gate, client: new FaregateClient({ baseUrl: "/api/", getToken: () => token, tokenHeader, fetch: gate.fetch as typeof fetch }) };
  };

  it("sends the user's token, and never a key", async () => {
    const bearer = client("t1");
    await bearer.client.get("/plans");
    expect(bearer.gate.calls[0]?.headers.get("authorization")).toBe("Bearer t1");
    const stack = client("t1", "x-stack-access-token");
    await stack.client.get("/plans");
    expect(stack.gate.calls[0]?.headers.get("x-stack-access-token")).toBe("t1");
    const key = client("fg_live_abc");
    await expect(key.client.get("/plans")).rejects.toThrow("API keys stay on your server");
    expect(key.gate.calls).toEqual([]);
  });

  it("tells why a call failed", async () => {
    const { client: it, gate } = client(null);
    gate.on("GET /plans", { status: 402, body: { detail: "no credits", available: 1 } });
    const failure = await it.get("/plans").catch((error: unknown) => error as FaregateError);
    expect(failure).toMatchObject({ kind: "insufficient", status: 402, message: "no credits", requestId: "r-1" });
    expect((failure as FaregateError).problem["available"]).toBe(1);
  });

  it("gives up when no answer comes", async () => {
    vi.useFakeTimers();
    const hung = (_: unknown, init: RequestInit) =>
      new Promise<Response>((_, reject) => init.signal?.addEventListener("abort", () => reject(init.signal?.reason)));
    const call = new FaregateClient({ baseUrl: "", fetch: hung as typeof fetch }).get("/plans");
    const failed = expect(call).rejects.toMatchObject({ kind: "offline" });
    await vi.advanceTimersByTimeAsync(21_000);
    await failed;
  });
});

describe("events", () => {
  it("are taken apart wherever the network cut them", () => {
    const text = ": hi\r\nid: 7\r\nevent: credits\r\ndata: {\"a\":\r\ndata:1}\r\n\r\ndata: x\n\nevent: none\n\n";
    for (let cut = 0; cut <= text.length; cut += 1) {
      const parser = new EventParser();
      const events = [...parser.push(text.slice(0, cut)), ...parser.push(text.slice(cut))];
      expect(events.map(({ event }) => event)).toEqual(["credits", "message"]);
      expect(parser.lastId).toBe("7");
    }
  });

  it("are refused when a line does not end", () => {
    expect(() => new EventParser().push("x".repeat(300_000))).toThrow();
  });

  it("go on after the last one that came, with growing pauses, until stopped", async () => {
    vi.useFakeTimers();
    vi.spyOn(Math, "random").mockReturnValue(0.5);
    const gate = gateway();
    const seen: string[] = [];
    const states: boolean[] = [];
    const client = new FaregateClient({ baseUrl: "/api", fetch: gate.fetch as typeof fetch });
    const stop = follow(client, { onEvent: ({ data }) => seen.push(data), onState: (live) => states.push(live) });
    await vi.advanceTimersByTimeAsync(0);
    gate.emit("credits", 1, "e9");
    await vi.advanceTimersByTimeAsync(0);
    gate.cut();
    await vi.advanceTimersByTimeAsync(1_100);
    expect(seen).toEqual(["1"]);
    expect(gate.calls.map((call) => call.headers.get("last-event-id"))).toEqual([null, "e9"]);
    gate.on("GET /events", { status: 503 });
    gate.cut();
    await vi.advanceTimersByTimeAsync(120_000);
    const tries = gate.calls.length;
    expect(tries).toBeGreaterThan(5);
    expect(tries).toBeLessThan(12);
    stop();
    await vi.advanceTimersByTimeAsync(120_000);
    expect(gate.calls.length).toBe(tries);
    expect(states.slice(0, 3)).toEqual([true, false, true]);
  });

  it("are asked for anew when the stream has gone silent", async () => {
    vi.useFakeTimers();
    const gate = gateway();
    const client = new FaregateClient({ baseUrl: "/api", fetch: gate.fetch as typeof fetch });
    const stop = follow(client, { onEvent: () => {}, onState: () => {} });
    await vi.advanceTimersByTimeAsync(95_000);
    expect(gate.calls.length).toBe(2);
    stop();
  });
});

describe("a question", () => {
  it("is asked once at a time, and once more where it was asked for meanwhile", async () => {
    const answers: ((value: number) => void)[] = [];
    const resource = new Resource(() => new Promise<number>((resolve) => answers.push(resolve)));
    const first = resource.reload();
    void resource.reload();
    void resource.reload();
    expect(answers.length).toBe(1);
    answers[0]?.(1);
    await first;
    await Promise.resolve();
    await Promise.resolve();
    expect(answers.length).toBe(2);
    expect(resource.snapshot().data).toBe(1);
  });
});
