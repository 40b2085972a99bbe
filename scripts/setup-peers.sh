#!/usr/bin/env bash
# setup-peers.sh DIR [PEER…]: the tools that `make bench` compares with, into DIR/bin. Quick when nothing is missing; what cannot be had is
# said, and the benchmarks leave its rows out.
set -euo pipefail
tools=${1:-/var/tmp/pgvault-tools}
shift || true
peers=("$@")
[ ${#peers[@]} -gt 0 ] || peers=(wal_rus pgbackrest barman)

wal_rus() {
  local version=0.4.1
  [ "$(cat "$tools/.wal-rus" 2>/dev/null)" = "$version" ] && return
  echo "setup: building WAL-RUS $version into $tools (once, some minutes)"
  # Without --locked: its lock file names versions that the registry no longer has.
  CARGO_TARGET_DIR="$tools/build-wal-rus" nice cargo install wal-rus --version "$version" --root "$tools" --quiet \
    && echo "$version" > "$tools/.wal-rus" && rm -rf "$tools/build-wal-rus"
}

pgbackrest() { # from the distribution, which needs root
  type -P pgbackrest >/dev/null && return
  echo "setup: installing pgBackRest"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends pgbackrest >/dev/null
}

barman() { # the newest that this Python can run, in an environment of its own
  "$tools/barman/bin/barman-cloud-backup" --version >/dev/null 2>&1 && return
  echo "setup: installing Barman"
  python3 -m venv "$tools/barman" && "$tools/barman/bin/pip" install --quiet --disable-pip-version-check 'barman[cloud,lz4]' boto3 psycopg2-binary
}

mkdir -p "$tools"
for peer in "${peers[@]}"; do
  "$peer" || echo "setup: $peer is not to be had; its rows are left out" >&2
done
