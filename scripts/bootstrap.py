"""Finds the package in the checkout of these scripts, or says how to make an environment for it.

Scripts import this module first.  It imports the standard library alone.
"""
import importlib.util
import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
if _absent := [name for name in ('absl', 'jax', 'ml_collections')
               if importlib.util.find_spec(name) is None]:
  sys.exit(f'error: {sys.executable} has no {" and no ".join(_absent)}: make the environment by '
           f'`bash {os.path.relpath(ROOT / "scripts" / "setup.sh")}` (once), then start '
           f'{os.path.relpath(ROOT / ".venv" / "bin" / "python")} '
           f'{" ".join([sys.argv[0], *map(shlex.quote, sys.argv[1:])])}')
# Compiled programs are kept: a second start does not compile again.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
