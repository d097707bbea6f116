#!/usr/bin/env bash
# Every dependency's licence must be one of these. With cargo-deny at hand, its checks run as well (deny.toml).
set -euo pipefail
cd "$(dirname "$0")/.."

allowed='MIT|MIT-0|Apache-2\.0|BSD-1-Clause|BSD-2-Clause|BSD-3-Clause|ISC|MPL-2\.0|Zlib|Unicode-3\.0|Unicode-DFS-2016|CC0-1\.0|0BSD|CDLA-Permissive-2\.0|Unlicense|BSL-1\.0'

# The expression becomes arithmetic: 1 for a licence that is allowed, 0 for any other, with OR and AND between them.
fits() {
  local terms
  terms=$(sed -E "s#/# OR #g; s#Apache-2\.0 WITH LLVM-exception#Apache-2.0#g; s#\b($allowed)\b#1#g; s#\bOR\b#||#g; s#\bAND\b#\&\&#g" <<<" $1 ")
  terms=$(sed -E 's#[A-Za-z][A-Za-z0-9.+-]*#0#g' <<<"$terms")
  [[ $terms =~ ^[01\ \|\&\(\)]+$ ]] && (( terms ))
}

count=0 bad=0
while IFS=$'\t' read -r package licence; do
  [ -n "$package" ] || continue
  count=$((count + 1))
  if [ -z "$licence" ] || ! fits "$licence"; then
    echo "licence: $package: ${licence:-none}" >&2
    bad=$((bad + 1))
  fi
done < <(cargo tree --locked --workspace --edges normal,build,dev --prefix none --no-dedupe --format $'{p}\t{l}' | sed -E 's/ \(\*\)//; s/ \([^)]*\)//' | sort -u)
[ "$count" -gt 100 ] || { echo "licence: only $count packages found; the list cannot be right" >&2; exit 1; }
[ "$bad" -eq 0 ] || exit 1
echo "licences of $count packages: all allowed"

if command -v cargo-deny >/dev/null; then
  cargo deny --offline check bans sources licenses
  if [ -d "${CARGO_HOME:-$HOME/.cargo}/advisory-dbs" ]; then cargo deny --offline check advisories; fi
fi
if command -v cargo-audit >/dev/null && [ -d "${CARGO_HOME:-$HOME/.cargo}/advisory-db" ]; then
  cargo audit --no-fetch
fi
