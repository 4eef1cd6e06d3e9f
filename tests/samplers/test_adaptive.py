"""The adaptive probability flow, against exact maps and counted calls."""
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import oracles, processes, schedules
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess, from_alpha_sigma
from vdm_jax.samplers.adaptive import adaptive_ode
from vdm_jax.typing import Estimate

pytestmark = pytest.mark.usefixtures('x64')

ORACLE = oracles.Gaussian(0.7, 0.4)
UNIT = np.linspace(-2.0, 2.0, 5)[:, None]


def rectified_flow():
  return from_alpha_sigma(lambda t: 1.0 - t, lambda t: t)


def edm():
  return from_alpha_sigma(jnp.ones_like, lambda t: 80.0 * t**3)


PROCESSES = {'vp': GaussianProcess(schedules.Linear(6.0, -5.0)),
             'rectified flow': rectified_flow(), 'edm': edm()}


@pytest.mark.long
@pytest.mark.parametrize('name', PROCESSES)
def test_the_exact_map_is_met_to_ten_times_the_tolerance_and_cheaper_if_it_is_loose(name):
  process = PROCESSES[name]
  z = processes.prior_std(process) * UNIT

  @jax.jit
  def run(tolerance):
    return adaptive_ode(ORACLE, process, z, rtol=tolerance, atol=tolerance)

  exact = ORACLE.flow_map(z, process(jnp.ones(())), process(jnp.zeros(())))
  counts = []
  for tolerance in (1e-5, 1e-7, 1e-9):
    got = run(tolerance)
    assert np.abs(got.z - exact).max() < 10 * tolerance
    counts.append(int(got.evaluations))
  assert 10 < counts[0] < counts[1] < counts[2] < 1000


@pytest.mark.long
def test_run_upwards_it_encodes_and_down_again_it_returns_asking_nothing_at_sigma_zero():
  def denoise(z, level, cond=None):
    x, eps, _ = ORACLE(z, level)
    undefined = jnp.where(level.expand(z).sigma > 0.0, 0.0, jnp.nan)
    return Estimate(x + undefined, eps + undefined)

  x = jnp.asarray(0.7 + 0.4 * UNIT)
  run = jax.jit(lambda z, *ends: adaptive_ode(
      denoise, rectified_flow(), z, *ends, rtol=1e-8, atol=1e-8).z)
  up = run(x, 0.0, 1.0)
  np.testing.assert_allclose(up, UNIT, atol=1e-7)
  np.testing.assert_allclose(run(up, 1.0, 0.0), x, atol=1e-7)


@pytest.mark.long
@pytest.mark.parametrize('solver,name', [
    (diffrax.Dopri5(), 'edm'), (diffrax.Heun(), 'vp'), (diffrax.Bosh3(), 'vp')])
def test_the_number_of_evaluations_is_that_of_calls_for_the_batch(solver, name):
  process, calls = PROCESSES[name], []

  def denoise(z, level, cond=None):
    assert z.shape == (5, 1)
    jax.debug.callback(lambda _: calls.append(1), z)
    return ORACLE(z, level)

  z = processes.prior_std(process) * UNIT
  got = jax.jit(lambda: adaptive_ode(denoise, process, z, rtol=1e-3, atol=1e-3, solver=solver))()
  jax.effects_barrier()
  assert len(calls) == got.evaluations


@pytest.mark.long
def test_examples_have_steps_and_conditions_of_their_own():
  """Neither a neighbour nor its condition, which the denoiser closes over, changes an image."""
  process = PROCESSES['vp']

  @jax.jit
  def run(z, stds):
    denoise = lambda z, level: oracles.Gaussian(0.0, stds)(z, level)
    return adaptive_ode(denoise, process, z, rtol=1e-5, atol=1e-5)

  stds = jnp.array([[0.02], [0.3], [1.0], [5.0]])
  z = jnp.array([[0.5], [-1.0], [1.5], [-2.0]])
  together = run(z, stds)
  few = run(z[2:3], stds[2:3])
  np.testing.assert_allclose(together.z[2:3], few.z, rtol=1e-12)
  assert few.evaluations < together.evaluations
  exact = oracles.Gaussian(0.0, stds).flow_map(z, process(jnp.ones(())), process(jnp.zeros(())))
  np.testing.assert_allclose(together.z, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_float32_stays_float32():
  with jax.enable_x64(False):
    z = jnp.asarray(UNIT, jnp.float32)
    got = jax.jit(lambda: adaptive_ode(ORACLE, PROCESSES['vp'], z))()
  exact = ORACLE.flow_map(UNIT, *map(PROCESSES['vp'], (jnp.ones(()), jnp.zeros(()))))
  assert got.z.dtype == jnp.float32
  np.testing.assert_allclose(got.z, exact, atol=1e-4)


@pytest.mark.long
def test_bad_input_is_named():
  with pytest.raises(InputError, match="solver='Kvaerno3'"):
    adaptive_ode(ORACLE, PROCESSES['vp'], jnp.asarray(UNIT), solver=diffrax.Kvaerno3())
  with pytest.raises(InputError, match='max_steps=3: .*5 of 5 examples'):
    adaptive_ode(ORACLE, PROCESSES['vp'], jnp.asarray(UNIT), max_steps=3)
