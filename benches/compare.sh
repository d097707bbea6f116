#!/usr/bin/env bash
# Compares Faregate with nginx on this machine, in one run: throughput, latency, CPU per request.
# The peers take turns, round after round, under the same load; the table shows medians.
#
#   BENCH_ROUNDS (5)  BENCH_SECONDS (6, per peer and round)  BENCH_CONNECTIONS (64)  BENCH_USERS (500)
#   BENCH_PEERS ("direct nginx lua embedded redis")  BENCH_BINARY (target/release/faregate, built if missing or old)
#   BENCH_STORE (postgres; or sqlite: under the peer with Redis)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

rounds=${BENCH_ROUNDS:-5}
seconds=${BENCH_SECONDS:-6}
connections=${BENCH_CONNECTIONS:-64}
users=${BENCH_USERS:-500}
peers=${BENCH_PEERS:-direct nginx lua embedded redis}
store=${BENCH_STORE:-postgres}
target=${CARGO_TARGET_DIR:-target}
out=$target/bench

wants() { [[ " $peers " == *" $1 "* ]]; }

for program in nginx wrk curl taskset; do
  command -v "$program" >/dev/null || PATH=$PATH:/usr/sbin command -v "$program" >/dev/null \
    || fail "$program is missing; on Debian: make bench-setup"
done
PATH=$PATH:/usr/sbin
if wants lua || wants redis; then
  command -v redis-server >/dev/null || fail "redis-server is missing; on Debian: make bench-setup"
fi
if wants embedded || wants redis; then
  release_binary
fi

mkdir -p "$out"
begin bench

# The gate has a core to itself, everything else shares another: the same for every peer.
cores=$(nproc)
if [ "$cores" -ge 2 ]; then gate_core=0 other_cores=1-$((cores - 1)); else gate_core=0 other_cores=0; fi
# As words, not functions: $! must be the program's own pid.
on_gate=(taskset -c "$gate_core")
on_other=(taskset -c "$other_cores")

nginx_start() { # name, gate or other core, the http block's content
  local conf=$work/$1.conf on=("${on_other[@]}")
  [ "$2" = other ] || on=("${on_gate[@]}")
  {
    echo "daemon off; master_process on; worker_processes 1; pid $work/$1.pid; error_log $work/$1.log error;"
    [ "$1" != lua ] || echo "load_module modules/ndk_http_module.so; load_module modules/ngx_http_lua_module.so;"
    echo "events { worker_connections 4096; }"
    echo "http { access_log off; keepalive_requests 100000000; keepalive_timeout 300s; tcp_nodelay on;"
    echo "client_body_temp_path $work/$1.body; proxy_temp_path $work/$1.proxy; fastcgi_temp_path $work/$1.fastcgi;"
    echo "uwsgi_temp_path $work/$1.uwsgi; scgi_temp_path $work/$1.scgi; client_body_buffer_size 64k;"
    echo "$3"
    echo "}"
  } >"$conf"
  "${on[@]}" nginx -p /usr/share/nginx -c "$conf" -e "$work/$1.log" &
  pids+=($!)
}

answer='{"id":"chatcmpl-bench","object":"chat.completion","created":1760000000,"model":"bench-1","choices":[{"index":0,"message":{"role":"assistant","content":"'
answer+=$(printf 'The gate is open, take your seat and enjoy the ride. %.0s' 1 2 3 4 5 6 7 8)
answer+='","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":61,"completion_tokens":52,"total_tokens":113}}'

port; upstream_port=$reply
nginx_start upstream other "server { listen 127.0.0.1:$upstream_port backlog=4096;
  location / { default_type application/json; return 200 '$answer'; } }"
proxy="upstream backend { server 127.0.0.1:$upstream_port; keepalive 256; keepalive_requests 100000000; }"
pass='proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection "";'

declare -A url pid_of redis_of
url[direct]=http://127.0.0.1:$upstream_port

if wants nginx; then
  port; url[nginx]=http://127.0.0.1:$reply
  nginx_start nginx gate "$proxy server { listen 127.0.0.1:$reply backlog=4096; location / { $pass } }"
