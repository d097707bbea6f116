#!/usr/bin/env bash
# The long form of the tests: a million random sequences against the ledgers, and the protocol's larger scopes, the faults over and over.
# TORTURE_SEQUENCES (1000000), TORTURE_ROUNDS (1: of all fault tests), TORTURE_FAULT_ROUNDS (100: within each of them),
# TORTURE_OUTAGE_MS (60000), TORTURE_STALL_MS (15000), TORTURE_USAGE_ROWS (10000000: that the usage reports are tried on). A failure prints its seed.
set -euo pipefail
cd "$(dirname "$0")/.."

export FAREGATE_FAULT_ROUNDS=${TORTURE_FAULT_ROUNDS:-100} FAREGATE_FAULT_OUTAGE_MS=${TORTURE_OUTAGE_MS:-60000}
export FAREGATE_FAULT_STALL_MS=${TORTURE_STALL_MS:-15000}
export FAREGATE_USAGE_ROWS=${TORTURE_USAGE_ROWS:-10000000}
export FAREGATE_PROPERTY_CASES=${TORTURE_SEQUENCES:-1000000}
cargo test --locked --test it ledger_props:: -- --nocapture
for ((round = 1; round <= ${TORTURE_ROUNDS:-1}; round++)); do
  echo "faults, round $round"
  cargo test --locked --test it -- faults:: recovery:: protocol:: cluster:: billing:: store::usage_sums
done
