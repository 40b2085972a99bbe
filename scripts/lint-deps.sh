#!/usr/bin/env bash
# lint-deps.sh: licences, bans and sources of every dependency, by cargo-deny. Advisories too where their database can be reached.
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
# The RustSec database is a git repository: without a way to it this says so and goes on.
if timeout 20 git ls-remote --exit-code https://github.com/rustsec/advisory-db HEAD >/dev/null 2>&1; then
  "$deny" --log-level error check advisories
else
  echo "lint: the advisory database cannot be reached from here: advisories were not checked"
fi
