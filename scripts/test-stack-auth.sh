#!/usr/bin/env bash
# Signs in through a gateway that it starts itself: tokens made by jose in Stack Auth's shape, webhooks signed by Svix's
# official libraries. Part of `make test-clients`; the libraries are installed into .tools/.
# FAREGATE_BINARY: another build than target/debug/faregate.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

clients=tests/clients/stack-auth
tools=.tools/stack-auth
if ! cmp -s "$clients/requirements.txt" "$tools/python/requirements.txt"; then
  rm -rf "$tools/python"
  mkdir -p "$tools"
  python3 -m venv "$tools/python" || { echo "On Debian: apt-get install python3-venv" >&2; exit 1; }
  "$tools/python/bin/pip" install --quiet --only-binary :all: -r "$clients/requirements.txt"
  cp "$clients/requirements.txt" "$tools/python/"
fi
if ! cmp -s "$clients/package-lock.json" "$tools/node/package-lock.json" || [ ! -d "$tools/node/node_modules" ]; then
  rm -rf "$tools/node"
  mkdir -p "$tools/node"
  cp "$clients/package.json" "$clients/package-lock.json" "$tools/node/"
  (cd "$tools/node" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
fi
cp "$clients/sign_in.mjs" "$tools/node/"

if [ -n "${FAREGATE_BINARY:-}" ]; then
  binary=$(realpath "$FAREGATE_BINARY")
else
  cargo build --locked --bin faregate
  binary=$(realpath "${CARGO_TARGET_DIR:-target}/debug/faregate")
fi

begin stack-auth
SECRET=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw
PROJECT=6fbbf22e-f4b2-4c6e-95a1-beab6fa41063
PORT_FILE=$work/port GATE_FILE=$work/gate ANN=1b2c3d4e-0001-4000-8000-00000000000a
export SECRET PROJECT PORT_FILE GATE_FILE ANN
node "$tools/node/sign_in.mjs" &
issuer=$!
pids+=("$issuer")
await "the issuer" test -s "$PORT_FILE"
faregate_start stack -- FAREGATE_STACK_PROJECT_ID="$PROJECT" FAREGATE_STACK_BASE_URL="http://127.0.0.1:$(cat "$PORT_FILE")" \
  FAREGATE_STACK_WEBHOOK_SECRET="$SECRET" FAREGATE_TOKENS__JWKS_MIN_INTERVAL_MS=200
GATE=http://$listen ADMIN=http://$admin ADMIN_TOKEN=$admin_token
export GATE ADMIN ADMIN_TOKEN
printf '%s\n' "$GATE" >"$GATE_FILE"
failed=0
wait "$issuer" || failed=1
"$tools/python/bin/python" "$clients/webhooks.py" || failed=1
end "$gate" || fail "the gateway did not end well"
exit "$failed"
