"""The README's programs run as they are printed, and do what it says."""
import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import certification, objectives, oracles, processes, schedules, weightings

TEXT = (Path(__file__).parents[2] / 'README.md').read_text()
CIRCLE, OBJECTIVE, SAMPLER = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)


def test_the_two_dimensional_example_draws_a_circle(tmp_path):
  path = tmp_path / 'circle.py'
  path.write_text(CIRCLE)
  assert len(path.read_text().splitlines()) <= 32
  out = runpy.run_path(str(path))
  points = np.asarray(out['points'])
  radius = np.linalg.norm(points, axis=-1)
  assert abs(np.median(radius) - 1.0) < 0.05
  assert np.mean(np.abs(radius - 1.0) < 0.25) > 0.9  # an untrained network: less than a third
  # All around: eight sectors of equal probability, chi-square with 7 degrees of freedom; the
  # bound is generous, since a short training leaves the density uneven.
  counts, _ = np.histogram(np.arctan2(*points.T), 8, (-np.pi, np.pi))
  assert counts.min() > 0.5 * len(points) / 8


def defined(block: str, name: str):
  names = {}
  exec(compile(block, 'README.md', 'exec'), names)
  return names[name]


def test_the_objective_is_a_weighted_bound_draw_by_draw():
  process = processes.GaussianProcess(schedules.Linear(4.0, -4.0))
  args = (oracles.Gaussian(0.3, 0.5), process, jax.random.normal(jax.random.key(1), (64, 3)),
          jnp.linspace(0.0, 1.0, 64), jax.random.split(jax.random.key(0), 64))
  nats, _ = defined(OBJECTIVE, 'objective')(*args)
  bound, _ = objectives.weighted_diffusion(*args, weight=weightings.vlb)
  alpha = np.sqrt(1.0 / (1.0 + np.exp(-np.linspace(4.0, -4.0, 64))))  # of the vp curve
  np.testing.assert_allclose(nats, alpha * bound, rtol=1e-5)


def test_the_sampler_has_first_order():
  rows = certification.certify(defined(SAMPLER, 'sampler'), order=1)
  assert all(row.passed and row.evaluations_per_step == 1 for row in rows)
