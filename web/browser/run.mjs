// The pages in a real browser: a user's way from five credits to a plan and back, an operator's day, and every state
// that a page can be in.
import { strict as assert } from "node:assert";
import { mkdirSync, rmSync } from "node:fs";
import { ADMIN_TOKEN, close, open, until } from "./processes.mjs";
import { next } from "./next.mjs";
import { sessions } from "./sessions.mjs";
import { states } from "./states.mjs";
import { Browser } from "./watch.mjs";

const MAX_PAGE_BYTES = 120 * 1024;
const binaries = { faregate: process.env.FAREGATE_BINARY, sim: process.env.FAREGATE_SIM };
const shots = process.env.SHOTS ?? "shots";
rmSync(shots, { recursive: true, force: true });
mkdirSync(shots, { recursive: true });

const server = await open(binaries);
const browser = await Browser.open(process.env.CHROMIUM ?? "/usr/bin/chromium", shots, server.stripe);
const step = (text) => console.log(`- ${text}`);

async function admin(path, body = {}, method = "POST") {
  const init = { method, headers: { authorization: `Bearer ${ADMIN_TOKEN}`, "content-type": "application/json" } };
  if (method !== "GET") init.body = JSON.stringify(body);
  const response = await fetch(`${server.operator}/admin/v1${path}`, init);
  assert.ok(response.ok, `${method} ${path}: ${response.status} ${await response.clone().text()}`);
  return response.status === 204 ? undefined : response.json();
}

/** The simulated Stripe has pages of its own, which are not looked at. */
const ours = (url) => !url.startsWith(server.stripe);

let key;

/** A message to the demo upstream, as the user's chat client sends it. */
async function chat(as = key) {
  const response = await fetch(`${server.gate}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${as}`, "content-type": "application/json" },
    body: JSON.stringify({ model: "demo", messages: [{ role: "user", content: "Hello" }] }),
  });
  await response.text();
  return response.status;
}

