#!/usr/bin/env bash
# Installs what is missing, on Debian and Ubuntu; elsewhere names it. Arguments: <program or file>=<Debian package>.
# No service is started and no database is created: the tests start servers of their own.
set -euo pipefail

there() { # a program, or a file or pattern by its path
  case $1 in
    /*) compgen -G "$1" >/dev/null ;;
    *) PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null ;;
  esac
}

missing=()
for pair in "$@"; do
  there "${pair%%=*}" || missing+=("${pair#*=}")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
  echo "Missing on this system (by their Debian names): ${missing[*]}. Install them and try again." >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "Missing: ${missing[*]}. Install them with apt-get as root." >&2; exit 1; }
  as_root=(sudo)
fi

echo "Installing ${missing[*]}" >&2
policy=/usr/sbin/policy-rc.d
cluster=/etc/postgresql-common/createcluster.d
made=()
cleanup() { [ ${#made[@]} -eq 0 ] || "${as_root[@]}" rm -f "${made[@]}"; }
trap cleanup EXIT
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
  made+=("$policy")
fi
if [[ " ${missing[*]} " == *" postgresql"* ]] && [ ! -e "$cluster/faregate.conf" ]; then
  "${as_root[@]}" mkdir -p "$cluster"
  echo 'create_main_cluster = false' | "${as_root[@]}" tee "$cluster/faregate.conf" >/dev/null
  made+=("$cluster/faregate.conf")
fi
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null

for pair in "$@"; do
  there "${pair%%=*}" || { echo "${pair#*=} is installed, and ${pair%%=*} is still not there" >&2; exit 1; }
done
