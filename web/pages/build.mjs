// Builds each page into ../dist: one script, one style, and the HTML that names them. The gateway compiles them in and
// serves them under names that tell their content.
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "vite";

const path = (name) => fileURLToPath(new URL(name, import.meta.url));
const BANNER = "/*! Contains React (c) Meta Platforms, Inc. and affiliates, MIT licence. */";

for (const page of ["billing", "console"]) {
  await build({
    configFile: false,
    root: path(page),
    base: "./",
    logLevel: "warn",
    resolve: { alias: { "@faregate/react": path("../react/src/index.ts") }, dedupe: ["react", "react-dom"] },
    esbuild: { jsx: "automatic", legalComments: "none" },
    build: {
      outDir: path(`../dist/${page}`),
      emptyOutDir: true,
      target: "es2022",
      cssTarget: "chrome111",
      cssCodeSplit: false,
      modulePreload: { polyfill: false },
      assetsInlineLimit: 0,
      reportCompressedSize: false,
      rollupOptions: {
        // Meant for servers that render; here everything is the client's.
        onwarn: (warning, warn) => warning.message.includes('"use client"') || /sourcemap/.test(warning.message) || warn(warning),
        output: {
          entryFileNames: "app.js",
          assetFileNames: "app[extname]",
          inlineDynamicImports: true,
        },
      },
    },
  });
  const script = path(`../dist/${page}/app.js`);
  writeFileSync(script, `${BANNER}\n${readFileSync(script, "utf8")}`);
}
