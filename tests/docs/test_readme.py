"""The README's programs run as they are printed, and do what it says."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import pages
from tests.support.pages import PAGES
from vdm_jax import certification, objectives, oracles, processes, schedules, weightings


@pytest.fixture(scope='module')
def readme(tmp_path_factory):
  return pages.run(PAGES['README.md'].read_text(), tmp_path_factory.mktemp('readme'))


@pytest.mark.long
def test_the_two_dimensional_example_draws_a_circle(readme):
  points = np.asarray(readme.files['circle'].points)
  radius = np.linalg.norm(points, axis=-1)
  assert abs(np.median(radius) - 1.0) < 0.05
  assert np.mean(np.abs(radius - 1.0) < 0.25) > 0.9  # an untrained network: less than a third
  # All around: eight sectors of equal probability, chi-square with 7 degrees of freedom; the
  # bound is generous, since a short training leaves the density uneven.
  counts, _ = np.histogram(np.arctan2(*points.T), 8, (-np.pi, np.pi))
  assert counts.min() > 0.5 * len(points) / 8


def test_the_two_dimensional_example_is_short():
  program = pages.programs(PAGES['README.md'].read_text())['circle.py']
  assert len(program.splitlines()) <= 32


@pytest.mark.long
def test_the_objective_is_a_weighted_bound_draw_by_draw(readme):
  process = processes.GaussianProcess(schedules.Linear(4.0, -4.0))
  args = (oracles.Gaussian(0.3, 0.5), process, jax.random.normal(jax.random.key(1), (64, 3)),
          jnp.linspace(0.0, 1.0, 64), jax.random.split(jax.random.key(0), 64))
  nats, _ = readme.names['objective'](*args)
  bound, _ = objectives.weighted_diffusion(*args, weight=weightings.vlb)
  alpha = np.sqrt(1.0 / (1.0 + np.exp(-np.linspace(4.0, -4.0, 64))))  # of the vp curve
  np.testing.assert_allclose(nats, alpha * bound, rtol=1e-5)


@pytest.mark.long
def test_the_sampler_has_first_order(readme):
  rows = certification.certify(readme.names['sampler'], order=1)
  assert all(row.passed and row.evaluations_per_step == 1 for row in rows)
