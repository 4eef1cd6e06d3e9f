#!/usr/bin/env bash
# Sourced by the other scripts: leaves in $python an interpreter that has requirements.txt.
#
# Makes .venv with the first Python >= 3.11 that runs (uv finds or fetches one, where it is
# installed).  A second run installs nothing, unless requirements.txt has changed.
# VDM_JAX_EXTRA=cuda13 (or tpu) adds JAX's support for that accelerator.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
python=$venv/bin/python

find_python() {
  local name
  for name in python3 python3.11 python3.12 python3.13 python3.14 python; do
    # Asked to run, not only looked for: version managers put up names that lead nowhere.
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$name"
      return
    fi
  done
  echo 'error: no Python >= 3.11 was found; install one, or uv, and run this again.' >&2
  return 1
}

set_up() {
  local wanted
  wanted="$(cksum < "$root/requirements.txt") ${VDM_JAX_EXTRA:-}"
  if [ -x "$python" ] && [ "$(cat "$venv/.installed" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  echo "Setting up $venv ..." >&2
  rm -f "$venv/.installed"
  local extra=()
  if command -v uv >/dev/null 2>&1; then
    [ -x "$python" ] || uv venv --quiet --python '>=3.11' "$venv" || return
    uv pip install --quiet --python "$python" -r "$root/requirements.txt" || return
    [ -z "${VDM_JAX_EXTRA:-}" ] || extra=(uv pip install --quiet --python "$python")
  else
    if [ ! -x "$python" ]; then
      local base
      base=$(find_python) || return
      "$base" -m venv "$venv" || return
    fi
    "$python" -m pip install --quiet --disable-pip-version-check \
      -r "$root/requirements.txt" || return
    [ -z "${VDM_JAX_EXTRA:-}" ] || extra=("$python" -m pip install --quiet)
  fi
  if [ "${#extra[@]}" -gt 0 ]; then
    local version
    version=$("$python" -c 'import jax; print(jax.__version__)') || return
    "${extra[@]}" "jax[$VDM_JAX_EXTRA]==$version" || return
  fi
  echo "$wanted" > "$venv/.installed"
}

set_up || exit 1
