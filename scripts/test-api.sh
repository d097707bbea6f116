#!/usr/bin/env bash
# Drives a running gateway from the OpenAPI documents that it serves: no undocumented status, no answer that its schema
# does not allow, nothing accepted that it forbids, no 5xx. Against the simulators of an AI service, of Stripe and of Stack Auth.
# FAREGATE_BINARY: another build than target/debug/faregate (its faregate-sim is taken from the same folder).
# SCHEMATHESIS_EXAMPLES (30, for each operation).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

scripts/install.sh curl=curl python3=python3
needed=$PWD/tests/openapi
tools=$PWD/.tools/openapi
if ! cmp -s "$needed/requirements.txt" "$tools/requirements.txt"; then
  rm -rf "$tools"
  python3 -m venv "$tools" || { echo "On Debian: apt-get install python3-venv" >&2; exit 1; }
  "$tools/bin/pip" install --quiet --only-binary :all: -r "$needed/requirements.txt"
  cp "$needed/requirements.txt" "$tools/"
fi

if [ -n "${FAREGATE_BINARY:-}" ]; then
  binary=$(realpath "$FAREGATE_BINARY")
else
  cargo build --locked --workspace --bins
  binary=$(realpath "${CARGO_TARGET_DIR:-target}/debug/faregate")
fi
sim=$(dirname "$binary")/faregate-sim

begin api
port; upstream=127.0.0.1:$reply
"$sim" "$upstream" >"$work/upstream.log" 2>&1 &
pids+=($!)
await "the upstream" curl -sS "http://$upstream/v1/models"
port; stripe=127.0.0.1:$reply
"$sim" stripe --listen "$stripe" --price price_pro=2000:usd:month --price price_small=500:usd >"$work/stripe.log" 2>&1 &
pids+=($!)
await "Stripe's simulator" curl -sS "http://$stripe/_sim"

port; stack=127.0.0.1:$reply
"$sim" stack-auth --listen "$stack" --project openapi >"$work/stack.log" 2>&1 &
pids+=($!)
await "Stack Auth's simulator" curl -sS "http://$stack/_sim"

mkdir "$work/gate"
cat >"$work/gate/settings.toml" <<'TOML'
[plans.pro]
credits = 100
[[plans.pro.prices]]
id = "price_pro"
currency = "usd"
interval = "month"
amount = 2000
[packs.small]
credits = 10
[[packs.small.prices]]
id = "price_small"
currency = "usd"
amount = 500
TOML
faregate_start gate -- FAREGATE_UPSTREAM_URL="http://$upstream" FAREGATE_STRIPE_API_BASE="http://$stripe" \
  FAREGATE_STRIPE_SECRET_KEY=sk_test_1 FAREGATE_STRIPE_WEBHOOK_SECRETS=whsec_1 \
  FAREGATE_STACK_BASE_URL="http://$stack" FAREGATE_STACK_PROJECT_ID=openapi \
  FAREGATE_STACK_WEBHOOK_SECRET=whsec_dGhlLXNlY3JldC1vZi10aGUtYXBpLXRlc3Rz \
  FAREGATE_API__USER_REQUESTS_PER_MINUTE=0 FAREGATE_API__ADDRESS_REQUESTS_PER_MINUTE=0 FAREGATE_API__FAILURES_PER_MINUTE=0
ask_admin /users '{"id":"ann"}' >/dev/null
ask_admin /users/ann/grants '{"amount":1000000}' >/dev/null
key=$(ask_admin /users/ann/keys '{"name":"api"}' | keys_in)

failed=0
drive() { # name, the document, the token
  echo "== $1"
  (cd "$work" && API_TOKEN=$3 PYTHONPATH="$needed" "$tools/bin/schemathesis" --config-file "$needed/schemathesis.toml" run "$2" \
    --max-examples "${SCHEMATHESIS_EXAMPLES:-30}") || failed=1
}
# Operators come last: they freeze users.
drive "for users" "http://$listen/api/openapi.json" "$key"
drive "for operators" "http://$admin/openapi.json" "$admin_token"
if grep -E '"?(level"?: *"?)?ERROR|panicked' "$work/log"; then failed=1; fi
exit "$failed"
