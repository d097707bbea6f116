import { act, fireEvent, render, screen, waitFor, within } from "@testing-library/react";
import { describe, expect, it, vi } from "vitest";
import {
  BillingHistory,
  CheckoutResult,
  CreditsDisplay,
  CreditsWarning,
  FaregateProvider,
  PlanSelector,
  StripeCheckout,
  SubscriptionStatus,
  UsageAnalytics,
  useNotifications,
} from "../src/index.js";
import { accessible, credits, gateway, offers, payment, show, standing, sum, type Gateway } from "./gateway.js";
import { goOnline } from "./setup.js";

const click = (name: string | RegExp) => act(async () => void fireEvent.click(screen.getByRole("button", { name })));

/** Each component on its way, out of reach, refused, and over the network it has lost. */
describe.each([
  ["CreditsDisplay", <CreditsDisplay />, "GET /credits/check", "40 credits available"],
  ["PlanSelector", <PlanSelector />, "GET /plans", "Pro"],
  ["SubscriptionStatus", <SubscriptionStatus />, "GET /billing/subscription", /You have no subscription/],
  ["BillingHistory", <BillingHistory />, "GET /billing/history", "Nothing has been billed yet."],
  ["UsageAnalytics", <UsageAnalytics />, "GET /usage", "Nothing has been used in this period."],
])("%s", (_, component, route, ready) => {
  it("says that it is loading", async () => {
    show(gateway().on(route, "never"), component);
    expect(screen.getByText("Loading…")).toBeTruthy();
    await accessible();
  });

  it("says that it failed, and tries again when asked", async () => {
    const gate = gateway().on(route, { status: 500, body: { detail: "secret internals" } });
    show(gate, component);
    const alert = await screen.findByRole("alert");
    expect(alert.textContent).toContain("The service does not answer right now.");
    expect(alert.textContent).toContain("r-1");
    expect(alert.textContent).not.toContain("secret");
    await accessible();
    Object.assign(gate, gateway());
    const fresh = gateway();
    gate.on(route, () => freshReply(fresh, route));
    await click("Try again");
    expect((await screen.findAllByText(ready)).length).toBeGreaterThan(0);
  });

  it("says that the session has ended, and tells the page", async () => {
    const onUnauthorized = vi.fn();
    show(gateway().on(route, { status: 401, body: { detail: "no" } }), component, { onUnauthorized });
    expect((await screen.findByRole("alert")).textContent).toContain("Your session has ended");
    expect(screen.queryByRole("button", { name: "Try again" })).toBeNull();
    expect(onUnauthorized).toHaveBeenCalled();
  });

  it("says that the caller may not, and does not try again", async () => {
    show(gateway().on(route, { status: 403, body: { detail: "closed" } }), component);
    expect((await screen.findByRole("alert")).textContent).toContain("may not do that");
    expect(screen.queryByRole("button", { name: "Try again" })).toBeNull();
  });

  it("keeps what it has when the service is away, and says so", async () => {
    const gate = gateway();
    show(gate, component);
    expect((await screen.findAllByText(ready)).length).toBeGreaterThan(0);
    gate.on(route, { status: 503, body: {} });
    // The network came back: everything is asked again.
    act(() => goOnline(true));
    expect((await screen.findByRole("alert")).textContent).toContain("does not answer");
    expect(screen.getAllByText(ready).length).toBeGreaterThan(0);
    await accessible();
  });

  it("keeps what it has while offline, and says so", async () => {
    show(gateway(), component);
    expect((await screen.findAllByText(ready)).length).toBeGreaterThan(0);
    act(() => goOnline(false));
    expect(screen.getAllByText(/You are offline/).length).toBeGreaterThan(0);
    expect(screen.getAllByText(ready).length).toBeGreaterThan(0);
    await accessible();
    act(() => goOnline(true));
    await waitFor(() => expect(screen.queryByText(/You are offline/)).toBeNull());
  });

  it("says that it is offline from the start", async () => {
    show(gateway().on(route, "offline"), component);
    expect((await screen.findByRole("alert")).textContent).toContain("You are offline");
  });

  it("is shown in Dutch, and with texts of one's own", async () => {
    show(gateway(), component, { locale: "nl-NL" });
    await waitFor(() => expect(screen.queryByText("Laden…")).toBeNull());
    expect(document.body.textContent).not.toMatch(/\b(Plans|Credits available|Billing history|Usage|You have)\b/);
    await accessible();
  });
});

