#!/usr/bin/env bash
# Sets up and runs the tests; `scripts/test.sh --all` the long ones too, `scripts/test.sh -m quick`
# the mathematics alone.  Further arguments are pytest's, of which a later -m replaces an earlier.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$root"

selection=(-m "not long")
if [ "${1:-}" = --all ]; then
  selection=()
  shift
fi
exec "$python" -m pytest -q -n 2 ${selection[@]+"${selection[@]}"} "$@"
