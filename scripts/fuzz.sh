#!/usr/bin/env bash
# Runs every fuzz target for a while with libFuzzer's coverage, on the stable toolchain (there is no `unsafe` here for an
# address sanitizer to watch). FUZZ_SECONDS (60, per target), FUZZ_TARGETS (all).
# Corpus and findings stay in fuzz/corpus and fuzz/artifacts; a finding fails the run.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

targets=${FUZZ_TARGETS:-sse_meter request_estimator headers http1_answer}
# A target of its own keeps build scripts and macros free of these flags.
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 -Cllvm-args=-sanitizer-coverage-level=4
 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
RUSTFLAGS=${RUSTFLAGS//$'\n'/}
cargo build --release --target "$host"
for target in $targets; do
  mkdir -p "corpus/$target" "artifacts/$target"
  echo "== $target"
  "${CARGO_TARGET_DIR:-target}/$host/release/$target" -max_total_time="${FUZZ_SECONDS:-60}" -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 \
    -artifact_prefix="artifacts/$target/" "corpus/$target"
done