function freshReply(gate: Gateway, route: string) {
  const bodies: Record<string, unknown> = {
    "GET /credits/check": credits(),
    "GET /plans": offers,
    "GET /billing/subscription": standing(null),
    "GET /billing/history": { data: [], next: null },
    "GET /usage": { data: [], next: null, complete: true },
  };
  void gate;
  return { body: bodies[route] };
}

describe("CreditsDisplay", () => {
  it("shows what is held and owed, and when credits start anew", async () => {
    const body = credits({ available: 1234.5, held: 2, debt: 0.25, plan: "pro_plus", resets_at: "2026-04-01T12:00:00Z" });
    show(gateway().on("GET /credits/check", { body }), <CreditsDisplay />);
    expect(await screen.findByText("1,235 credits available")).toBeTruthy();
    for (const text of ["2 in use right now", /0.25 owed/, /Plan credits reset on Apr 1, 2026/, "Pro plus"]) {
      expect(screen.getByText(text)).toBeTruthy();
    }
    await accessible();
  });

  it("follows the event stream, and says while it is away", async () => {
    const gate = gateway();
    show(gate, <CreditsDisplay />);
    await screen.findByText("40 credits available");
    expect(await screen.findByText("Live")).toBeTruthy();
    act(() => gate.emit("credits", { available: 39, held: 1, debt: 0, low: false, reason: "settle" }));
    expect(await screen.findByText("39 credits available")).toBeTruthy();
    act(() => gate.cut());
    expect(await screen.findByText("Reconnecting…")).toBeTruthy();
  });

  it("does not believe an answer that is older than an event", async () => {
    const gate = gateway();
    show(gate, <CreditsDisplay />);
    await screen.findByText("40 credits available");
    await waitFor(() => expect(gate.streams).toBe(1));
    act(() => gate.emit("credits", { available: 1040, held: 0, debt: 0, low: false, reason: "grant" }));
    await screen.findByText("1,040 credits available");
    // It asks for the balance again, and is told what was true a moment ago, and the plan.
    gate.on("GET /credits/check", { body: credits({ plan: "pro" }) });
    act(() => gate.emit("subscription", standing({ plan: "pro" })));
    await screen.findByText("Pro");
    expect(screen.getByText("1,040 credits available")).toBeTruthy();
  });

  it.each([["never"], ["offline"], [{ status: 503, body: {} }]] as const)("fits into a line while it is not known: %j", async (reply) => {
    show(gateway().on("GET /credits/check", reply), <CreditsDisplay compact />);
    expect(await screen.findByRole("status", { name: "… credits available" })).toBeTruthy();
    await accessible();
  });

  it("fits into a line", async () => {
    show(gateway(), <CreditsDisplay compact />);
    expect(await screen.findByRole("status", { name: "40 credits available" })).toBeTruthy();
    await accessible();
  });
});

describe("CreditsWarning", () => {
  it("shows nothing while there are enough", async () => {
    const gate = gateway();
    show(gate, <CreditsWarning />);
    await waitFor(() => expect(gate.made("GET", "/credits/check").length).toBe(1));
    expect(screen.queryByRole("status")).toBeNull();
  });

  it("warns, can be waved away, and comes back when nothing is left", async () => {
    const gate = gateway().on("GET /credits/check", { body: credits({ available: 2, low: true }) });
    const upgrade = vi.fn();
    show(gate, <CreditsWarning onUpgrade={upgrade} />);
    expect(await screen.findByText("You are running low on credits")).toBeTruthy();
    await accessible();
    await click("See plans");
    expect(upgrade).toHaveBeenCalledOnce();
    await click("Dismiss");
    expect(screen.queryByText("You are running low on credits")).toBeNull();
    act(() => gate.emit("credits", { available: 0, held: 0, debt: 0, low: true, reason: "settle" }));
    expect((await screen.findByRole("alert")).textContent).toContain("You have no credits left");
    expect(screen.queryByRole("button", { name: "Dismiss" })).toBeNull();
    await accessible();
  });

  it.each([["never"], ["offline"], [{ status: 401, body: {} }], [{ status: 500, body: {} }]] as const)(
    "shows nothing while the balance is not known: %j",
    async (reply) => {
      const gate = gateway().on("GET /credits/check", reply);
      show(gate, <CreditsWarning />);
      await waitFor(() => expect(gate.made("GET", "/credits/check").length).toBe(1));
      expect(screen.queryByRole("status")).toBeNull();
      expect(screen.queryByRole("alert")).toBeNull();
    },
  );

  it("warns at a balance of one's own", async () => {
    show(gateway(), <CreditsWarning threshold={50} />);
    expect(await screen.findByText("40 credits are left.")).toBeTruthy();
  });
});

