# shellcheck shell=bash
# For scripts that start servers: a folder that is removed, processes that are ended, ports, bounded waits.
# Source it, then `begin NAME`. Programs started with & are added to `pids`.

pids=()

begin() { # name: the work folder is $work from here on
  work=$(mktemp -d "${TMPDIR:-/tmp}/faregate-$1.XXXXXX")
  # nginx started as root serves as another user; the folder must be open to it.
  chmod 755 "$work"
  trap finish EXIT
  trap 'exit 130' INT TERM
  next_port=$((11000 + RANDOM % 4000))
}

finish() {
  local pid
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$work"
}

# Asks a process to end and waits; its number may soon be somebody else's, so it leaves the list.
end() { # pid
  local pid rest=() status=0
  kill "$1"
  wait "$1" || status=$?
  for pid in "${pids[@]}"; do [ "$pid" = "$1" ] || rest+=("$pid"); done
  pids=("${rest[@]}")
  return "$status"
}

fail() {
  echo "${0##*/}: $*" >&2
  [ ! -e "${work:-}/log" ] || tail -n 40 "$work/log" >&2
  exit 1
}

# A port on which nobody answers goes to $reply. (A $(…) would forget the next one.)
port() {
  while (exec 3<>"/dev/tcp/127.0.0.1/$next_port") 2>/dev/null; do next_port=$((next_port + 1)); done
  reply=$next_port
  next_port=$((next_port + 1))
}

await() { # description, command…: until it succeeds, 30 s at most
  local what=$1 tries=0
  shift
  until "$@" >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 300 ] || fail "$what did not come up"
    sleep 0.1
  done
}

admin_token=scripts-admin-token-0123456789abcdef

# Starts a gateway in a folder of its own. Its addresses go to $listen and $admin, its pid to $gate.
faregate_start() { # name, words before the command, --, the environment…
  local name=$1 before=()
  shift
  while [ "$1" != -- ]; do before+=("$1"); shift; done
  shift
  port; listen=127.0.0.1:$reply
  port; admin=127.0.0.1:$reply
  mkdir -p "$work/$name"
  [ -e "$work/$name/settings.toml" ] || : >"$work/$name/settings.toml"
  "${before[@]}" env -C "$work/$name" -u FAREGATE_BINARY FAREGATE_LISTEN="$listen" FAREGATE_ADMIN_LISTEN="$admin" FAREGATE_ADMIN_TOKEN=$admin_token \
    FAREGATE_DATA_DIR="$work/$name/data" "$@" "$binary" --config settings.toml serve >"$work/log" 2>&1 &
  gate=$!
  pids+=("$gate")
  await "faregate ($name)" curl -fsS "http://$admin/readyz"
}

ask_admin() { # path, body
  curl -fsS -H "authorization: Bearer $admin_token" -H 'content-type: application/json' -d "$2" "http://$admin/admin/v1$1"
}

keys_in() { grep -o '"key": *"[^"]*"' | cut -d'"' -f4; }

# So many users with a key each, through two runs of curl. The keys go to a file.
make_users() { # how many, file
  local count=$1 number
  request() { # path, body; what follows another one begins with `next`
    [ "$number" -eq 0 ] || echo next
    printf 'url = "http://%s/admin/v1%s"\nheader = "authorization: Bearer %s"\n' "$admin" "$1" "$admin_token"
    printf 'header = "content-type: application/json"\ndata = "%s"\nwrite-out = "\\n"\n' "${2//\"/\\\"}"
  }
  for ((number = 0; number < count; number++)); do request /users "{\"id\":\"user-$number\"}"; done >"$work/users.curl"
  for ((number = 0; number < count; number++)); do request "/users/user-$number/keys" '{"name":"bench"}'; done >"$work/keys.curl"
  curl -sS --config "$work/users.curl" >"$work/users.made"
  curl -sS --config "$work/keys.curl" | keys_in >"$2" || true
  [ "$(wc -l <"$2")" -eq "$count" ] || fail "users could not be made: $(tail -n 1 "$work/users.made")"
}

redis_start() { # words before the command…: its port goes to $redis_port, its pid to $redis_pid
  port; redis_port=$reply
  "$@" redis-server --port "$redis_port" --bind 127.0.0.1 --save '' --appendonly no --dir "$work" >"$work/redis-$redis_port.log" &
  redis_pid=$!
  pids+=("$redis_pid")
  await redis-server redis-cli -p "$redis_port" ping
}

postgres_start() { # words before the command…, --, its arguments…: a server without fsync, its URL goes to $postgres_url
  local bin as=() port_of before=()
  while [ $# -gt 0 ] && [ "$1" != -- ]; do before+=("$1"); shift; done
  [ $# -eq 0 ] || shift
  bin=$(compgen -G '/usr/lib/postgresql/*/bin/initdb' | sort -V | tail -n 1)
  bin=$(dirname "${bin:-$(command -v initdb)}")
  mkdir "$work/postgres"
  # initdb and postgres refuse to run as root.
  if [ "$(id -u)" -eq 0 ]; then
    chown postgres:postgres "$work/postgres"
    as=(setpriv --reuid=postgres --regid=postgres --clear-groups --)
  fi
  (cd "$work/postgres" && "${as[@]}" "$bin/initdb" --no-sync --no-instructions --auth=trust --username=postgres --encoding=UTF8 \
    --locale=C --pgdata "$work/postgres/data" >"$work/postgres.log")
  port; port_of=$reply
  "${before[@]}" "${as[@]}" "$bin/postgres" -D "$work/postgres/data" -k "$work/postgres" -p "$port_of" -c listen_addresses=127.0.0.1 \
    -c fsync=off -c synchronous_commit=off -c shared_buffers=128MB "$@" >>"$work/postgres.log" 2>&1 &
  pids+=($!)
  # shellcheck disable=SC2034 # for whoever sources this
  postgres_url=postgres://postgres@127.0.0.1:$port_of/postgres
  await postgres "$bin/pg_isready" -h 127.0.0.1 -p "$port_of"
}

release_binary() { # BENCH_BINARY, or built now; the path goes to $binary
  if [ -n "${BENCH_BINARY:-}" ]; then
    binary=$BENCH_BINARY
  else
    cargo build --locked --release --workspace --bins
    binary=${CARGO_TARGET_DIR:-target}/release/faregate
  fi
  [ -x "$binary" ] || fail "$binary is no program"
  binary=$(realpath "$binary")
}
