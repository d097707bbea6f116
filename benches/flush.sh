#!/usr/bin/env bash
# Usage rows a second from the flusher into a Postgres of its own (fsync and synchronous_commit on), against plain COPY
# of the same rows in the same run. FLUSH_ROWS, FLUSH_ROUNDS, FLUSH_ACCOUNTS, FLUSH_SHARDS as in benches/flush.rs;
# FLUSH_PROFILE (bench).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

cargo build --locked --profile "${FLUSH_PROFILE:-bench}" --bench flush
begin flush
postgres_start -- -c fsync=on -c synchronous_commit=on -c max_wal_size=4GB
FAREGATE_STORE_URL=$postgres_url cargo bench --locked --quiet --profile "${FLUSH_PROFILE:-bench}" --bench flush
