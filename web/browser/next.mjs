// The Next.js example against the gateway: rendered on the server, credits drop as messages go, a 402 opens the plans.
import { strict as assert } from "node:assert";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { freePort, start, until } from "./processes.mjs";

const EXAMPLE = fileURLToPath(new URL("../examples/next", import.meta.url));

export async function next({ browser, server, admin }) {
  assert.ok(existsSync(`${EXAMPLE}/.next/BUILD_ID`), "the example is not built: scripts/test-web.sh does it");
  const { key } = await admin("/keys", { name: "next" });
  const port = await freePort();
  const site = `http://localhost:${port}`;
  start(
    process.execPath,
    ["node_modules/next/dist/bin/next", "start", "--port", String(port), "--hostname", "127.0.0.1"],
    {
      FAREGATE_URL: server.gate,
      FAREGATE_SERVICE_KEY: key,
      DEMO_USER: "next-demo",
      NEXT_TELEMETRY_DISABLED: "1",
      NODE_ENV: "production",
    },
    EXAMPLE,
  );
  await until("the example", async () => (await fetch(site)).ok);
  const html = await (await fetch(site)).text();
  assert.match(html, /class="fg-pill/, "CreditsDisplay is rendered on the server");
  assert.doesNotMatch(html, /fg_srv_/);
  const page = await browser.visit();
  const scripts = [];
  // An event stream has no end.
  const whole = ["document", "script", "stylesheet", "fetch"];
  page.on("response", (response) => {
    const stream = response.headers()["content-type"]?.startsWith("text/event-stream");
    if (!stream && whole.includes(response.request().resourceType())) scripts.push(response.text().catch(() => ""));
  });
  await page.goto(site);
  await page.getByRole("status", { name: "5 credits available" }).waitFor();
  await browser.look(page, "example-next");
  const say = async (text) => {
    await page.getByLabel("Message").fill(text);
    await page.getByRole("button", { name: "Send" }).click();
  };
  for (let sent = 1; sent <= 10; sent += 1) {
    await say(`message ${sent}`);
    await page.waitForFunction((count) => document.querySelectorAll('[data-role="assistant"] p').length >= count, sent);
    const left = (5 - sent * 0.5).toString();
    await page.getByRole("status", { name: `${left} credits available` }).waitFor();
    if (sent === 2) await browser.look(page, "example-next-chat");
  }
  await page.getByText("You have no credits left").waitFor();
  await say("one too many");
  await page.getByRole("heading", { name: "Pro" }).waitFor();
  await browser.look(page, "example-next-plans");
  await page.getByRole("button", { name: "Choose Basic" }).click();
  await page.waitForURL(`${server.stripe}/**`);
  for (const text of await Promise.all(scripts)) assert.ok(!text.includes(key), "the service key stays on the server");
  await page.context().close();
}