describe("PlanSelector", () => {
  it("offers what is sold, in the reader's currency, by month and by year", async () => {
    show(gateway(), <PlanSelector />, { currency: "eur" });
    const pro = (await screen.findByRole("heading", { name: "Pro" })).closest("li");
    expect(pro?.textContent).toContain("$20 a month");
    for (const fact of ["1,000 credits a month", "Up to 300 unused", "14 days free", "60 requests", "9,000 tokens", "4 requests at a time"]) {
      expect(pro?.textContent).toContain(fact);
    }
    expect(screen.getByRole("heading", { name: "Basic" }).closest("li")?.textContent).toContain("€9 a month");
    const free = screen.getByRole("heading", { name: /^Free/ }).closest("li");
    expect(free?.textContent).toContain("Your plan");
    expect(within(free as HTMLElement).queryByRole("button")).toBeNull();
    expect(screen.getByRole("heading", { name: "Small" }).closest("li")?.textContent).toMatch(/\$5\.50.*100 credits.*90 days/);
    await accessible();
    fireEvent.click(screen.getByRole("radio", { name: "Yearly" }));
    expect(pro?.textContent).toContain("$200 a year");
    await accessible();
  });

  it("says when nothing is sold", async () => {
    show(gateway().on("GET /plans", { body: { plans: [], packs: [] } }), <PlanSelector />);
    expect(await screen.findByText("There are no plans to choose from.")).toBeTruthy();
  });

  it("says what a change costs before it makes it", async () => {
    const gate = gateway()
      .on("GET /billing/subscription", { body: standing({}) })
      .on("POST /billing/subscription", ({ body }) =>
        (body as { preview?: boolean }).preview
          ? { body: { takes_effect: "now", amount_due: 950, currency: "usd" } }
          : { body: standing({ plan: "pro", amount: 2000 }) },
      );
    show(gate, <PlanSelector />);
    await screen.findByText("Your plan");
    await click("Switch to Pro");
    expect(await screen.findByText("It starts now. $9.50 is charged today.")).toBeTruthy();
    expect(document.activeElement?.textContent).toBe("Confirm");
    await accessible();
    await click("Confirm");
    await waitFor(() =>
      expect(screen.getByRole("heading", { name: /^Pro/ }).closest("li")?.getAttribute("data-current")).toBe("true"),
    );
    expect(gate.made("POST", "/billing/subscription")).toEqual([
      { plan: "pro", interval: "month", preview: true },
      { plan: "pro", interval: "month" },
    ]);
  });

  it("says that a cheaper plan begins later, and leaves it when told to", async () => {
    const gate = gateway()
      .on("GET /billing/subscription", { body: standing({ plan: "pro" }) })
      .on("POST /billing/subscription", { body: { takes_effect: "period_end", amount_due: 0, currency: "usd" } });
    show(gate, <PlanSelector />);
    await screen.findByText("Your plan");
    await click("Switch to Basic");
    expect(await screen.findByText(/It starts when the period that is paid ends/)).toBeTruthy();
    await click("Cancel");
    expect(screen.getByRole("button", { name: "Switch to Basic" })).toBeTruthy();
    expect(gate.made("POST", "/billing/subscription").length).toBe(1);
  });

  it("says why a change was refused", async () => {
    const gate = gateway()
      .on("GET /billing/subscription", { body: standing({}) })
      .on("POST /billing/subscription", { status: 409, body: { detail: "keep it first" } });
    show(gate, <PlanSelector />);
    await screen.findByText("Your plan");
    await click("Switch to Pro");
    expect((await screen.findByRole("alert")).textContent).toContain("keep it first");
  });

  it("marks the plan that follows", async () => {
    show(gateway().on("GET /billing/subscription", { body: standing({ plan: "pro", next_plan: "basic" }) }), <PlanSelector />);
    expect(await screen.findByText("Your next plan")).toBeTruthy();
    expect(screen.queryByRole("button", { name: "Switch to Basic" })).toBeNull();
  });
});

