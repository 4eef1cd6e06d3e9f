"""Knowledge distillation: the end points of a teacher's path, and a student that goes there."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import distillation, recordings
from vdm_jax import denoisers, inputs, oracles, samplers, schedules, targets
from vdm_jax.errors import InputError
from vdm_jax.objectives import knowledge
from vdm_jax.processes import GaussianProcess, RectifiedFlow
from vdm_jax.samplers import grids

pytestmark = pytest.mark.usefixtures('x64')

TABLE = schedules.TableSchedule.from_betas(schedules.linear_betas())
CHAIN = GaussianProcess(TABLE)
STEPS = {'quad100': grids.ddim_quadratic(100, 1000), 'uniform50': grids.ddim_linear(50, 1000),
         'uniform10': grids.ddim_linear(10, 1000)}
GAINS = {'quad100': .4926956, 'uniform50': .4724391}  # of N(0, 1/4), from the first step's z


def ends(teacher, z, indices):
  """Where DDIM takes z from the noisiest of these steps of the chain: its start has that level."""
  times = jnp.asarray(grids.on_table(indices, 1000))
  return samplers.sample(samplers.ddim(teacher, CHAIN), jax.random.split(jax.random.key(0), len(z)),
                         z, times)


@pytest.mark.parametrize('name', GAINS)
def test_the_end_point_of_a_gaussian_teacher_is_its_closed_form(name):
  z = jnp.array([[1.0], [-2.0]])
  np.testing.assert_allclose(ends(oracles.Gaussian(0.0, 0.5), z, STEPS[name]), GAINS[name] * z,
                             atol=1e-7)


@pytest.mark.long
def test_end_points_agree_with_the_public_code():
  arrays = recordings.shared('knowledge_distillation')
  np.testing.assert_allclose(jnp.square(CHAIN(jnp.arange(1, 1001) / 1000).alpha),
                             arrays['alpha_bar'], rtol=1e-9)
  for data in distillation.DATA:
    teacher = distillation.teacher(arrays, data)
    for name in (key.removeprefix('steps/') for key in arrays if key.startswith('steps/')):
      steps = np.unique(arrays[f'steps/{name}'])  # a step that stands still is none
      if name in STEPS:
        np.testing.assert_array_equal(STEPS[name], steps)
      np.testing.assert_allclose(ends(teacher, jnp.asarray(arrays['z']), steps),
                                 arrays[f'{data}/{name}'], rtol=1e-9, atol=1e-10)


@pytest.mark.long
def test_a_student_with_its_teacher_s_weights_is_z_less_the_noise_as_in_the_public_code():
  arrays = recordings.shared('knowledge_distillation')
  seen = []

  def denoise(data):
    def net(z, step, cond):
      seen.append(step)
      return distillation.teacher(arrays, data)(z, CHAIN(1.0)).eps
    return denoisers.denoiser(net, targets.removed(), inputs.chain(TABLE))

  for data in distillation.DATA:
    got = denoise(data)(arrays['z'], CHAIN(1.0)).x
    np.testing.assert_allclose(got, arrays[f'{data}/student_at_init'], rtol=1e-9, atol=1e-12)
  np.testing.assert_array_equal(seen[0], 999.0)


def test_the_removed_noise_is_the_flow_where_nothing_of_the_data_is_left():
  level = RectifiedFlow()(1.0)
  for part, other in zip(targets.removed()(level), targets.flow(level), strict=True):
    np.testing.assert_array_equal(part, other)


@pytest.mark.long
def test_a_student_comes_to_the_end_points_by_least_squares():
  """The minimum over linear students is the teacher's own map, which is linear; l1 agrees."""
  z = jax.random.normal(jax.random.key(0), (64, 2))
  x = GAINS['quad100'] * z
  keys = jax.random.split(jax.random.key(1), 64)

  def loss(gain, norm='l2'):
    student = lambda z, level, cond=None: oracles.Estimate(gain * z, z)
    return knowledge.objective(student, CHAIN, x, jnp.zeros(64), keys, z_1=z, norm=norm)[0].mean()

  slope, curvature = jax.grad(loss)(0.0), jax.hessian(loss)(0.0)
  np.testing.assert_allclose(-slope / curvature, GAINS['quad100'], rtol=1e-12)
  np.testing.assert_allclose(loss(0.0, 'l1'), jnp.abs(x).sum(1).mean(), rtol=1e-12)
  np.testing.assert_allclose(loss(0.0), jnp.square(x).sum(1).mean(), rtol=1e-12)
  assert loss(GAINS['quad100'], 'l1') < 1e-12
  with pytest.raises(InputError, match="norm='l3': there is no such choice"):
    loss(0.0, 'l3')
