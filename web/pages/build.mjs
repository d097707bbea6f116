// Builds each page into ../dist: one script, one style, and the HTML that names them. The gateway compiles them in and
// serves them under names that tell their content.
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "vite";

const path = (name) => fileURLToPath(new URL(name, import.meta.url));
/** Of script, style and HTML together, as the gateway sends them. */
const MAX_PAGE_BYTES = 120 * 1024;
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
  const files = ["app.js", "app.css", "index.html"].map((name) => readFileSync(path(`../dist/${page}/${name}`)));
  const bytes = files.reduce((sum, file) => sum + gzipSync(file, { level: 9 }).length, 0);
  console.log(`${page}: ${(bytes / 1024).toFixed(1)} KB compressed`);
  if (bytes > MAX_PAGE_BYTES) throw new Error(`the ${page} page is larger than ${MAX_PAGE_BYTES / 1024} KB`);
}