describe("StripeCheckout", () => {
  it("opens one page, however often it is pressed", async () => {
    const gate = gateway().on("POST /billing/checkout", { status: 201, body: { id: "cs_1", url: "https://pay.example/cs_1" } });
    const open = vi.fn();
    show(gate, <StripeCheckout plan="pro" interval="month" currency="usd" onOpen={open} />);
    const button = screen.getByRole("button", { name: "Go to checkout" });
    await accessible();
    await act(async () => {
      fireEvent.click(button);
      fireEvent.click(button);
    });
    await waitFor(() => expect(open).toHaveBeenCalledWith({ id: "cs_1", url: "https://pay.example/cs_1" }));
    expect(open).toHaveBeenCalledOnce();
    expect(gate.made("POST", "/billing/checkout")).toEqual([{ plan: "pro", interval: "month", currency: "usd" }]);
  });

  it("says that it is opening, and why it did not", async () => {
    const gate = gateway().on("POST /billing/checkout", "never");
    show(gate, <StripeCheckout pack="small">Buy</StripeCheckout>);
    await click("Buy");
    expect(screen.getByRole("button", { name: "Opening checkout…" }).getAttribute("aria-disabled")).toBe("true");
  });

  it.each([
    [{ status: 503, body: {} }, "does not answer"],
    [{ status: 403, body: {} }, "may not do that"],
    ["offline" as const, "You are offline"],
    [{ status: 400, body: {} }, "could not be loaded"],
  ])("says why it failed: %j", async (reply, text) => {
    show(gateway().on("POST /billing/checkout", reply), <StripeCheckout pack="small">Buy</StripeCheckout>);
    await click("Buy");
    expect((await screen.findByRole("alert")).textContent).toContain(text);
    expect(screen.getByRole("button", { name: "Buy" })).toBeTruthy();
  });
});

describe("CheckoutResult", () => {
  it("thanks, tells when the credits are there, and says nothing after a reload", async () => {
    window.history.replaceState(null, "", "/billing?checkout=success&session_id=cs_1&tab=a");
    const gate = gateway();
    show(gate, <CheckoutResult />);
    expect(await screen.findByText("Thank you")).toBeTruthy();
    expect(window.location.search).toBe("?tab=a");
    await waitFor(() => expect(gate.streams).toBe(1));
    await accessible();
    act(() => gate.emit("credits", { available: 1040, held: 0, debt: 0, low: false, reason: "grant" }));
    expect(await screen.findByText("Your credits are here: 1,040 are available.")).toBeTruthy();
    await click("Dismiss");
    expect(screen.queryByText("Thank you")).toBeNull();
  });

  it("says that nothing was charged", async () => {
    show(gateway(), <CheckoutResult result="cancelled" />);
    expect(await screen.findByText("Nothing was charged.")).toBeTruthy();
  });

  it("shows nothing on other pages", () => {
    show(gateway(), <CheckoutResult />);
    expect(screen.queryByRole("status")).toBeNull();
  });
});

