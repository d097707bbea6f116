#!/usr/bin/env bash
# Builds the pages and fails where the committed files differ. Needs web/node_modules (scripts/test-web.sh makes it);
# without Node there is nothing to build with, and it says so.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v node >/dev/null || [ ! -d web/node_modules/vite ]; then
  echo "web: not rebuilt (no Node, or no web/node_modules)" >&2
  exit 0
fi
before=$(find web/dist -type f -print0 | sort -z | xargs -0 sha256sum)
(cd web && node pages/build.mjs)
after=$(find web/dist -type f -print0 | sort -z | xargs -0 sha256sum)
if [ "$before" != "$after" ]; then
  echo "web/dist was not built from these sources; it has been built now: commit it" >&2
  exit 1
fi
