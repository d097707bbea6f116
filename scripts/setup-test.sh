#!/usr/bin/env bash
# What `make test` needs beside Rust and a C compiler.
set -euo pipefail
cd "$(dirname "$0")"

# Debian keeps Postgres's server programs out of the PATH.
postgres='/usr/lib/postgresql/*/bin/initdb'
command -v initdb >/dev/null && postgres=initdb
needs=(redis-server=redis-server redis-cli=redis-tools "$postgres=postgresql")
# initdb refuses to run as root; setpriv lets it run as the user postgres.
[ "$(id -u)" -ne 0 ] || needs+=(setpriv=util-linux)
./install.sh "${needs[@]}"