describe("SubscriptionStatus", () => {
  it.each([
    [{}, "Renews on Apr 1, 2026 for $10"],
    [{ amount: null }, "Renews on Apr 1, 2026"],
    [{ status: "trialing", trial_end: "2026-03-15T12:00:00Z" }, "Your trial ends on Mar 15, 2026"],
    [{ cancel_at_period_end: true }, "Ends on Apr 1, 2026"],
    [{ status: "canceled", ended_at: "2026-03-20T12:00:00Z" }, "Ended on Mar 20, 2026"],
    [{ next_plan: "basic", plan: "pro" }, "Changes to Basic on Apr 1, 2026"],
    [{ status: "paused" }, "Paused"],
    [{ status: "unheard_of" }, "unheard_of"],
  ])("shows %j", async (more, text) => {
    show(gateway().on("GET /billing/subscription", { body: standing(more) }), <SubscriptionStatus />);
    expect(await screen.findByText(text)).toBeTruthy();
    await accessible();
  });

  it.each([
    ["active", "Active", true],
    ["trialing", "Trial", true],
    ["past_due", "Payment due", true],
    ["unpaid", "Unpaid", true],
    ["paused", "Paused", true],
    ["canceled", "Ended", false],
    ["incomplete", "Payment incomplete", false],
    ["incomplete_expired", "Payment not completed", false],
  ])("calls %s by its name, and offers to cancel what runs", async (status, name, runs) => {
    show(gateway().on("GET /billing/subscription", { body: standing({ status }) }), <SubscriptionStatus />);
    expect(await screen.findByText(name)).toBeTruthy();
    expect(screen.queryByRole("button", { name: "Cancel subscription" }) !== null).toBe(runs);
  });

  it("says why it could not be resumed, and why the portal did not open", async () => {
    const gate = gateway()
      .on("GET /billing/subscription", { body: standing({ cancel_at_period_end: true }) })
      .on("POST /billing/subscription", { status: 409, body: { detail: "it has ended meanwhile" } })
      .on("POST /billing/portal", "offline");
    show(gate, <SubscriptionStatus />);
    await click(await screen.findByText("Resume subscription").then(() => "Resume subscription"));
    expect((await screen.findByRole("alert")).textContent).toContain("it has ended meanwhile");
    await click("Payment method and invoices");
    await waitFor(() => expect(screen.getAllByRole("alert").some((one) => one.textContent?.includes("You are offline"))).toBe(true));
  });

  it("asks to pay what is due, only at an address of the web", async () => {
    const due = { status: "past_due", past_due_since: "2026-03-02T12:00:00Z", grace_ends_at: "2026-03-06T12:00:00Z" };
    const gate = gateway().on("GET /billing/subscription", { body: standing({ ...due, pay_url: "https://pay.example/in_1" }) });
    const shown = show(gate, <SubscriptionStatus />);
    expect((await screen.findByRole("alert")).textContent).toContain("usable until Mar 6, 2026");
    const link = screen.getByRole("link", { name: /Pay now/ });
    expect([link.getAttribute("href"), link.getAttribute("rel")]).toEqual(["https://pay.example/in_1", "noreferrer noopener"]);
    await accessible();
    shown.unmount();
    show(gateway().on("GET /billing/subscription", { body: standing({ ...due, pay_url: "javascript:alert(1)" }) }), <SubscriptionStatus />);
    await screen.findByRole("alert");
    expect(screen.queryByRole("link")).toBeNull();
  });

  it("asks before it cancels, and resumes", async () => {
    const gate = gateway()
      .on("GET /billing/subscription", { body: standing({}) })
      .on("DELETE /billing/subscription", { body: standing({ cancel_at_period_end: true }) })
      .on("POST /billing/subscription", { body: standing({}) });
    show(gate, <SubscriptionStatus />);
    await screen.findByText(/Renews on/);
    await click("Cancel subscription");
    expect(screen.getByText(/It stays active until Apr 1, 2026/)).toBeTruthy();
    // The harmless answer has the focus.
    expect(document.activeElement?.textContent).toBe("Keep it");
    await accessible();
    await click("Keep it");
    expect(gate.made("DELETE", "/billing/subscription")).toEqual([]);
    await click("Cancel subscription");
    await click("Cancel it");
    expect(await screen.findByText("Ends on Apr 1, 2026")).toBeTruthy();
    await click("Resume subscription");
    expect(await screen.findByText(/Renews on/)).toBeTruthy();
    expect(gate.made("POST", "/billing/subscription")).toEqual([{ resume: true }]);
  });

  it("says why it could not be cancelled, and opens the portal", async () => {
    const gate = gateway()
      .on("GET /billing/subscription", { body: standing({}) })
      .on("DELETE /billing/subscription", { status: 503, body: {} })
      .on("POST /billing/portal", { status: 201, body: { id: "bps_1", url: "https://pay.example/p" } });
    const open = vi.fn();
    show(gate, <SubscriptionStatus onOpen={open} />);
    await screen.findByText(/Renews on/);
    await click("Cancel subscription");
    await click("Cancel it");
    expect((await screen.findByRole("alert")).textContent).toContain("does not answer");
    await click("Payment method and invoices");
    await waitFor(() => expect(open).toHaveBeenCalledOnce());
  });

  it("follows the event stream", async () => {
    const gate = gateway();
    show(gate, <SubscriptionStatus />);
    await screen.findByText(/You have no subscription/);
    await waitFor(() => expect(gate.streams).toBe(1));
    act(() => gate.emit("subscription", standing({ plan: "pro" })));
    expect(await screen.findByText(/Renews on/)).toBeTruthy();
  });
});