async function user() {
  step("sign up: five credits");
  await admin("/users", { id: "ann", email: "ann@example.com" });
  ({ key } = await admin("/users/ann/keys", { name: "chat" }));
  const link = await admin("/users/ann/billing-link");
  const page = await browser.visit({ ours });
  let bytes = 0;
  page.on("response", async (response) => {
    if (/\/assets\/|\/billing(#|$)/.test(response.url())) bytes += (await response.request().sizes()).responseBodySize;
  });
  await page.goto(link.url.replace(/^http:\/\/[^/]+/, server.gate));
  await page.getByText("5 credits available").waitFor({ state: "attached" });
  await page.getByText("Live", { exact: true }).waitFor();
  assert.equal(new URL(page.url()).hash, "", "the link's secret has left the address");
  assert.ok(bytes > 0 && bytes < MAX_PAGE_BYTES, `the page is ${bytes} bytes`);
  step(`the billing page is ${(bytes / 1024).toFixed(1)} KB compressed`);
  await browser.look(page, "billing-overview-new");

  step("chat until the warning, until empty; the page follows without a reload");
  await page.evaluate(() => (window.stayed = true));
  for (let sent = 0; sent < 9; sent += 1) assert.equal(await chat(), 200);
  await page.getByText("You are running low on credits").waitFor();
  await page.getByText("0.5 credits available").waitFor({ state: "attached" });
  await browser.look(page, "billing-overview-low");
  assert.equal(await chat(), 200);
  await page.getByText("You have no credits left").waitFor();
  assert.equal(await chat(), 402);
  await browser.look(page, "billing-overview-empty");

  step("choose a plan, pay");
  await page.getByRole("button", { name: "See plans" }).click();
  await page.getByRole("heading", { name: "Pro" }).waitFor();
  await browser.look(page, "billing-plans");
  assert.ok(await page.evaluate(() => window.stayed), "the page was not loaded again");
  await page.getByRole("button", { name: "Choose Pro" }).click();
  await page.waitForURL(`${server.stripe}/**`);
  await page.getByRole("button", { name: "Pay" }).click();
  await page.waitForURL(`${server.gate}/billing**`);
  await page.getByText("Thank you").waitFor();
  await page.evaluate(() => (window.stayed = true));
  await page.getByText("1,000 credits available").waitFor({ state: "attached" });
  assert.ok(await page.evaluate(() => window.stayed));
  await page.getByText(/Renews on/).waitFor();
  assert.equal(await chat(), 200);
  await page.getByText(/999\.5 credits available/).waitFor({ state: "attached" });
  await browser.look(page, "billing-overview-paid");

  step("usage, as a chart and as a table");
  await page.getByRole("link", { name: "Usage" }).click();
  await page.getByRole("img", { name: /in all/ }).waitFor();
  await page.getByRole("group", { name: "By model" }).getByText("demo").waitFor();
  await page.getByRole("button", { name: "Show as table" }).click();
  await page.getByRole("img", { name: /in all/ }).press("ArrowLeft");
  await browser.look(page, "billing-usage");

  step("history with its invoice");
  await page.getByRole("link", { name: "History" }).click();
  await page.getByRole("rowheader", { name: /Invoice/ }).first().waitFor();
  await browser.look(page, "billing-history");

  step("switch, cancel, resume");
  await page.getByRole("link", { name: "Plans" }).click();
  await page.getByRole("button", { name: "Switch to Basic" }).click();
  await page.getByText(/It starts when the period/).waitFor();
  await browser.look(page, "billing-plans-switch");
  await page.getByRole("button", { name: "Cancel", exact: true }).click();
  await page.getByRole("link", { name: "Overview" }).click();
  await page.getByRole("button", { name: "Cancel subscription" }).click();
  await page.getByRole("button", { name: "Cancel it" }).click();
  await page.getByText(/Ends on/).waitFor();
  await browser.look(page, "billing-overview-cancelled");
  await page.getByRole("button", { name: "Resume subscription" }).click();
  await page.getByText(/Renews on/).waitFor();

  step("keys: made, shown once, used, revoked");
  await page.getByRole("link", { name: "API keys" }).click();
  await page.getByLabel("Name").fill("laptop");
  await page.getByRole("button", { name: "Create key" }).click();
  const made = await page.locator(".keys .fg-note .code").innerText();
  assert.match(made, /^fg_live_\w{20,}/);
  await browser.look(page, "billing-keys");
  assert.equal(await chat(made), 200);
  await page.reload();
  await page.getByRole("button", { name: "Revoke laptop" }).waitFor();
  assert.ok(!(await page.content()).includes(made), "a key is shown once");
  await page.getByText(/last used/).first().waitFor();
  await page.getByRole("button", { name: "Revoke laptop" }).click();
  await browser.look(page, "billing-keys-revoke");
  await page.getByRole("button", { name: "Keep it" }).click();
  await page.getByRole("button", { name: "Revoke laptop" }).click();
  await page.getByRole("button", { name: "Revoke", exact: true }).click();
  await page.getByRole("button", { name: "Revoke laptop" }).waitFor({ state: "detached" });
  await until("the key opens nothing", async () => (await chat(made)) === 401);

  step("notifications");
  await page.getByRole("link", { name: /Notifications/ }).click();
  await page.getByText("You have no credits left.").first().waitFor();
  await browser.look(page, "billing-notifications");
  await page.getByRole("button", { name: "Mark all as read" }).click();
  await page.getByRole("button", { name: "Mark all as read" }).waitFor({ state: "detached" });
  await page.reload();
  await page.getByText("You have no credits left.").first().waitFor();
  assert.equal(await page.locator(".unread").count(), 0, "what was read stays read");
  assert.equal(await page.locator(".tabs .count").count(), 0);

  step("feedback");
  await page.getByText("Feedback").click();
  await page.getByLabel("What should be better?").fill("More models, please.");
  await page.getByLabel("How satisfied are you?").selectOption("4");
  await browser.look(page, "billing-feedback");
  await page.getByRole("button", { name: "Send" }).click();
  await page.getByText("Thank you, it has been sent.").waitFor();

  step("the keyboard alone reaches everything");
  await page.getByRole("link", { name: "Overview" }).click();
  await page.getByRole("button", { name: "Cancel subscription" }).waitFor();
  await page.evaluate(() => document.activeElement instanceof HTMLElement && document.activeElement.blur());
  const reached = new Set();
  for (let tabs = 0; tabs < 25; tabs += 1) {
    await page.keyboard.press("Tab");
    reached.add(await page.evaluate(() => document.activeElement?.textContent?.trim() ?? ""));
  }
  for (const name of ["Sign out", "Plans", "Cancel subscription", "Payment method and invoices", "Feedback"]) {
    assert.ok([...reached].some((text) => text === name), `${name} cannot be reached: ${[...reached].join(", ")}`);
  }

  step("sign out; the link does not open twice");
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByText("You are signed out").waitFor();
  await browser.look(page, "billing-signed-out");
  const again = await browser.visit({ strict: false });
  await again.goto(link.url.replace(/^http:\/\/[^/]+/, server.gate));
  await again.getByText("This link has been used").waitFor();
  await browser.look(again, "billing-link-used");
  await page.context().close();
  await again.context().close();
}

async function operator() {
  step("the console: a wrong token, then the right one");
  const wrong = await browser.visit({ strict: false });
  await wrong.goto(`${server.operator}/console`);
  await wrong.getByLabel("Admin token").fill("wrong");
  await wrong.getByRole("button", { name: "Sign in" }).click();
  await wrong.getByText("This token does not open the console.").waitFor();
  await browser.look(wrong, "console-wrong-token");
  await wrong.context().close();
  const page = await browser.visit({ ours });
  await page.goto(`${server.operator}/console`);
  await page.getByLabel("Admin token").fill(ADMIN_TOKEN);
  await browser.look(page, "console-sign-in");
  await page.getByRole("button", { name: "Sign in" }).click();

  step("live traffic");
  await page.getByRole("heading", { name: "Right now" }).waitFor();
  await chat();
  await page.waitForFunction(() => document.querySelectorAll(".rate .fg-chart-bar").length > 0);
  await until("a rate", async () => {
    await chat();
    return page.evaluate(() => [...document.querySelectorAll(".rate strong")].every((one) => one.textContent !== "…" && one.textContent !== "0"));
  });
  await browser.look(page, "console-live");

  step("find a user, give credits, freeze, unfreeze");
  await page.getByRole("link", { name: "Users" }).click();
  await page.getByLabel(/Search/).fill("ann@");
  await page.getByRole("button", { name: "demo" }).waitFor({ state: "detached" });
  await browser.look(page, "console-users");
  await page.getByRole("button", { name: "ann", exact: true }).click();
  await page.getByLabel("Amount").fill("25.5");
  await page.getByLabel("Note").fill("for your patience");
  await page.getByRole("button", { name: "Give", exact: true }).click();
  await page.getByText("for your patience").waitFor();
  await browser.look(page, "console-user");
  await page.getByRole("button", { name: "Freeze…" }).click();
  await page.getByRole("button", { name: "Freeze", exact: true }).click();
  await page.getByText("frozen").first().waitFor();
  assert.equal(await chat(), 403);
  await browser.look(page, "console-user-frozen");
  await page.getByRole("button", { name: "Unfreeze…" }).click();
  await page.getByRole("button", { name: "Unfreeze", exact: true }).click();
  await page.getByText("active").first().waitFor();
  assert.equal(await chat(), 200);

  step("an event, once more");
  const before = (await admin("/users/ann", {}, "GET")).credits.available;
  await page.getByRole("link", { name: "Stripe events" }).click();
  await page.getByRole("button", { name: "invoice.paid" }).first().waitFor();
  await browser.look(page, "console-events");
  await page.getByRole("button", { name: "invoice.paid" }).first().click();
  await page.getByRole("button", { name: "Replay" }).click();
  await page.getByText("It is processed anew").waitFor();
  await page.locator(".event .fg-badge", { hasText: "processed" }).waitFor();
  await browser.look(page, "console-event");
  const event = decodeURIComponent(await page.locator(".event .fg-title").innerText());
  await until("the replay", async () => (await admin(`/events/${event}`, {}, "GET")).state === "processed");
  assert.equal((await admin("/users/ann", {}, "GET")).credits.available, before, "a replay grants nothing twice");

  for (const [name, text] of [
    ["Reports", "Revenue"],
    ["Experiments", "cheaper"],
    ["Feedback", "More models, please."],
    ["Audit log", "console.sign_in"],
    ["Health", "credits_exhausted"],
  ]) {
    step(name.toLowerCase());
    await page.getByRole("link", { name, exact: true }).click();
    await page.getByText(text).first().waitFor();
    await page.waitForFunction(() => document.querySelector(".fg-skeleton") === null);
    await browser.look(page, `console-${name.toLowerCase().replace(/ /g, "-")}`);
  }
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByLabel("Admin token").waitFor();
  await page.context().close();
}

let failed;
try {
  await user();
  await operator();
  await sessions({ browser, server, admin, step });
  step("the Next.js example");
  await next({ browser, server, admin });
  step("every state that a page can be in");
  await states({ browser, server, admin });
} catch (error) {
  failed = error;
  console.error(server.log.slice(-30).join(""));
}
await browser.close();
await close();
for (const problem of browser.problems) console.error(`PROBLEM ${problem}`);
if (failed !== undefined) throw failed;
console.log(`${browser.shots} pictures in ${shots}, ${browser.problems.length} problems`);
process.exit(browser.problems.length === 0 ? 0 : 1);
