#!/usr/bin/env bash
# The alert rules parse, and fire when they should and only then: promtool, with the tests beside them.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install.sh promtool=prometheus
cd deploy/prometheus
promtool check config --syntax-only prometheus.yml
promtool check rules rules.yml
promtool test rules rules_test.yml