describe("BillingHistory", () => {
  it("lists payments with their documents, and more of them", async () => {
    const gate = gateway()
      .on("GET /billing/history?limit=2", { body: { data: [payment(), payment({ id: "in_2", number: null, status: "open" })], next: "a b" } })
      .on("GET /billing/history?limit=2&cursor=a%20b", {
        body: { data: [payment({ id: "pi_3", kind: "pack", status: "refunded", hosted_url: null, pdf_url: null, currency: "jpy" })], next: null },
      });
    show(gate, <BillingHistory pageSize={2} />);
    expect(await screen.findByRole("rowheader", { name: "Invoice F-1" })).toBeTruthy();
    expect(screen.getByRole("link", { name: "PDF Invoice F-1 (opens in a new tab)" })).toBeTruthy();
    await accessible();
    await click("Show more");
    const row = (await screen.findByRole("rowheader", { name: "Credits" })).closest("tr");
    expect(row?.textContent).toContain("¥1,000");
    expect(row?.textContent).toContain("Refunded");
    expect(screen.queryByRole("button", { name: "Show more" })).toBeNull();
    expect(screen.getAllByRole("row").length).toBe(4);
  });

  it.each([
    ["paid", "Paid"],
    ["open", "Open"],
    ["draft", "Draft"],
    ["void", "Void"],
    ["uncollectible", "Not collected"],
    ["refunded", "Refunded"],
    ["disputed", "Disputed"],
    ["unheard_of", "unheard_of"],
  ])("calls %s by its name", async (status, name) => {
    show(gateway().on("GET /billing/history", { body: { data: [payment({ status })], next: null } }), <BillingHistory />);
    expect(await screen.findByText(name)).toBeTruthy();
  });

  it("says why there are no more", async () => {
    const gate = gateway()
      .on("GET /billing/history?limit=1", { body: { data: [payment()], next: "x" } })
      .on("GET /billing/history?limit=1&cursor=x", { status: 503, body: {} });
    show(gate, <BillingHistory pageSize={1} />);
    await screen.findByRole("rowheader", { name: "Invoice F-1" });
    await click("Show more");
    expect((await screen.findByRole("alert")).textContent).toContain("does not answer");
    expect(screen.getByRole("button", { name: "Show more" })).toBeTruthy();
  });
});