fi

if wants lua; then
  redis_start "${on_other[@]}"
  redis_of[lua]=$redis_pid
  port; url[lua]=http://127.0.0.1:$reply
  nginx_start lua gate "lua_package_path '/usr/share/lua/5.1/?.lua;;'; $proxy
  init_by_lua_block { redis = require 'nginx.redis' }
  server { listen 127.0.0.1:$reply backlog=4096; location / {
    access_by_lua_block {
      local connection = redis:new()
      connection:set_timeout(1000)
      local ok, failure = connection:connect('127.0.0.1', $redis_port)
      if not ok then ngx.log(ngx.ERR, failure) return ngx.exit(503) end
      local script = 'local b = tonumber(redis.call(\"GET\", KEYS[1]) or \"0\") if b < 1 then return -1 end return redis.call(\"DECRBY\", KEYS[1], 1)'
      local left, failure = connection:eval(script, 1, 'balance:' .. (ngx.var.http_authorization or ''))
      if not left then ngx.log(ngx.ERR, failure) return ngx.exit(503) end
      connection:set_keepalive(60000, 256)
      if tonumber(left) < 0 then return ngx.exit(402) end
    }
    $pass } }"
fi

peer_start() { # name, the environment…
  local name=$1
  shift
  faregate_start "$name" "${on_gate[@]}" -- FAREGATE_WORKERS=1 FAREGATE_LOG__LEVEL=warn \
    FAREGATE_UPSTREAM_URL=http://127.0.0.1:"$upstream_port" FAREGATE_UPSTREAM__MAX_IDLE_CONNECTIONS=256 \
    FAREGATE_PLANS__FREE__SIGNUP_CREDITS=100000000 "$@"
  url[$name]=http://$listen
  pid_of[$name]=$gate
  make_users "$users" "$work/$name.keys"
}

for ((number = 0; number < users; number++)); do echo "fg_live_bench_not_a_real_key_$number"; done >"$work/plain.keys"
if wants lua; then
  sed 's/.*/SET "balance:Bearer &" 1000000000/' "$work/plain.keys" | redis-cli -p "$redis_port" >/dev/null
fi
if wants embedded; then
  peer_start embedded
fi
if wants redis; then
  redis_start "${on_other[@]}"
  redis_of[redis]=$redis_pid
  store_setting=()
  if [ "$store" = postgres ]; then
    postgres_start "${on_other[@]}"
    store_setting=("FAREGATE_STORE_URL=$postgres_url")
  fi
  peer_start redis FAREGATE_LEDGER_URL=redis://127.0.0.1:"$redis_port"/ "${store_setting[@]}"
fi

await upstream curl -fsS "${url[direct]}"
pid_of[direct]=$(pgrep -P "$(cat "$work/upstream.pid")")
for name in nginx lua; do
  wants "$name" || continue
  await "$name" curl -fsS -o "$work/probe" -w '' "${url[$name]}" -H "authorization: Bearer $(head -n 1 "$work/plain.keys")"
  pid_of[$name]=$(pgrep -P "$(cat "$work/$name.pid")")
done

