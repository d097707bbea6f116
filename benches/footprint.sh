#!/usr/bin/env bash
# How long a start takes, what an idle gateway weighs, and what each of many open streams adds.
# FOOTPRINT_STREAMS (5000)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
streams=${FOOTPRINT_STREAMS:-5000}

command -v wrk >/dev/null || fail "wrk is missing; on Debian: make bench-setup"
release_binary
ulimit -n "$(ulimit -Hn)"
[ "$(ulimit -n)" = unlimited ] || [ "$(ulimit -n)" -gt $((2 * streams + 200)) ] || fail "too few open files allowed: $(ulimit -n)"
begin footprint

port; upstream=127.0.0.1:$reply
"${binary%/*}/faregate-sim" "$upstream" >/dev/null &
pids+=($!)
await upstream curl -fsS "http://$upstream/v1/models"

rss() { awk '/^VmRSS:/ { print $2 }' "/proc/$gate/status"; }
settings=(FAREGATE_UPSTREAM_URL=http://"$upstream" FAREGATE_PLANS__FREE__SIGNUP_CREDITS=100000000 FAREGATE_LOG__LEVEL=warn)

faregate_start gate -- "${settings[@]}"
make_users 10 "$work/keys"
# The second start is the usual one: the store is there. It is asked every 5 ms.
end "$gate" || fail "the gateway did not end well"
begun=$(date +%s%N)
env -C "$work/gate" FAREGATE_LISTEN="$listen" FAREGATE_ADMIN_LISTEN="$admin" FAREGATE_ADMIN_TOKEN=$admin_token \
  FAREGATE_DATA_DIR="$work/gate/data" "${settings[@]}" "$binary" --config settings.toml serve >"$work/log" 2>&1 &
gate=$!
pids+=("$gate")
until (exec 3<>"/dev/tcp/${admin/://}") 2>/dev/null; do
  kill -0 "$gate" || fail "the gateway did not start"
  sleep 0.005
done
echo "start: $((($(date +%s%N) - begun) / 1000000)) ms"
await faregate curl -fsS "http://$admin/readyz"
sleep 1
idle=$(rss)
echo "idle: $idle kB"

cat >"$work/stream.lua" <<'LUA'
local keys, turn = {}, 0
function init(arguments) for key in io.lines(arguments[1]) do keys[#keys + 1] = key end end
function request()
  turn = turn % #keys + 1
  return wrk.format("POST", "/v1/chat/completions", {
    ["authorization"] = "Bearer " .. keys[turn], ["content-type"] = "application/json",
  }, '{"model":"sim-1@stall-after=3","stream":true,"max_tokens":20,"messages":[{"role":"user","content":"hello"}]}')
end
LUA
wrk -t 1 -c "$streams" -d 600 --timeout 600 -s "$work/stream.lua" "http://$listen" -- "$work/keys" >/dev/null &
load=$!
pids+=("$load")
open_streams() { curl -fsS "http://$admin/metrics" | awk '$1 == "faregate_streams" { print $2 + 0 }'; }
all_open() { [ "$(open_streams)" -ge "$streams" ]; }
await "$streams streams" all_open
sleep 2
full=$(rss)
echo "$streams streams: $full kB, $(((full - idle) * 1024 / streams)) bytes each"
