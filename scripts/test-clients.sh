#!/usr/bin/env bash
# Runs the official clients' conversations through a gateway that it starts itself: first as it comes (embedded ledger,
# a credit a message), then on Redis with token prices; and Stripe's through the gateway's webhooks and the simulator.
# The clients are installed into .tools/. FAREGATE_BINARY: another build than target/debug/faregate; faregate-sim lies beside it.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

scripts/install.sh curl=curl python3=python3 "${NODE_NEEDED:-node=nodejs}" redis-server=redis-server
node_major=$(node --version | sed -E 's/^v([0-9]+).*/\1/')
[ "$node_major" -ge 20 ] || { echo "Node 20 or newer is needed; this is $(node --version)" >&2; exit 1; }
command -v npm >/dev/null || scripts/install.sh npm=npm

clients=tests/clients
tools=.tools
if ! cmp -s "$clients/requirements.txt" "$tools/python/requirements.txt"; then
  rm -rf "$tools/python"
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
cp "$clients"/*.mjs "$tools/node/"

if [ -n "${FAREGATE_BINARY:-}" ]; then
  binary=$(realpath "$FAREGATE_BINARY")
else
  cargo build --locked --workspace --bins
  binary=$(realpath "${CARGO_TARGET_DIR:-target}/debug/faregate")
fi

simulator=$(dirname "$binary")/faregate-sim

begin clients

make_key() { # user, plan, credits
  ask_admin /users "{\"id\":\"$1\",\"plan\":\"$2\"}" >/dev/null
  ask_admin "/users/$1/grants" "{\"amount\":$3}" >/dev/null
  ask_admin "/users/$1/keys" '{"name":"clients"}' | keys_in
}

converse() { # name, credits that pay one message and not two, the gateway's settings…
  local name=$1 one=$2
  shift 2
  mkdir -p "$work/$name"
  printf '%s\n' "$toml" >"$work/$name/settings.toml"
  faregate_start "$name" -- FAREGATE_PLANS__FREE__SIGNUP_CREDITS=0 "$@"
  for language in python node; do
    echo "== $name, $language"
    GATE=http://$listen
    KEY=$(make_key "$language-rich" free 1000)
    POOR_KEY=$(make_key "$language-poor" free "$one")
    POORER_KEY=$(make_key "$language-poorer" free "$one")
    LIMITED_KEY=$(make_key "$language-limited" limited 1000)
    export GATE KEY POOR_KEY POORER_KEY LIMITED_KEY
    case $language in
      python) "$tools/python/bin/python" "$clients/conversation.py" || failed=1 ;;
      node) node "$tools/node/conversation.mjs" || failed=1 ;;
    esac
  done
  end "$gate" || fail "the gateway ($name) did not end well"
}

failed=0
limited='[plans.limited]
requests_per_minute = 2'
toml=$limited
converse "embedded ledger, a credit a message" 1

redis_start env
toml="$limited
[prices.message]
per_request = 1
[[prices.message.models]]
model = \"*\"
input_per_million = 1
output_per_million = 4
max_output_tokens = 200"
converse "Redis, token prices" 1.01 FAREGATE_LEDGER_URL=redis://127.0.0.1:"$redis_port"/

# A webhook, signed with two secrets as while one is replaced, is taken by the official libraries of Standard Webhooks.
SECRETS=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw,whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD
PORT_FILE=$work/port
export SECRETS PORT_FILE
for language in python node; do
  rm -f "$PORT_FILE"
  case $language in
    python) "$tools/python/bin/python" "$clients/webhook.py" & ;;
    node) node "$tools/node/webhook.mjs" & ;;
  esac
  receiver=$!
  for _ in $(seq 100); do [ -s "$PORT_FILE" ] && break; sleep 0.1; done
  FAREGATE_NOTIFY__WEBHOOK__URL=http://127.0.0.1:$(cat "$PORT_FILE")/hook FAREGATE_NOTIFY__WEBHOOK__SECRETS=$SECRETS \
    FAREGATE_DATA_DIR=$work/webhook env -u FAREGATE_BINARY "$binary" notify test || failed=1
  wait "$receiver" || failed=1
done

# What Stripe's libraries sign is taken, what they did not is not; and they drive the simulator as they drive Stripe.
port; STRIPE=http://127.0.0.1:$reply
"$simulator" stripe --listen "${STRIPE#http://}" --frozen --price price_basic=1000:usd:month --price price_pro=2000:usd:month >"$work/stripe.log" &
pids+=($!)
await "the Stripe simulator" curl -fsS "$STRIPE/_sim"
SECRETS=whsec_test,whsec_next
faregate_start stripe -- FAREGATE_STRIPE_SECRET_KEY=sk_test_clients FAREGATE_STRIPE_WEBHOOK_SECRETS=$SECRETS FAREGATE_STRIPE_API_BASE="$STRIPE"
GATE=http://$listen ADMIN=$admin ADMIN_TOKEN=$admin_token
export GATE ADMIN ADMIN_TOKEN SECRETS STRIPE
node "$tools/node/stripe.mjs" || failed=1
"$tools/python/bin/python" "$clients/stripe_library.py" || failed=1
end "$gate" || fail "the gateway (stripe) did not end well"

FAREGATE_BINARY=$binary scripts/test-stack-auth.sh || failed=1
exit "$failed"