ticks_per_second=$(getconf CLK_TCK)
cpu_of() { # pid: user and system ticks of all its threads
  awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$1/stat"
}
cpu_of_workers() { # pid: of its data-plane threads only, where they are named so
  cat /proc/"$1"/task/*/stat 2>/dev/null | awk '/\((fg-)?worker/ { sub(/.*\) /, ""); ticks += $12 + $13 } END { print ticks + 0 }'
}

measure() { # name, seconds
  local name=$1 pid=${pid_of[$1]} redis=${redis_of[$1]:-} keys=$work/plain.keys
  [ ! -e "$work/$name.keys" ] || keys=$work/$name.keys
  local cpu workers redis_cpu=0 line
  cpu=$(cpu_of "$pid") workers=$(cpu_of_workers "$pid")
  [ -z "$redis" ] || redis_cpu=$(cpu_of "$redis")
  line=$("${on_other[@]}" wrk -t 1 -c "$connections" -d "$2" -s benches/wrk.lua "${url[$name]}" -- "$keys" | grep '^RESULT ')
  # What was answered is not all written down yet; that work belongs to these requests too.
  sleep 1
  cpu=$(($(cpu_of "$pid") - cpu)) workers=$(($(cpu_of_workers "$pid") - workers))
  [ -z "$redis" ] || redis_cpu=$(($(cpu_of "$redis") - redis_cpu))
  # shellcheck disable=SC2086 # the line is five numbers
  set -- $line
  [ "$2" -gt 0 ] || fail "$name answered nothing; see its log"
  [ "$6" -eq 0 ] || fail "$name: $6 of $2 requests failed"
  awk -v name="$name" -v requests="$2" -v us="$3" -v p50="$4" -v p99="$5" -v cpu="$cpu" -v workers="$workers" \
    -v redis="$redis_cpu" -v ticks="$ticks_per_second" 'BEGIN {
      each = 1e6 / ticks / requests
      printf "%s %.0f %.0f %.0f %.2f %.2f %.2f\n", name, requests / us * 1e6, p50, p99, cpu * each, workers * each, redis * each
    }'
}

for name in $peers; do measure "$name" 2 >/dev/null; done
: >"$out/rounds.txt"
for ((round = 1; round <= rounds; round++)); do
  for name in $peers; do
    measure "$name" "$seconds" | tee -a "$out/rounds.txt" | sed "s/^/round $round: /" >&2
  done
done

{
  echo "$(date -u +%Y-%m-%dT%H:%MZ), $(nproc) cores, $(uname -m), kernel $(uname -r), $(nginx -v 2>&1), $connections connections," \
    "$users users, Faregate + Redis over $store, $rounds rounds of $seconds s, medians"
  awk '
    function median(list, count,   i, j, swap, sorted) {
      for (i = 1; i <= count; i++) sorted[i] = list[i]
      for (i = 1; i <= count; i++) for (j = i + 1; j <= count; j++)
        if (sorted[j] + 0 < sorted[i] + 0) { swap = sorted[i]; sorted[i] = sorted[j]; sorted[j] = swap }
      return count % 2 ? sorted[(count + 1) / 2] : (sorted[count / 2] + sorted[count / 2 + 1]) / 2
    }
    { if (!($1 in seen)) { seen[$1] = 1; order[++peers] = $1 }
      rounds[$1]++
      for (field = 2; field <= NF; field++) all[$1, field, rounds[$1]] = $field }
    END {
      title["direct"] = "upstream direct"; title["nginx"] = "nginx, bare proxy"; title["lua"] = "nginx + Lua + Redis"
      title["embedded"] = "Faregate, embedded"; title["redis"] = "Faregate + Redis"
      for (p = 1; p <= peers; p++) for (field = 2; field <= 7; field++) {
        name = order[p]
        for (r = 1; r <= rounds[name]; r++) list[r] = all[name, field, r]
        value[name, field] = median(list, rounds[name])
      }
      base = value["nginx", 5]
      printf "| %-19s | %9s | %7s | %7s | %12s | %12s | %9s | %14s |\n", "peer", "req/s", "p50 us", "p99 us", "gate CPU us", "of it worker", "Redis us", "to nginx bare"
      printf "| %s | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n", "---"
      for (p = 1; p <= peers; p++) {
        name = order[p]
        ratio = (base > 0 && name != "direct") ? sprintf("%.2f", (value[name, 5] + value[name, 7]) / base) : "-"
        worker = value[name, 6] > 0 ? sprintf("%.1f", value[name, 6]) : "-"
        redis = value[name, 7] > 0 ? sprintf("%.1f", value[name, 7]) : "-"
        printf "| %-19s | %9.0f | %7.0f | %7.0f | %12.1f | %12s | %9s | %14s |\n", title[name], value[name, 2], value[name, 3], value[name, 4], value[name, 5], worker, redis, ratio
      }
    }' "$out/rounds.txt"
} | tee "$out/compare.md"
