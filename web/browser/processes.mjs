// The gateway and the simulators, started for one run and ended with it.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

export const ADMIN_TOKEN = "browser-tests-admin-token-0123456789";
const STACK_PROJECT = "3f0d6a10-0000-4000-8000-000000000001";
const STACK_SECRET = "whsec_dGhlLXNlY3JldC1vZi10aGUtYnJvd3Nlci10ZXN0cw==";
const START_MS = 30_000;

const SETTINGS = `
[plans.free]
signup_credits = 5
[plans.basic]
credits = 400
[[plans.basic.prices]]
id = "price_basic"
currency = "usd"
interval = "month"
amount = 1000
[plans.pro]
credits = 1000
rollover_cap = 300
requests_per_minute = 600
concurrency = 16
[[plans.pro.prices]]
id = "price_pro"
currency = "usd"
interval = "month"
amount = 2000
[[plans.pro.prices]]
id = "price_pro_year"
currency = "usd"
interval = "year"
amount = 20000
[packs.small]
credits = 100
expires_after_days = 90
[[packs.small.prices]]
id = "price_small"
currency = "usd"
amount = 500
[prices.message]
per_request = 0.5
[experiments.basic_price]
plan = "basic"
[[experiments.basic_price.variants]]
name = "control"
weight = 1
[[experiments.basic_price.variants]]
name = "cheaper"
weight = 3
[[experiments.basic_price.variants.prices]]
id = "price_basic_low"
currency = "usd"
interval = "month"
amount = 900
# Nobody listens there: what is to be told becomes a dead letter.
[notify.webhook]
url = "http://127.0.0.1:9/hook"
secrets = ["whsec_YS1zZWNyZXQtb2YtMzItYnl0ZXMtZm9yLXRlc3Rz"]
max_attempts = 1
[stripe]
secret_key = "sk_test_of_the_browser"
webhook_secrets = ["whsec_browser"]
`;

const started = [];
const folder = mkdtempSync(join(tmpdir(), "faregate-web."));

export function freePort() {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.on("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

export function start(binary, args, env, cwd = folder) {
  const child = spawn(binary, args, { cwd, env: { PATH: process.env.PATH, ...env }, stdio: ["ignore", "pipe", "pipe"] });
  const log = [];
  for (const stream of [child.stdout, child.stderr]) {
    stream.on("data", (data) => {
      log.push(data.toString());
      if (log.length > 400) log.shift();
    });
  }
  started.push({ child, log });
  return log;
}

export async function until(what, ask, ms = START_MS) {
  const deadline = Date.now() + ms;
  for (;;) {
    const found = await ask().catch(() => undefined);
    if (found) return found;
    if (Date.now() > deadline) throw new Error(`${what} did not happen within ${ms} ms`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** A gateway with the demo upstream, and Stripe. */
export async function open({ faregate, sim }) {
  const [listen, admin, stripe, stack] = await Promise.all([freePort(), freePort(), freePort(), freePort()]);
  const gate = `http://127.0.0.1:${listen}`;
  const operator = `http://127.0.0.1:${admin}`;
  const settings = join(folder, "settings.toml");
  writeFileSync(settings, SETTINGS);
  const log = start(faregate, ["--config", settings, "serve"], {
    FAREGATE_LISTEN: `127.0.0.1:${listen}`,
    FAREGATE_ADMIN_LISTEN: `127.0.0.1:${admin}`,
    FAREGATE_ADMIN_TOKEN: ADMIN_TOKEN,
    FAREGATE_DATA_DIR: join(folder, "data"),
    FAREGATE_STRIPE_API_BASE: `http://127.0.0.1:${stripe}`,
    FAREGATE_STRIPE__RETURN_URL: `${gate}/billing`,
    FAREGATE_STACK_PROJECT_ID: STACK_PROJECT,
    FAREGATE_STACK_BASE_URL: `http://127.0.0.1:${stack}`,
    FAREGATE_STACK_WEBHOOK_SECRET: STACK_SECRET,
  });
  start(sim, [
    "stack-auth",
    "--listen",
    `127.0.0.1:${stack}`,
    "--project",
    STACK_PROJECT,
    "--webhook",
    `${gate}/api/auth/webhook=${STACK_SECRET}`,
  ]);
  const prices = ["price_basic=1000:usd:month", "price_basic_low=900:usd:month", "price_pro=2000:usd:month", "price_pro_year=20000:usd:year", "price_small=500:usd"];
  start(sim, [
    "stripe",
    "--listen",
    `127.0.0.1:${stripe}`,
    ...prices.flatMap((price) => ["--price", price]),
    "--webhook",
    `${gate}/api/billing/webhook=whsec_browser`,
  ]);
  await until("the gateway", async () => (await fetch(`${operator}/readyz`)).ok);
  await until("Stripe", async () => (await fetch(`http://127.0.0.1:${stripe}/`)).ok);
  await until("Stack Auth", async () => (await fetch(`http://127.0.0.1:${stack}/_sim`)).ok);
  return { gate, operator, stripe: `http://127.0.0.1:${stripe}`, stack: `http://127.0.0.1:${stack}`, log };
}

export async function close() {
  for (const { child } of started) {
    if (child.exitCode !== null) continue;
    const ended = new Promise((resolve) => child.once("exit", resolve));
    child.kill("SIGTERM");
    const late = setTimeout(() => child.kill("SIGKILL"), 20_000);
    await ended;
    clearTimeout(late);
  }
  rmSync(folder, { recursive: true, force: true });
}
