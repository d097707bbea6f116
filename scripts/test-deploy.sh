#!/usr/bin/env bash
# What can be tried of deploy/ without a container engine or a cluster: that the files are what their readers take, that the
# settings in them are accepted by the program, and Prometheus itself, which scrapes a gateway, loads the rules, and answers
# every query of the dashboards.
# FAREGATE_BINARY: another build than target/debug/faregate.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

scripts/install.sh curl=curl python3=python3 prometheus=prometheus
tools=$PWD/.tools/deploy
if ! cmp -s tests/deploy/requirements.txt "$tools/requirements.txt"; then
  rm -rf "$tools"
  python3 -m venv "$tools" || { echo "On Debian: apt-get install python3-venv" >&2; exit 1; }
  "$tools/bin/pip" install --quiet --only-binary :all: -r tests/deploy/requirements.txt
  cp tests/deploy/requirements.txt "$tools/"
fi
python=$tools/bin/python
if [ -n "${FAREGATE_BINARY:-}" ]; then
  binary=$(realpath "$FAREGATE_BINARY")
else
  cargo build --locked --bin faregate
  binary=$(realpath "${CARGO_TARGET_DIR:-target}/debug/faregate")
fi
begin deploy

echo "== compose.yaml and the Kubernetes example, with their settings"
mkdir "$work/places"
"$python" tests/deploy/check.py "$work/places"
for place in compose kubernetes; do
  mapfile -t environment <"$work/places/$place/env"
  env -i -C "$work" PATH="$PATH" FAREGATE_DATA_DIR="$work/none" "${environment[@]}" \
    "$binary" --config "$work/places/$place/settings.toml" check
done

echo "== the systemd unit"
if command -v systemd-analyze >/dev/null; then
  sed "s|/usr/local/bin/faregate|$binary|" deploy/systemd/faregate.service >"$work/faregate.service"
  systemd-analyze verify --man=no "$work/faregate.service"
  systemd-analyze security --offline=true --threshold=20 "$work/faregate.service" | tail -n 1
else
  echo "not verified: there is no systemd-analyze here"
fi

echo "== Prometheus, with the shipped configuration"
faregate_start gate --
port; prometheus=127.0.0.1:$reply
mkdir "$work/prometheus"
cp deploy/prometheus/rules.yml "$work/prometheus/"
sed -e "s|gateway:9090|$admin|" -e 's/interval: 15s/interval: 1s/' deploy/prometheus/prometheus.yml >"$work/prometheus/prometheus.yml"
prometheus --config.file="$work/prometheus/prometheus.yml" --storage.tsdb.path="$work/prometheus/data" \
  --web.listen-address="$prometheus" >"$work/prometheus/log" 2>&1 &
pids+=($!)
answer() { curl -fsS "http://$prometheus/api/v1/$1" "${@:2}"; }
scraped() { answer targets | grep -q '"health":"up"'; }
await "Prometheus" answer status/runtimeinfo
await "the first scrape" scraped
judged() { # every rule of the file was evaluated, and without an error
  answer rules | "$python" -c '
import json, re, sys
rules = [rule for group in json.load(sys.stdin)["data"]["groups"] for rule in group["rules"]]
wanted = len(re.findall(r"^ +- (?:alert|record): ", open("deploy/prometheus/rules.yml").read(), re.M))
bad = [rule["name"] + ": " + rule.get("lastError", "") for rule in rules if rule["health"] == "err"]
sys.exit(", ".join(bad) if bad else 0 if len(rules) == wanted and all(rule["health"] == "ok" for rule in rules) else 1)'
}
await "every rule" judged
count=0
while IFS= read -r query; do
  answer query --data-urlencode "query=$query" >"$work/answer" || fail "Prometheus does not answer: $query"
  grep -q '"status":"success"' "$work/answer" || fail "$(cat "$work/answer")"
  count=$((count + 1))
done < <("$python" tests/deploy/check.py --queries)
[ "$count" -gt 30 ] || fail "only $count queries on the dashboards"
firing=$(answer alerts | "$python" -c 'import json, sys; print(" ".join(one["labels"]["alertname"] for one in json.load(sys.stdin)["data"]["alerts"] if one["state"] == "firing"))')
[ -z "$firing" ] || fail "alerts about a gateway that is well: $firing"
echo "scraped, every rule evaluated, $count queries of the dashboards answered, no alert"
