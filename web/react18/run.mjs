// Copies the package's sources and tests here, where React is 18, checks their types and runs them.
import { spawnSync } from "node:child_process";
import { cpSync, rmSync } from "node:fs";

const here = (name) => new URL(name, import.meta.url);
for (const name of ["src", "tests", "vitest.config.ts", "tsconfig.json"]) {
  rmSync(here(name), { recursive: true, force: true });
  cpSync(here(`../react/${name}`), here(name), { recursive: true });
}
for (const command of [["tsc"], ["vitest", "run"]]) {
  const { status } = spawnSync("npx", command, { cwd: here("."), stdio: "inherit" });
  if (status !== 0) process.exit(status ?? 1);
}
