// The server test has no document.
import { afterEach, beforeAll, vi } from "vitest";

/** How long a busy machine may take to draw what a test waits for. */
const PATIENCE_MS = 10_000;

beforeAll(async () => {
  if (typeof document === "undefined") return;
  (await import("@testing-library/react")).configure({ asyncUtilTimeout: PATIENCE_MS });
});

afterEach(async () => {
  if (typeof document === "undefined") return;
  (await import("@testing-library/react")).cleanup();
  vi.restoreAllMocks();
  vi.useRealTimers();
  window.history.replaceState(null, "", "/");
  goOnline(true);
});

/** What the browser says of its network. */
export function goOnline(online: boolean): void {
  Object.defineProperty(window.navigator, "onLine", { value: online, configurable: true });
  window.dispatchEvent(new Event(online ? "online" : "offline"));
}
