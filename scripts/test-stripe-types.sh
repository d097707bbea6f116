#!/usr/bin/env bash
# Has async-stripe read Stripe's own example objects, and every object that the simulator makes in its tests.
set -euo pipefail
cd "$(dirname "$0")/.."

objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
log=$objects.log
FAREGATE_STRIPE_OBJECTS=$objects cargo test --locked --package faregate-sim --lib stripe:: >"$log" 2>&1 || { cat "$log" >&2; rm -f "$log"; exit 1; }
rm -f "$log"
cargo run --locked --quiet --manifest-path tests/stripe-types/Cargo.toml --target-dir "${CARGO_TARGET_DIR:-target}/stripe-types" -- \
  sim/fixtures/stripe.json "$objects"/*.json
