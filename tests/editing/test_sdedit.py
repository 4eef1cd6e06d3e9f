"""SDEdit of Gaussian data, whose edits are Gaussian."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import oracles, schedules
from vdm_jax.editing import sdedit
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess
from vdm_jax.samplers import ancestral, heun

pytestmark = pytest.mark.usefixtures('x64')
PROCESS = GaussianProcess(schedules.Linear(12.0, -6.0))
START = 2 / 3  # where logsnr = 0, so kappa = 1


@pytest.mark.first(1)
@pytest.mark.parametrize('make,std,factor,variance', [
    (heun, 1.0, 0.5**0.5, 0.5), (ancestral, 1.0, 0.5, 0.75),
    # s / sqrt(s^2 + 1), s^2 / (s^2 + 1); s^2 / (s^2 + 1), (that + s^4 / (s^2 + 1)^2) for s = 2.
    (heun, 2.0, 0.8**0.5, 0.8), (ancestral, 2.0, 0.8, 0.8 + 0.64)])
def test_an_edit_has_the_mean_and_the_variance_of_the_closed_form(make, std, factor, variance):
  n, mean, guide = 20_000, 0.5, -1.5
  times = np.linspace(START, 0.0, 301)
  assert abs(float(PROCESS(START).logsnr)) < 1e-9

  @jax.jit
  def run():
    keys = jax.random.split(jax.random.key(0), n)
    return sdedit.edit(make(oracles.Gaussian(mean, std), PROCESS), PROCESS, keys,
                       jnp.full((n, 1), guide), times)
  x = np.asarray(run()) / float(PROCESS(0.0).alpha)
  want = mean + (guide - mean) * factor
  # Four standard errors, and an error of the steps and of the last level.
  assert abs(x.mean() - want) < 4 * (variance / n)**0.5 + 0.005
  assert abs(x.var() - variance) < 4 * variance * (2 / n)**0.5 + 0.01


def test_a_grid_that_goes_up_is_refused():
  keys = jax.random.split(jax.random.key(0), 1)
  with pytest.raises(InputError, match='must decrease'):
    sdedit.edit(heun(oracles.Gaussian(), PROCESS), PROCESS, keys, jnp.ones((1, 1)),
                np.linspace(0.0, 0.5, 3))
