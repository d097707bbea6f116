// A browser that notices what a person would not: errors in its console, requests that fail, rules of axe's that are
// broken, and what it downloads.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { chromium } from "playwright-core";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
export const LOOKS = [
  { name: "light-1280", colorScheme: "light", viewport: { width: 1280, height: 900 } },
  { name: "dark-1280", colorScheme: "dark", viewport: { width: 1280, height: 900 } },
  { name: "light-375", colorScheme: "light", viewport: { width: 375, height: 800 } },
  { name: "dark-375", colorScheme: "dark", viewport: { width: 375, height: 800 } },
];

export class Browser {
  #browser;
  #shots;
  #elsewhere;
  problems = [];
  shots = 0;

  /** `elsewhere`: the one site that people may be sent to. */
  static async open(executablePath, shots, elsewhere) {
    const args = process.getuid?.() === 0 ? ["--no-sandbox"] : [];
    const browser = new Browser();
    browser.#browser = await chromium.launch({ executablePath, args });
    browser.#shots = shots;
    browser.#elsewhere = elsewhere;
    return browser;
  }

  close() {
    return this.#browser.close();
  }

  /** A browser of its own. `strict`: nothing may fail; otherwise the test makes things fail itself. */
  async visit({ strict = true, locale = "en-US", ours = () => true } = {}) {
    const context = await this.#browser.newContext({ ...LOOKS[0], locale, reducedMotion: "reduce" });
    await context.addInitScript(AXE);
    const page = await context.newPage();
    page.setDefaultTimeout(20_000);
    page.on("pageerror", (error) => this.problems.push(`error on ${page.url()}: ${error}`));
    page.on("request", (request) => this.#allowed(request));
    if (strict) {
      page.on("console", (message) => {
        if (["error", "warning"].includes(message.type()) && ours(message.location().url)) this.problems.push(`console on ${page.url()}: ${message.text()}`);
      });
      page.on("response", (response) => {
        if (response.status() >= 400 && ours(response.url())) this.problems.push(`${response.status()} for ${response.url()}`);
      });
      page.on("requestfailed", (request) => {
        // Ended by us: a page that is left ends its event stream, and what it was asking.
        if (request.failure()?.errorText !== "net::ERR_ABORTED") {
          this.problems.push(`${request.failure()?.errorText} for ${request.url()}`);
        }
      });
    }
    return page;
  }

  /** A page calls nobody but the site that it came from; people may be sent to Stripe, whose pages are its own. */
  #allowed(request) {
    const to = new URL(request.url());
    if (!to.protocol.startsWith("http")) return;
    if (request.isNavigationRequest()) {
      if (to.hostname !== "127.0.0.1" && to.hostname !== "localhost") this.problems.push(`people are sent to ${to.origin}`);
      return;
    }
    const from = new URL(request.frame().url());
    if (from.origin !== this.#elsewhere && from.origin !== to.origin) {
      this.problems.push(`${from.href} asks another site: ${to.href}`);
    }
  }

  /** A picture in every look, and axe's opinion of each. */
  async look(page, name) {
    for (const look of LOOKS) {
      await page.emulateMedia({ colorScheme: look.colorScheme, reducedMotion: "reduce" });
      await page.setViewportSize(look.viewport);
      await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));
      const violations = await page.evaluate(async () => {
        const found = await window.axe.run(document, { resultTypes: ["violations"] });
        return found.violations.map((one) => `${one.id}: ${one.nodes.map((node) => `${node.html} ${node.any[0]?.message ?? ""}`).join(" | ")}`);
      });
      this.problems.push(...violations.map((one) => `axe on ${name} (${look.name}): ${one}`));
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      if (wide > 0) this.problems.push(`${name} (${look.name}) is ${wide} pixels wider than the window`);
      await page.screenshot({ path: join(this.#shots, `${name}.${look.name}.png`), fullPage: true });
      this.shots += 1;
    }
    await page.emulateMedia({ colorScheme: "light", reducedMotion: "reduce" });
    await page.setViewportSize(LOOKS[0].viewport);
  }
}
