"""A run has the same numbers, to the rounding of float32, where JAX has 64 bits.

  JAX_ENABLE_X64=1 python scripts/evaluate.py --workdir=RUN
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
# Trains, evaluates and samples; the one argument is an empty directory.
PROGRAM = """
import json, sys
from pathlib import Path
import jax
from tests.support import tiny_config
from vdm_jax import load, random, runs

folder = Path(sys.argv[1])
config = tiny_config.get_config()
config.data.data_dir = str(folder / 'data')
config.train.update(steps=5, log_every=5, validate_every=5, checkpoint_every=5)
means = runs.train(config, tiny_config.__file__, folder / 'run')
ledger = runs.evaluate(folder / 'run', times=4, examples=32)
sample = load(folder / 'run').sample(random.key(0), 64, sampler='ancestral', steps=5)
(folder / 'numbers.json').write_text(json.dumps({
    'validation': float(means['bits_per_dim']), 'x64': jax.config.jax_enable_x64,
    'ledger': [row['bits_per_dim'] for row in ledger.rows], 'sample': sample.tolist()}))
"""


def numbers(folder: Path, x64: bool) -> dict:
  folder.mkdir()
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_ENABLE_X64': str(int(x64))}
  done = subprocess.run([sys.executable, '-c', PROGRAM, folder], cwd=ROOT, env=environment,
                        text=True, capture_output=True, check=False)
  assert done.returncode == 0, done.stderr
  return json.loads((folder / 'numbers.json').read_text())


@pytest.mark.long
def test_noise_is_the_same_with_and_without_64_bits(tmp_path):
  one, other = (numbers(tmp_path / str(x64), x64) for x64 in (False, True))
  assert (one['x64'], other['x64']) == (False, True)
  # Other noise would move them by a standard error, some tenths.
  np.testing.assert_allclose(other['validation'], one['validation'], atol=1e-4)
  np.testing.assert_allclose(other['ledger'], one['ledger'], atol=1e-4)
  apart = np.abs(np.subtract(one['sample'], other['sample']))
  assert apart.max() <= 1 and np.mean(apart > 0) < 0.02  # a level, where it is rounded
