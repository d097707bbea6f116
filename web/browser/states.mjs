// States that the flow does not pass through: the gateway's answers are put in its place.

const later = (days) => new Date(Date.now() + days * 86_400_000).toISOString();

const subscription = (more) => ({
  plan: "pro",
  subscription: {
    id: "sub_1",
    plan: "pro",
    status: "active",
    interval: "month",
    currency: "usd",
    amount: 2000,
    current_period_start: later(-10),
    current_period_end: later(20),
    trial_end: null,
    cancel_at_period_end: false,
    cancel_at: null,
    ended_at: null,
    next_plan: null,
    past_due_since: null,
    grace_ends_at: null,
    pay_url: null,
    ...more,
  },
});

const day = (days) => later(days).slice(0, 10);
const busy = Array.from({ length: 90 }, (_, index) => ({
  day: day(index - 89),
  requests: 40 + ((index * 37) % 90),
  credits: 20 + ((index * 53) % 97) + (index % 7 < 5 ? 30 : 0),
  input_tokens: 9_000 + index * 120,
  cached_tokens: 0,
  output_tokens: 21_000 + index * 300,
  estimated: 0,
  errors: { "4xx": 1, "5xx": 0 },
}));
const model = (name, credits) => ({ ...busy[0], day: undefined, model: name, credits });
const models = [model("gpt-4o", 1830.25), model("claude-sonnet-4", 912.5), model(null, 3.75)];
const payments = [
  ["in_3", "invoice", "F-0003", "open"],
  ["in_2", "invoice", "F-0002", "paid"],
  ["pi_1", "pack", null, "refunded"],
  ["in_1", "invoice", "F-0001", "paid"],
].map(([id, kind, number, status], index) => ({
  id,
  kind,
  number,
  status,
  amount: 2000,
  currency: "usd",
  created_at: later(-30 * index),
  hosted_url: kind === "pack" ? null : "https://invoice.example/i",
  pdf_url: kind === "pack" ? null : "https://invoice.example/i.pdf",
}));

const json = (body, status = 200) => ({ status, contentType: "application/json", body: JSON.stringify(body) });
const broken = json({ detail: "broken" }, 503);

export async function states({ browser, server, admin }) {
  await admin("/users", { id: "states", email: "someone.with.a.long.address@subdomain.example.com" });
  const visit = async (tab, answers, { locale, ready } = {}) => {
    const page = await browser.visit({ strict: false, locale });
    for (const [path, answer] of Object.entries(answers)) {
      await page.route(`**/api/${path}`, (route) => (answer === "never" ? undefined : route.fulfill(typeof answer === "function" ? answer(route) : answer)));
    }
    const { url } = await admin("/users/states/billing-link");
    await page.goto(url.replace(/^http:\/\/[^/]+/, server.gate));
    await page.locator(".brand").waitFor();
    await page.goto(`${server.gate}/billing#${tab}`);
    await page.locator(ready ?? ".main .fg-card").first().waitFor();
    return page;
  };
  const picture = async (name, tab, answers, options = {}) => {
    const page = await visit(tab, answers, options);
    if (options.text) await page.getByText(options.text).first().waitFor();
    await browser.look(page, name);
    await page.unrouteAll({ behavior: "ignoreErrors" });
    await page.context().close();
  };
  const usage = (route) => json({ data: route.request().url().includes("model") ? models : busy.slice(-30), next: null, complete: true });
  const rich = {
    "credits/check": json({ available: 8412.75, held: 12.5, debt: 0, plan: "pro", low: false, resets_at: later(20) }),
    "usage**": usage,
    "billing/history**": json({ data: payments, next: "more" }),
    "events": broken,
  };
  const all = ["credits/check", "plans", "billing/subscription", "billing/history**", "usage**", "keys**", "notifications**"];
  const every = (answer) => Object.fromEntries(all.map((path) => [path, answer]));
  await picture("state-rich-overview", "overview", { ...rich, "billing/subscription": json(subscription({})) }, { text: "Renews on" });
  await picture("state-rich-usage", "usage", rich, { text: "claude-sonnet-4" });
  await picture("state-rich-history", "history", rich, { text: "Show more" });
  for (const tab of ["overview", "plans", "usage", "history"]) {
    await picture(`state-loading-${tab}`, tab, every("never"), { ready: ".fg-skeleton" });
    await picture(`state-error-${tab}`, tab, every(broken), { ready: ".fg-note-error" });
  }
  const lost = { ...rich, "billing/history**": json({ detail: "no" }, 401) };
  await picture("state-unauthorized", "history", lost, { ready: ".door .fg-card", text: "Your session has ended" });
  for (const [name, more, text] of [
    ["past-due", { status: "past_due", past_due_since: later(-1), grace_ends_at: later(3), pay_url: "https://invoice.example/i" }, "Pay now"],
    ["trial", { status: "trialing", trial_end: later(9) }, "Your trial ends"],
    ["paused", { status: "paused" }, "Paused"],
    ["ended", { status: "canceled", ended_at: later(-3) }, "Ended on"],
    ["next-plan", { next_plan: "basic" }, "Changes to Basic"],
  ]) {
    await picture(`state-${name}`, "overview", { ...rich, "billing/subscription": json(subscription(more)) }, { text });
  }
  await picture(
    "state-debt",
    "overview",
    { ...rich, "credits/check": json({ available: 0, held: 3, debt: 4.25, plan: "pro", low: true, resets_at: later(20) }) },
    { text: "owed" },
  );
  const dutch = { ...rich, "billing/subscription": json(subscription({})) };
  for (const tab of ["overview", "plans", "history"]) await picture(`state-dutch-${tab}`, tab, dutch, { locale: "nl-NL" });
  const offline = await visit("overview", { ...rich, "billing/subscription": json(subscription({})) });
  await offline.getByText("Renews on").waitFor();
  await offline.context().setOffline(true);
  await offline.getByText("You are offline").first().waitFor();
  await browser.look(offline, "state-offline");
  await offline.unrouteAll({ behavior: "ignoreErrors" });
  await offline.context().close();
}
