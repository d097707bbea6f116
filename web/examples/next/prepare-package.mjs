// Puts the package, as it would be published, into node_modules. In an app of your own: npm install @faregate/react.
import { execSync } from "node:child_process";
import { cpSync, mkdirSync, rmSync } from "node:fs";

const here = (name) => new URL(name, import.meta.url);
execSync("npm run build --workspace react", { cwd: here("../.."), stdio: "inherit" });
const target = here("node_modules/@faregate/react/");
rmSync(target, { recursive: true, force: true });
mkdirSync(target, { recursive: true });
cpSync(here("../../react/package.json"), new URL("package.json", target));
cpSync(here("../../react/dist"), new URL("dist", target), { recursive: true });
