import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    environment: "jsdom",
    setupFiles: ["tests/setup.ts"],
    include: ["tests/**/*.test.{ts,tsx}"],
    // How long a busy machine may take; nothing waits so long where it is not.
    testTimeout: 30_000,
  },
});
