#!/usr/bin/env bash
# Shell scripts parse; with shellcheck at hand, they are checked as well.
set -euo pipefail
cd "$(dirname "$0")/.."
for script in scripts/*.sh benches/*.sh .ci/run; do bash -n "$script"; done
if command -v shellcheck >/dev/null; then shellcheck -x scripts/*.sh benches/*.sh .ci/run; fi
