#!/usr/bin/env bash
# setup.sh [DIR]: what demo and tests need and a fresh machine may lack: PostgreSQL from the distribution, zstd, openssl; with DIR also further
# majors and an S3 server, unpacked there (scripts/fetch-servers.sh). Quick when nothing is missing.
set -euo pipefail
servers=${1:-}
here=$(cd "$(dirname "$0")" && pwd)

need() { # need COMMAND PACKAGE: installs PACKAGE where COMMAND is missing
  command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}
missing=()
need zstd zstd
need openssl openssl
need setpriv util-linux
need strace strace
# For docs/read_repository.py, where a repository is encrypted.
python3 -c 'import cryptography' 2>/dev/null || missing+=(python3-cryptography)
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing+=(postgresql)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "setup: missing ${missing[*]}: install with 'sudo apt-get install ${missing[*]}'" >&2
    exit 1
  fi
  echo "setup: installing ${missing[*]}"
  # The packaged cluster must not start: tests run servers of their own.
  mkdir -p /etc/postgresql-common
  [ -e /etc/postgresql-common/createcluster.conf ] || echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
fi
# PostgreSQL refuses to run as root; tests run it as this user.
[ "$(id -u)" != 0 ] || id postgres >/dev/null 2>&1 || useradd --system --create-home postgres

if [ -n "$servers" ] && [ ! -e "$servers/.complete-1" ]; then
  echo "setup: fetching PostgreSQL 14 to 18 and SeaweedFS into $servers"
  mkdir -p "$servers"
  # Debian's pip refuses to install system-wide; downloading is allowed everywhere.
  "$here/fetch-servers.sh" "$servers"
  chmod -R a+rX "$servers"
  touch "$servers/.complete-1"
fi
