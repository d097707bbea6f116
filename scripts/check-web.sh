#!/usr/bin/env bash
# Builds the pages and fails where the committed files differ. Installs what that needs by npm, from the lock file, without
# running anybody's scripts. Where there is no Node, no npm or no registry it says so and checks nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
  echo "web: web/dist was NOT compared with its sources: $1" >&2
  exit 0
}

command -v node >/dev/null || skip "there is no Node here"
new_enough='const [major, minor] = process.versions.node.split(".").map(Number); process.exit(major > 20 || (major === 20 && minor >= 19) ? 0 : 1)'
node -e "$new_enough" || skip "Node 20.19 or newer is needed; this is $(node --version)"
if ! cmp -s web/package-lock.json web/node_modules/.installed; then
  command -v npm >/dev/null || skip "there is no npm here"
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  status=0
  (cd web && timeout 300 npm ci --ignore-scripts --no-audit --no-fund --loglevel=error --fetch-retries=1 --fetch-timeout=30000) \
    >"$log" 2>&1 || status=$?
  if [ "$status" -eq 124 ] || { [ "$status" -ne 0 ] && grep -qE 'ENOTFOUND|ETIMEDOUT|ECONNREFUSED|ECONNRESET|EAI_AGAIN|ENETUNREACH|ERR_SOCKET_TIMEOUT' "$log"; }; then
    skip "npm's registry is out of reach"
  fi
  [ "$status" -eq 0 ] || { cat "$log" >&2; exit "$status"; }
  cp web/package-lock.json web/node_modules/.installed
fi

sums() { find web/dist -type f -print0 | sort -z | xargs -0 sha256sum; }
before=$(sums)
(cd web && node pages/build.mjs)
if [ "$before" != "$(sums)" ]; then
  echo "web/dist was not built from these sources; it has been built now: commit it" >&2
  exit 1
fi
