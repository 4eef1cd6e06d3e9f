#!/usr/bin/env bash
# Checks an accelerator within some minutes, and installs nothing: --help lists the flags.
# The interpreter is $PYTHON, else the one of .venv, else python3.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m vdm_jax.benchmark.device "$@"
