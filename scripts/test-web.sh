#!/usr/bin/env bash
# The React package's tests (React 19 and 18), and the pages in a headless Chromium against a running gateway with the
# simulators. Pictures of every page and state go to web/browser/shots.
# FAREGATE_BINARY, FAREGATE_SIM: other builds than those of target/debug.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/install.sh "${NODE_NEEDED:-node=nodejs}" /usr/bin/chromium=chromium
node -e 'const [major, minor] = process.versions.node.split(".").map(Number); process.exit(major > 20 || (major === 20 && minor >= 19) ? 0 : 1)' ||
  { echo "Node 20.19 or newer is needed; this is $(node --version)" >&2; exit 1; }
command -v npm >/dev/null || scripts/install.sh npm=npm

for folder in web web/react18; do
  if ! cmp -s "$folder/package-lock.json" "$folder/node_modules/.installed"; then
    (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
    cp "$folder/package-lock.json" "$folder/node_modules/.installed"
  fi
done
echo "== types"
(cd web && npx --no-install tsc -p react && npx --no-install tsc -p pages)
echo "== the built pages are those of the sources"
scripts/check-web.sh
echo "== the package, React 19"
(cd web && npm test --silent --workspace react)
echo "== the package, React 18"
(cd web/react18 && npm test --silent)
echo "== the Next.js example builds"
example=web/examples/next
if ! cmp -s "$example/package-lock.json" "$example/node_modules/.installed"; then
  (cd "$example" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
  cp "$example/package-lock.json" "$example/node_modules/.installed"
fi
(cd "$example" && npm run --silent prepare-package && NEXT_TELEMETRY_DISABLED=1 npx --no-install next build)
echo "== the pages in Chromium"
if [ -z "${FAREGATE_BINARY:-}" ] || [ -z "${FAREGATE_SIM:-}" ]; then
  cargo build --locked --bin faregate --bin faregate-sim
fi
target=$(realpath "${CARGO_TARGET_DIR:-target}")/debug
export FAREGATE_BINARY=${FAREGATE_BINARY:-$target/faregate} FAREGATE_SIM=${FAREGATE_SIM:-$target/faregate-sim}
(cd web/browser && node run.mjs)
