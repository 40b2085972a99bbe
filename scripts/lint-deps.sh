#!/usr/bin/env bash
# lint-deps.sh: licences, bans and sources of every dependency, by cargo-deny. Advisories too with CHECK_ADVISORIES=1.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=${PGVAULT_TOOLS:-/var/tmp/pgvault-tools}
version=0.20.2
deny=$tools/bin/cargo-deny
if ! "$deny" --version 2>/dev/null | grep -qF "$version"; then
  echo "lint: building cargo-deny $version into $tools (once)"
  # A debug build: it runs for a second, and takes a third of the time to compile.
  cargo install cargo-deny --version "$version" --locked --debug --quiet --root "$tools"
fi
"$deny" --log-level error check bans licenses sources
# Advisories come from a git repository on the network, which a build machine may not have: only when asked for.
if [ "${CHECK_ADVISORIES:-0}" = 1 ]; then
  "$deny" --log-level error check advisories
fi
