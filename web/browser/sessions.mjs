// Who is signed in, by what, until when: Stack Auth's tokens, sessions that end by themselves, elsewhere, or with their
// user; and what the browser itself keeps the page from doing.
import { strict as assert } from "node:assert";
import { ADMIN_TOKEN } from "./processes.mjs";

const SESSION_MS = 12 * 3_600_000;
const CONSOLE_SESSION_MS = 8 * 3_600_000;

export async function sessions({ browser, server, admin, step }) {
  const sim = async (path, body) => {
    const response = await fetch(`${server.stack}/_sim/${path}`, { method: "POST", body: JSON.stringify(body) });
    assert.ok(response.ok, `${path}: ${response.status}`);
    return response.json();
  };
  const zoe = { id: "5a0b7c1e-0000-4000-8000-00000000000e", email: "zoe@example.com" };
  const { accessToken } = await sim("token", zoe);
  const byToken = (token) => `${server.gate}/billing#token=${token}`;

  step("Stack Auth: signs up and in by a token, which leaves the address");
  const page = await browser.visit();
  await page.goto(byToken(accessToken));
  await page.getByText("zoe@example.com").waitFor();
  await page.getByText("5 credits available").first().waitFor({ state: "attached" });
  assert.equal(new URL(page.url()).hash, "");
  const cookies = await page.context().cookies();
  assert.deepEqual(
    cookies.map(({ name, httpOnly, sameSite, path }) => ({ name, httpOnly, sameSite, path })),
    [{ name: "fg_session", httpOnly: true, sameSite: "Strict", path: "/" }],
  );
  assert.equal(await page.evaluate(() => document.cookie), "", "scripts see no session");
  assert.deepEqual(await page.evaluate(() => [localStorage.length, Object.values(sessionStorage).filter((kept) => kept.length > 40)]), [0, []]);
  await page.reload();
  await page.getByText("zoe@example.com").waitFor();

  step("a link of another account asks first");
  const link = async (user) => (await admin(`/users/${user}/billing-link`)).url.replace(/^http:\/\/[^/]+/, server.gate);
  const asked = await browser.visit({ strict: false });
  await asked.goto(await link("ann"));
  await asked.getByText("ann@example.com").waitFor();
  await asked.goto("about:blank");
  await asked.goto(byToken(accessToken));
  await asked.getByRole("heading", { name: "Another account" }).waitFor();
  await browser.look(asked, "billing-other-account");
  await asked.getByRole("button", { name: "Stay signed in" }).click();
  await asked.getByText("ann@example.com").waitFor();
  await asked.goto("about:blank");
  await asked.goto(byToken(accessToken));
  await asked.getByRole("button", { name: "Switch to the other account" }).click();
  await asked.getByText("zoe@example.com").waitFor();
  // A link that does not open leaves whoever is signed in; put into an open page's address, too.
  await asked.goto("about:blank");
  await asked.goto(`${server.gate}/billing#link=used`);
  await asked.getByText("zoe@example.com").waitFor();
  await asked.evaluate((hash) => (window.location.hash = hash), new URL(await link("ann")).hash);
  await asked.getByRole("button", { name: "Switch to the other account" }).click();
  await asked.getByText("ann@example.com").waitFor();
  assert.equal(new URL(asked.url()).hash, "", "a link's secret leaves the address");
  await asked.goto("about:blank");
  await asked.goto(byToken(accessToken));
  await asked.getByRole("button", { name: "Switch to the other account" }).click();
  await asked.getByText("zoe@example.com").waitFor();
  await asked.context().close();

  step("a token that nobody signed opens nothing");
  const refused = await browser.visit({ strict: false });
  await refused.goto(byToken(`${accessToken.slice(0, -8)}AAAAAAAA`));
  await refused.getByText("This sign-in is not valid").waitFor();
  await browser.look(refused, "billing-sign-in-refused");
  await refused.context().close();

  step("signed out in one tab is signed out in the other");
  const context = page.context();
  const other = await context.newPage();
  await other.goto(`${server.gate}/billing`);
  await other.getByText("zoe@example.com").waitFor();
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByText("You are signed out").waitFor();
  assert.deepEqual(await context.cookies(), []);
  await other.getByRole("link", { name: "API keys" }).click();
  await other.getByText("Your session has ended").waitFor();
  await browser.look(other, "billing-session-ended");
  await context.close();

  step("a session ends by itself");
  const aged = await browser.visit({ strict: false });
  await aged.clock.install();
  await aged.goto(byToken((await sim("token", zoe)).accessToken));
  await aged.getByText("zoe@example.com").waitFor();
  await aged.clock.fastForward(SESSION_MS + 60_000);
  await aged.getByText("Your session has ended").waitFor();
  await aged.context().close();
  const console = await browser.visit({ strict: false });
  await console.clock.install();
  await console.goto(`${server.operator}/console`);
  await console.getByLabel("Admin token").fill(ADMIN_TOKEN);
  await console.getByRole("button", { name: "Sign in" }).click();
  await console.getByRole("link", { name: "Health" }).click();
  await console.clock.fastForward(CONSOLE_SESSION_MS + 60_000);
  await console.getByLabel("Admin token").waitFor();
  await console.context().close();

  step("an operator whose session was ended elsewhere is asked for the token again");
  const operator = await browser.visit({ strict: false });
  await operator.goto(`${server.operator}/console`);
  await operator.getByLabel("Admin token").fill(ADMIN_TOKEN);
  await operator.getByRole("button", { name: "Sign in" }).click();
  await operator.getByRole("link", { name: "Users" }).click();
  await operator.context().clearCookies();
  await operator.getByRole("link", { name: "Audit log" }).click();
  await operator.getByLabel("Admin token").waitFor();
  await operator.context().close();

  step("a user who is deleted while looking on");
  const gone = await browser.visit({ strict: false });
  await gone.goto(byToken((await sim("token", zoe)).accessToken));
  await gone.getByText("zoe@example.com").waitFor();
  const { statuses } = await sim("events", { type: "user.deleted", ...zoe });
  assert.deepEqual(statuses, [200]);
  for (let tries = 0; (await admin(`/users/${zoe.id}`, {}, "GET")).status !== "closed"; tries += 1) {
    assert.ok(tries < 200, "the user is closed");
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  await gone.getByRole("link", { name: "API keys" }).click();
  await gone.getByText(/may not do that|session has ended/).first().waitFor();
  await browser.look(gone, "billing-user-deleted");
  await gone.goto(byToken((await sim("token", zoe)).accessToken));
  await gone.reload();
  await gone.getByText(/not valid|signed out|used/).first().waitFor();
  await gone.context().close();

  step("what is put into the page may neither run nor call out");
  const held = await browser.visit({ strict: false });
  await held.goto(`${server.gate}/billing`);
  await held.getByText("You are signed out").waitFor();
  const done = await held.evaluate(async (elsewhere) => {
    const tried = {};
    tried.calls = await fetch(elsewhere, { mode: "no-cors" }).then(() => "done", () => "refused");
    try {
      document.body.insertAdjacentHTML("beforeend", "<img src=x>");
      tried.html = "done";
    } catch {
      tried.html = "refused";
    }
    const script = document.createElement("script");
    try {
      script.textContent = "window.ran = true";
      document.body.append(script);
    } catch {
      // Trusted types refuse the text itself.
    }
    tried.inline = window.ran === true ? "done" : "refused";
    return tried;
  }, `${server.stripe}/`);
  assert.deepEqual(done, { calls: "refused", html: "refused", inline: "refused" });
  await held.context().close();
}
