"""What every sampler of the catalogue obeys, on data that are three points.

It steps from alpha = 0 to sigma = 0 without asking the denoiser there; where it steps in logsnr,
its samples are the same on every curve, in its own units; a grid may be padded.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.sampling import CURVES, UNEVEN
from vdm_jax import oracles, schedules
from vdm_jax.certification import catalogue as certified
from vdm_jax.processes import from_alpha_sigma
from vdm_jax.samplers import catalogue, sample

pytestmark = pytest.mark.usefixtures('x64')

POINTS = oracles.Empirical(jnp.array([[-2.0], [0.5], [3.0]]))
UNIT = np.linspace(-1.5, 1.5, 6)[:, None]
SCHEDULE = schedules.Cosine(6.0, -4.0)

CATALOGUE = {name: entry for name, entry in catalogue.SAMPLERS.items()
             if entry.evaluations is not None and not entry.needs}
# These step along z and t of the curve that they are on, or add noise in the units of z_t.  So do
# the correctors, whose steps are shares of the norm of z or of sigma.
OF_THEIR_CURVE = {'ancestral_large', 'ancestral_between', 'euler', 'euler_maruyama',
                  'reverse_diffusion', 'reverse_diffusion_flow', 'heun', 'midpoint', 'rk3', 'rk4',
                  'quasi_taylor', 'quasi_ito_taylor', 'annealed_langevin',
                  *(name for name in CATALOGUE if name.startswith('pc_'))}
# These do not claim to start where alpha = 0.
FINITE = {name for name, options in certified.OPTIONS.items()
          if options.get('curves') == certified.FINITE}
POLYNOMIAL = {name for name in CATALOGUE if name.startswith('deis')} | {'reverse_diffusion'}
# Their last step is not to the estimate of x at its start.  The first two take eps there from a
# polynomial through earlier estimates, the third adds noise and corrects: in seven steps all three
# land beside, and come nearer with the number of steps.
BESIDE = {'plms', 'unipc_2_noise', 'pc_reverse_diffusion'}
# One of each kind; the others differ from one of these in an option.
KINDS = {'ancestral', 'ddim', 'heun', 'dpm_solver_3', 'dpm_solver_fast', 'dpmpp_3m',
         'dpm_solver_2m_sde', 'deis_t3', 'unipc_3', 'quasi_ito_taylor', 'edm_churn'}


def kinds(names):
  names = set(names)
  return pytest.mark.parametrize('name', [
      name if name in KINDS else pytest.param(name, marks=pytest.mark.long)
      for name in CATALOGUE if name in names])


def place(k):
  """Process number k: those of SCHEDULE on every curve, then rectified flow.

  One program serves them all, as the number is an argument.
  """
  def levels(t):
    return [*(curve(SCHEDULE(t)) for curve in CURVES), (1.0 - t, t)]
  choose = lambda i: lambda t: jnp.stack([jnp.broadcast_to(level[i], jnp.shape(t))
                                          for level in levels(t)])[k]
  return from_alpha_sigma(choose(0), choose(1))


ENDS = len(CURVES)


def undefined_at_data(z, level, cond=None):
  """The posterior mean of the points, but NaN where sigma = 0, as a network may be."""
  defined = jnp.where(level.sigma > 0.0, 1.0, jnp.nan)
  return jax.tree.map(lambda a: defined * a, POINTS(z, level))


def program(name):
  """(number of a process, times) -> samples in units of the data."""
  def run(k, times):
    process = place(k)
    first, last = process(times[0]), process(times[-1])
    keys = jax.random.split(jax.random.key(0), len(UNIT))
    sampler = CATALOGUE[name].make(undefined_at_data, process)
    return sample(sampler, keys, jnp.hypot(first.alpha, first.sigma) * UNIT, times) / last.alpha
  return run


@functools.cache
def padded(name):
  """Samples on every process, along a padded grid."""
  run = program(name)
  return np.asarray(jax.jit(lambda times: jax.lax.map(
      lambda k: run(k, times), jnp.arange(ENDS + 1)))(np.pad(UNEVEN, (0, 3))))


@pytest.mark.long
@kinds(set(CATALOGUE) - OF_THEIR_CURVE)
def test_in_its_own_units_every_curve_has_the_same_samples(name):
  got = padded(name)[:ENDS]
  np.testing.assert_allclose(got, np.broadcast_to(got[0], got.shape), rtol=1e-9, atol=1e-10)
  assert np.std(got[0]) > 0.1


@pytest.mark.long
@kinds(set(CATALOGUE) - FINITE - BESIDE)
def test_from_pure_noise_to_pure_data_every_sample_lands_on_a_point(name):
  """logsnr is infinite at both ends, and the data have no density at sigma = 0.

  What goes on by a polynomial through its last estimates comes near a point in seven steps.
  """
  got = padded(name)[ENDS]
  nearest = np.abs(got - POINTS.data[:, 0]).min(axis=-1)
  np.testing.assert_allclose(nearest, 0.0, atol=0.3 if name in POLYNOMIAL else 1e-6)
  assert len(np.unique(np.round(got, 1))) > 1


@pytest.mark.long
@pytest.mark.parametrize('name', sorted(BESIDE))
def test_what_lands_beside_the_points_in_seven_steps_reaches_them_in_a_hundred(name):
  beside = np.abs(padded(name)[ENDS] - POINTS.data[:, 0]).min(axis=-1)
  got = jax.jit(program(name))(ENDS, np.linspace(1.0, 0.0, 101))
  assert beside.max() > 0.05
  np.testing.assert_allclose(np.abs(got - POINTS.data[:, 0]).min(axis=-1), 0.0, atol=2e-3)


@pytest.mark.long
@kinds(CATALOGUE)
def test_a_padded_grid_gives_what_the_plain_one_does(name):
  plain = jax.jit(program(name))
  for k in (0,) if name in FINITE else (0, ENDS):
    assert np.isfinite(padded(name)[k]).all()
    np.testing.assert_allclose(padded(name)[k], plain(k, UNEVEN), rtol=1e-12, atol=1e-13)
