#!/usr/bin/env bash
# Instructions of each case of benches/hot_path.rs, counted by valgrind: the difference between two runs of unlike length.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v valgrind >/dev/null || { echo "valgrind is missing (Debian: apt-get install valgrind)" >&2; exit 1; }

bench=$(cargo bench --locked --bench hot_path --no-run --message-format short 2>&1 | sed -nE 's/.*\(([^)]*hot_path-[0-9a-f]+)\).*/\1/p' | tail -n 1)
[ -x "$bench" ] || { echo "the benchmark was not built" >&2; exit 1; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT

count() { # case, iterations
  valgrind --tool=callgrind --callgrind-out-file=/dev/null --log-file="$log" "$bench" --case "$1" --iterations "$2"
  sed -nE 's/.*Collected : ([0-9]+).*/\1/p' "$log"
}
for case in $("$bench" --list-cases); do
  short=$(count "$case" 1000)
  long=$(count "$case" 3000)
  printf '%-28s %9d instructions\n' "$case" $(((long - short) / 2000))
done
