#!/usr/bin/env bash
# setup-integration.sh: what `make integration` needs beyond `make setup`: Patroni (PyPI, in a folder of its own), etcd (Debian's package, unpacked,
# not installed), repmgr (Debian's package for its PostgreSQL). Quick when nothing is missing.
set -euo pipefail
tools=${PGVAULT_TOOLS:-/var/tmp/pgvault-tools}
patroni=4.1.5
mkdir -p "$tools/bin"

# Servers run as an ordinary user, who may not be able to enter the home of root's own Python: the system's is for everybody.
python=/usr/bin/python3
[ -x "$python" ] || python=$(command -v python3)
if [ ! -x "$tools/bin/patroni" ] || ! "$tools/bin/patroni" --version 2>/dev/null | grep -qF "$patroni"; then
  echo "setup: fetching Patroni $patroni into $tools/patroni"
  rm -rf "$tools/patroni"
  python3 -m pip --python "$python" install --quiet --disable-pip-version-check --root-user-action=ignore \
    --target "$tools/patroni" "patroni[etcd3]==$patroni" psycopg2-binary
  printf '#!/bin/sh\nPYTHONPATH="%s" exec "%s" -m patroni "$@"\n' "$tools/patroni" "$python" > "$tools/bin/patroni"
  chmod 0755 "$tools/bin/patroni"
fi

if [ ! -x "$tools/bin/etcd" ]; then
  echo "setup: fetching etcd into $tools/bin"
  # Only the program: the package would start a service of the machine.
  dir=$(mktemp -d)
  # apt downloads as a user of its own where it can.
  chmod 0755 "$dir"
  (cd "$dir" && apt-get download -qq etcd-server >/dev/null 2>&1) || { apt-get update -qq && (cd "$dir" && apt-get download -qq etcd-server); }
  dpkg -x "$dir"/etcd-server_*.deb "$dir/unpacked"
  install -m 0755 "$dir/unpacked/usr/bin/etcd" "$tools/bin/etcd"
  rm -rf "$dir"
fi

if ! ls /usr/lib/postgresql/*/bin/repmgr >/dev/null 2>&1; then
  package=postgresql-$(ls /usr/lib/postgresql | sort -n | tail -1)-repmgr
  if [ "$(id -u)" != 0 ]; then
    echo "setup: missing repmgr: install it with 'sudo apt-get install repmgr $package'" >&2
    exit 1
  fi
  echo "setup: installing repmgr"
  apt-get install -y -qq "$package" repmgr >/dev/null 2>&1 || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" repmgr >/dev/null; }
fi
chmod -R a+rX "$tools/patroni" "$tools/bin"
