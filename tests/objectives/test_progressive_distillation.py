"""Progressive distillation: what students of closed-form teachers must be, and a recording."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import distillation, recordings
from vdm_jax import guidance, oracles, random, samplers, schedules, weightings
from vdm_jax.errors import InputError
from vdm_jax.objectives import guided, progressive
from vdm_jax.processes import GaussianProcess, from_alpha_sigma
from vdm_jax.samplers.first_order import ddim_to_x
from vdm_jax.typing import Estimate

pytestmark = pytest.mark.usefixtures('x64')

PROCESS = GaussianProcess(schedules.Cosine(20.0, -20.0))
ANGLE = from_alpha_sigma(lambda t: jnp.cos(0.5 * jnp.pi * t), lambda t: jnp.sin(0.5 * jnp.pi * t))
TOLD, UNTOLD = oracles.Gaussian(1.0, 0.5), oracles.Gaussian(0.0, 1.2)
# DDIM of 8 steps, ending in x_hat, on N(0, 1/4): closed forms.
GAIN = 0.41137335422589905
STUDENTS = {4: [0.7367860592, 0.3412616034, 0.1410603597, 0.0256047390],
            2: [0.5348367479, 0.0877560476], 1: [GAIN]}
UNDISTILLED = {4: 0.333438, 2: 0.200002, 1: 1.1e-5}


def affine(gains, shifts):
  """The denoiser x_hat = gains[i] z + shifts[i] at t = i / N, i = 1 ... N."""
  def denoise(z, level, cond=None):
    i = jnp.round(level.t * len(gains)).astype(int) - 1
    x = level._replace(alpha=gains[i]).expand(z).alpha * z
    x += level._replace(alpha=shifts[i]).expand(z).alpha
    wide = level.expand(z)
    return Estimate(x, (z - wide.alpha * x) / wide.sigma)
  return denoise


def student(teacher, steps, process=PROCESS, **options):
  """The gains and shifts [N] of the target of a student of N steps, of an affine teacher."""
  grid = jnp.arange(1.0, steps + 1.0)
  at = lambda z: progressive.target(teacher, process, jnp.full((steps, 1), z), grid, steps,
                                    **options)[:, 0]
  return at(1.0) - at(0.0), at(0.0)


def end(denoise, steps, z, process=PROCESS, make=ddim_to_x):
  """Where the sampler of so many steps takes z, in units of x."""
  keys = jax.random.split(jax.random.key(0), len(z))
  out = samplers.sample(make(denoise, process), keys, z, jnp.linspace(1.0, 0.0, steps + 1))
  return out / process(0.0).alpha


def distilled(teacher, process=PROCESS, **options):
  """{N: the student} for N = 4, 2, 1, each of the one before; the first of 8 steps of `teacher`."""
  out = {}
  for steps in (4, 2, 1):
    teacher = affine(*student(teacher, steps, process, **options))
    out[steps] = teacher
  return out


@pytest.mark.long
def test_every_student_makes_the_map_of_the_teacher_s_eight_steps():
  teacher, z = oracles.Gaussian(0.0, 0.5), jnp.array([[1.0], [-0.3]])
  np.testing.assert_allclose(end(teacher, 8, z), GAIN * z, rtol=1e-12)
  for steps, net in distilled(teacher).items():
    np.testing.assert_allclose(end(net, steps, z), GAIN * z, rtol=1e-10)
    np.testing.assert_allclose(end(teacher, steps, z), UNDISTILLED[steps] * z, atol=1e-6)
    assert abs(GAIN - UNDISTILLED[steps]) > 0.05


@pytest.mark.long
def test_the_gains_of_the_students_are_those_of_the_closed_form():
  teacher = oracles.Gaussian(0.0, 0.5)
  for steps, gains in STUDENTS.items():
    got, shift = student(teacher, steps)
    np.testing.assert_allclose(got, gains, atol=6e-11)
    np.testing.assert_allclose(shift, 0.0, atol=1e-12)
    teacher = affine(got, shift)


@pytest.mark.long
def test_the_end_in_x_hat_is_the_formula_itself_where_sigma_vanishes():
  teacher, z = oracles.Gaussian(0.3, 0.5), jnp.array([[0.7]])
  own = student(teacher, 4, ANGLE)
  for part, other in zip(own, student(teacher, 4, ANGLE, ends_in_x=False), strict=True):
    np.testing.assert_array_equal(part, other)
  np.testing.assert_allclose(end(teacher, 4, z, ANGLE), end(teacher, 4, z, ANGLE, samplers.ddim),
                             rtol=1e-14)
  # Where some noise is left it is another target: 1e-5 for a log-SNR of 20.
  apart = np.abs(np.array(student(teacher, 4)) - np.array(student(teacher, 4, ends_in_x=False)))
  assert 1e-6 < apart[:, 0].max() < 1e-4
  assert not apart[:, 1:].any()


@pytest.mark.long
def test_without_the_end_in_x_hat_students_keep_the_map_of_plain_ddim():
  process = GaussianProcess(schedules.Cosine(6.0, -6.0))
  teacher, z = oracles.Gaussian(0.3, 0.5), jnp.array([[0.7], [-1.0]])
  wanted = end(teacher, 8, z, process, samplers.ddim)
  for steps, net in distilled(teacher, process, ends_in_x=False).items():
    np.testing.assert_allclose(end(net, steps, z, process, samplers.ddim), wanted, rtol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize('w,gain,shift', [(0.0, .411373354, .999981324),
                                          (1.0, .140676128, 1.275171082),
                                          (4.0, .000526946, 1.234533651)])
def test_a_guided_teacher_s_map_is_kept_by_its_students(w, gain, shift):
  teacher, z = guidance.classifier_free(TOLD, UNTOLD, w), jnp.array([[0.0], [1.0]])
  for denoise, steps in [(teacher, 8), *((net, n) for n, net in distilled(teacher).items())]:
    got = end(denoise, steps, z)[:, 0]
    np.testing.assert_allclose([got[1] - got[0], got[0]], [gain, shift], atol=2e-9)


@pytest.mark.long
def test_the_loss_of_the_first_guided_stage_vanishes_at_the_guided_estimate_alone():
  """Its minimum in an affine student, one for each w, is the guided estimate of the teachers."""
  keys = random.per_example(jax.random.key(0), jnp.arange(64))
  w = guided.draw_weights(keys, 0.0, 4.0)
  assert 0.0 <= w.min() < 0.5 and 3.5 < w.max() <= 4.0
  x, t = jnp.ones((64, 1)), jnp.linspace(0.1, 1.0, 64)
  teacher = guidance.classifier_free(TOLD, UNTOLD, w[:, None])

  @jax.jit
  def at(gain, shift):
    """A student told w, at w = `w`: the estimates of the two teachers, weighed otherwise."""
    own = guidance.classifier_free(TOLD, UNTOLD, (gain * w + shift)[:, None])
    return guided.objective(own, PROCESS, x, t, keys, teacher=teacher)[0].sum()

  np.testing.assert_allclose(at(1.0, 0.0), 0.0, atol=1e-20)
  slope = jax.grad(at, (0, 1))(0.9, 0.1)
  assert at(0.9, 0.1) > 0.0 and abs(slope[0]) > 0.0 and abs(slope[1]) > 0.0


# ------------------------------------------------------------------ recordings

WEIGHTS = {'constant': 'constant', 'snr': 'snr', 'truncated_snr': 'snr_trunc',
           'snr_plus_one': 'v_mse'}


def test_the_schedule_is_that_of_the_public_code():
  arrays = recordings.shared('progressive_distillation')
  high, low = arrays['ends']
  np.testing.assert_allclose(schedules.Cosine(high, low)(arrays['schedule/u']),
                             arrays['schedule/logsnr'], atol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize('data', distillation.DATA)
def test_targets_and_losses_agree_with_the_public_code(data):
  arrays = recordings.shared('progressive_distillation')
  teacher, x = distillation.teacher(arrays, data), arrays[f'{data}/x']
  keys = jax.random.split(jax.random.key(0), len(x))

  def denoise(z, level, cond=None):
    return teacher(z, level)._replace(x=0.9 * teacher(z, level).x + 0.05)

  @jax.jit
  def both(grid, steps, z, eps):
    """The target, and the losses by weight as means over the data."""
    losses = {name: progressive.objective(
        denoise, PROCESS, x, grid / steps, keys, teacher=teacher, steps=steps, eps=eps,
        weight=weightings.OF_X[name])[0] / x.shape[1] for name in WEIGHTS}
    return progressive.target(teacher, PROCESS, z, grid, steps), losses

  for path in sorted({key.removesuffix('/x_target') for key in arrays
                      if key.startswith(f'{data}/n') and key.endswith('/x_target')}):
    run = {key.removeprefix(f'{path}/'): u for key, u in arrays.items() if key.startswith(path)}
    steps = int(path.rpartition('n')[2])
    grid = jnp.asarray(run['i'] + 1.0)
    wanted, losses = both(grid, float(steps), run['z'], run['eps'])
    np.testing.assert_allclose(wanted, run['x_target'], rtol=1e-9, atol=1e-10)
    for name, theirs in WEIGHTS.items():
      for kind in ('x', 'v'):
        np.testing.assert_allclose(losses[name], run[f'{kind}/loss_{theirs}'], rtol=1e-8,
                                   atol=1e-14)


@pytest.mark.long
@pytest.mark.parametrize('data', distillation.DATA)
def test_the_sampler_that_ends_in_x_hat_agrees_with_the_public_code(data):
  arrays = recordings.shared('progressive_distillation')
  teacher, z = distillation.teacher(arrays, data), jnp.asarray(arrays[f'{data}/z_1'])
  counts = sorted(int(key.rpartition('n')[2]) for key in arrays
                  if key.startswith(f'{data}/ddim/n') and not key.endswith('clipped'))
  # One program for all: a grid may be padded.
  grids = jnp.stack([jnp.pad(jnp.linspace(1.0, 0.0, n + 1), (0, max(counts) - n)) for n in counts])
  keys = jax.random.split(jax.random.key(0), len(z))
  for denoise, name in ((teacher, ''), (guidance.clip(teacher), '/clipped')):
    run = lambda times, denoise=denoise: samplers.sample(ddim_to_x(denoise, PROCESS), keys, z,
                                                         times)
    for n, got in zip(counts, jax.jit(lambda g, run=run: jax.lax.map(run, g))(grids), strict=True):
      # The public sampler gives x_hat itself, ours alpha_0 x_hat.
      np.testing.assert_allclose(got / PROCESS(0.0).alpha, arrays[f'{data}/ddim/n{n}{name}'],
                                 rtol=1e-9, atol=1e-9)


# --------------------------------------------------------------------- halving


def test_the_halving_is_that_of_the_public_code():
  arrays = recordings.shared('consistency')
  for key in (key for key in arrays if key.startswith('schedule/fixed_progdist')):
    first = int(key.split('_')[3])
    table = progressive.phases(first, 1, 50_000, few=2)
    updates = arrays[key][:, 0].astype(int)
    got = jax.vmap(lambda k, table=table: progressive.steps_at(k, *table))(updates)
    np.testing.assert_array_equal(got, arrays[key][:, 2])


def test_a_phase_lasts_as_long_as_it_is_told_and_the_last_one_goes_on():
  table = progressive.phases(8, 2, 10)
  got = [int(progressive.steps_at(jnp.asarray(k), *table)) for k in (0, 9, 10, 19, 20, 29, 30, 99)]
  assert got == [8, 8, 4, 4, 2, 2, 2, 2]


@pytest.mark.parametrize('given,message', [
    ((12, 1, 10), 'first=12: the steps of a student are halved'),
    ((8, 3, 10), 'last=3: the steps of a student'), ((0, 0, 10), 'first=0: '),
    ((4, 8, 10), 'last=8: the steps are halved from first=4'),
    ((4, 1, 0), 'length=0: a phase needs an update')])
def test_phases_that_cannot_be_are_refused(given, message):
  with pytest.raises(InputError) as error:
    progressive.phases(*given)
  assert message in str(error.value) and '\n' not in str(error.value)
