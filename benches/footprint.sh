#!/usr/bin/env bash
# How long a start takes and what an idle gateway weighs; then, for each number of streams, how much later than from the
# upstream itself the first event comes and by how much more the gaps between events stray, and what each open stream
# adds to the memory, opened one after another and all at once.
# FOOTPRINT_STREAMS ("1000 5000")  FOOTPRINT_GAP_MS (1000)  FOOTPRINT_EVENTS (20)  FOOTPRINT_PER_SECOND (500)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
counts=${FOOTPRINT_STREAMS:-1000 5000}
gap=${FOOTPRINT_GAP_MS:-1000}
events=${FOOTPRINT_EVENTS:-20}
rate=${FOOTPRINT_PER_SECOND:-500}

release_binary
streams=${BENCH_STREAMS:-}
[ -n "$streams" ] || streams=$(cargo bench --locked --bench streams --no-run --message-format short 2>&1 | sed -nE 's/.*\(([^)]*streams-[0-9a-f]+)\).*/\1/p' | tail -n 1)
[ -x "$streams" ] || fail "the benchmark was not built"
streams=$(realpath "$streams")
most=$(tr ' ' '\n' <<<"$counts" | sort -n | tail -n 1)
ulimit -n "$(ulimit -Hn)"
[ "$(ulimit -n)" = unlimited ] || [ "$(ulimit -n)" -gt $((2 * most + 200)) ] || fail "too few open files allowed: $(ulimit -n)"
begin footprint

port; upstream=127.0.0.1:$reply
"${binary%/*}/faregate-sim" "$upstream" >/dev/null &
pids+=($!)
await upstream curl -fsS "http://$upstream/v1/models"

settings=(FAREGATE_UPSTREAM_URL=http://"$upstream" FAREGATE_PLANS__FREE__SIGNUP_CREDITS=100000000 FAREGATE_LOG__LEVEL=warn)
rss() { awk '/^VmRSS:/ { print $2 }' "/proc/$gate/status"; }

# The second start is the usual one: the store is there. It is asked every 5 ms.
restart() {
  end "$gate" || fail "the gateway did not end well"
  local begun
  begun=$(date +%s%N)
  env -C "$work/gate" FAREGATE_LISTEN="$listen" FAREGATE_ADMIN_LISTEN="$admin" FAREGATE_ADMIN_TOKEN=$admin_token \
    FAREGATE_DATA_DIR="$work/gate/data" "${settings[@]}" "$binary" --config settings.toml serve >"$work/log" 2>&1 &
  gate=$!
  pids+=("$gate")
  until (exec 3<>"/dev/tcp/${admin/://}") 2>/dev/null; do
    kill -0 "$gate" || fail "the gateway did not start"
    sleep 0.005
  done
  started=$((($(date +%s%N) - begun) / 1000000))
  await faregate curl -fsS "http://$admin/readyz"
  sleep 1
}

measure() { # address, how many, how many a second, pid: first p50, p99, stray p50, p99 (us), bytes each
  STREAMS_ADDRESS=$1 STREAMS=$2 STREAMS_PER_SECOND=$3 STREAMS_PID=$4 STREAMS_KEYS=$work/keys STREAMS_GAP_MS=$gap \
    STREAMS_EVENTS=$events "$streams" | sed -n 's/^STREAMS //p'
}

faregate_start gate -- "${settings[@]}"
make_users 10 "$work/keys"
starts=()
for _ in 1 2 3 4 5; do
  restart
  starts+=("$started")
done
echo "start: $(printf '%s\n' "${starts[@]}" | sort -n | sed -n 3p) ms (median of 5)"
echo "idle: $(rss) kB"
echo
ms() { awk -v us="$1" 'BEGIN { printf "%.2f", us / 1000 }'; }
echo "| streams | first event, ms, p50 / p99: upstream | gateway | gaps stray, ms, p50 / p99: upstream | gateway | bytes each, one by one | all at once |"
echo "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
for count in $counts; do
  read -r first first99 stray stray99 _ <<<"$(measure "$upstream" "$count" "$rate" "")"
  restart
  read -r gate_first gate_first99 gate_stray gate_stray99 bytes <<<"$(measure "$listen" "$count" "$rate" "$gate")"
  restart
  read -r _ _ _ _ burst <<<"$(measure "$listen" "$count" 0 "$gate")"
  echo "| $count | $(ms "$first") / $(ms "$first99") | $(ms "$gate_first") / $(ms "$gate_first99")" \
    "| $(ms "$stray") / $(ms "$stray99") | $(ms "$gate_stray") / $(ms "$gate_stray99") | $bytes | $burst |"
done