describe("UsageAnalytics", () => {
  const today = new Date().toISOString().slice(0, 10);
  const used = (gate = gateway()) =>
    gate.on("GET /usage", ({ path }) => ({
      body: {
        data: path.includes("group_by=model")
          ? [sum({ model: null, credits: 0.5 }), sum({ model: "gpt-4o", credits: 2.5 })]
          : [sum({ day: today, credits: 3, requests: 1200, input_tokens: 1500 })],
        next: null,
        complete: true,
      },
    }));

  it("draws the days, sums them, and lists the models by what they cost", async () => {
    show(used(), <UsageAnalytics />);
    const chart = await screen.findByRole("img", { name: /3 in all/ });
    expect(chart.querySelectorAll(".fg-chart-bar").length).toBe(30);
    expect(screen.getByText("1.5K")).toBeTruthy();
    const models = await screen.findByRole("group", { name: "By model" });
    await within(models).findByRole("rowheader", { name: "gpt-4o" });
    expect(within(models).getAllByRole("rowheader").map((head) => head.textContent)).toEqual(["gpt-4o", "No model"]);
    await accessible();
  });

  it("follows what is used, but not with a call for every message", async () => {
    const gate = used();
    show(
      gate,
      <>
        <CreditsDisplay compact />
        <UsageAnalytics models={false} />
      </>,
    );
    await screen.findByRole("img", { name: /3 in all/ });
    await waitFor(() => expect(gate.streams).toBe(1));
    const asked = () => gate.calls.filter((call) => call.path.startsWith("/usage")).length;
    expect(asked()).toBe(1);
    for (let left = 39; left > 9; left -= 1) {
      act(() => gate.emit("credits", { available: left, held: 0, debt: 0, low: false, reason: "usage" }));
    }
    await screen.findByRole("status", { name: "10 credits available" });
    await waitFor(() => expect(asked()).toBe(2));
    act(() => gate.emit("credits", { available: 9, held: 0, debt: 0, low: false, reason: "usage" }));
    await screen.findByRole("status", { name: "9 credits available" });
    expect(asked()).toBe(2);
  });

  it("tells each day to the keyboard and to the pointer", async () => {
    show(used(), <UsageAnalytics models={false} periods={[7]} />);
    const chart = await screen.findByRole("img", { name: /3 in all/ });
    fireEvent.keyDown(chart, { key: "ArrowLeft" });
    expect(screen.getByText(/: 3 credits$/)).toBeTruthy();
    fireEvent.keyDown(chart, { key: "ArrowLeft" });
    expect(screen.getByText(/: 0 credits$/)).toBeTruthy();
    fireEvent.pointerEnter(chart.querySelectorAll(".fg-chart-touch")[6] as Element);
    expect(screen.getByText(/: 3 credits$/)).toBeTruthy();
    fireEvent.blur(chart);
    expect(screen.queryByText(/: 3 credits$/)).toBeNull();
  });

  it("is a table, too", async () => {
    show(used(), <UsageAnalytics models={false} />);
    await screen.findByRole("img");
    await click("Show as table");
    expect(screen.getByRole("row", { name: /1,200/ })).toBeTruthy();
    await accessible();
    await click("Hide table");
    expect(screen.queryByRole("table")).toBeNull();
  });

  it("asks for another period, and says when sums are not complete", async () => {
    const gate = used();
    show(gate, <UsageAnalytics models={false} />);
    await screen.findByRole("img");
    gate.on("GET /usage", { body: { data: [sum({ day: today })], next: null, complete: false } });
    fireEvent.change(screen.getByLabelText("Period"), { target: { value: "7" } });
    expect(await screen.findByText("The latest requests are still being added up.")).toBeTruthy();
    expect(screen.getByRole("img").querySelectorAll(".fg-chart-bar").length).toBe(7);
  });
});

function Bell() {
  const { data, unread, markRead } = useNotifications();
  return (
    <>
      <button type="button" onClick={() => void markRead()}>
        {unread} of {data?.data.length ?? 0}
      </button>
      <button type="button" onClick={() => void markRead([1])}>
        First
      </button>
    </>
  );
}

describe("FaregateProvider", () => {
  it("shows nothing of one user's to the next", async () => {
    const gate = gateway();
    const as = (user: string) => (
      <FaregateProvider baseUrl="/api" fetch={gate.fetch as typeof fetch} user={user} locale="en-US">
        <CreditsDisplay />
      </FaregateProvider>
    );
    const shown = render(as("ann"));
    await screen.findByText("40 credits available");
    await waitFor(() => expect(gate.streams).toBe(1));
    gate.on("GET /credits/check", { status: 503, body: {} });
    shown.rerender(as("bob"));
    expect((await screen.findByRole("alert")).textContent).toContain("does not answer");
    expect(screen.queryByText(/40/)).toBeNull();
    // The stream that was opened as ann has ended, and one was opened as bob.
    await waitFor(() => expect(gate.made("GET", "/events").length).toBe(2));
    expect(gate.aborted).toBe(1);
  });
});

describe("useNotifications", () => {
  it("counts what is unread, takes what comes, and marks it read", async () => {
    const one = { id: 1, kind: "credits_low", data: {}, created_at: "2026-03-01T12:00:00Z", read_at: null };
    const gate = gateway()
      .on("GET /notifications", { body: { data: [one], next: null } })
      .on("PATCH /notifications", { body: { updated: 2 } });
    show(gate, <Bell />);
    await screen.findByText("1 of 1");
    await waitFor(() => expect(gate.streams).toBe(1));
    act(() => gate.emit("notification", { ...one, id: 2 }));
    act(() => gate.emit("notification", { ...one, id: 2 }));
    await screen.findByText("2 of 2");
    await click("First");
    await screen.findByText("1 of 2");
    await click(/1 of 2/);
    expect(await screen.findByText("0 of 2")).toBeTruthy();
    expect(gate.made("PATCH", "/notifications")).toEqual([{ ids: [1], read: true }, { all: true, read: true }]);
  });
});
