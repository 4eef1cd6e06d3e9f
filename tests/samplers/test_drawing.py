"""Drawing: the right distribution, and an image that depends on its seed and its number alone."""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vdm_jax import denoisers, oracles, processes, samplers, schedules, targets
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.machine import devices
from vdm_jax.processes import GaussianProcess
from vdm_jax.samplers import drawing
from vdm_jax.samplers.dpm_solver_adaptive import dpm_solver_adaptive
from vdm_jax.samplers.drawing import draw, draw_path
from vdm_jax.typing import Estimate, Model, Sampler

COUNTS = np.array([[5, 1, 0], [0, 4, 2], [3, 0, 1]])  # of 16: two pixels of three levels
PAIRS = np.repeat(np.argwhere(COUNTS), COUNTS[COUNTS > 0], axis=0).astype(np.uint8)
SAMPLERS = {'ancestral': samplers.ancestral, 'ddim': samplers.ddim, 'heun': samplers.heun}


def pairs_model(params):
  pixels = Pixels(3)
  return Model(denoise=oracles.Empirical(pixels.encode(jnp.asarray(PAIRS))),
               process=GaussianProcess(schedules.Linear(6.0, -6.0)), decoder=pixels.log_prob,
               encode=pixels.encode, decode=pixels.decode, cond=lambda batch: None, shape=(2,))


def nothing(numbers):
  return {}


def drawn(model, start, stop, *, sampler=samplers.ancestral, seed=0, steps=16, batch_size=8,
          cond=nothing):
  numbers, images, _ = zip(*draw(
      model, {}, sampler, times=np.linspace(1.0, 0.0, steps + 1), start=start, stop=stop, seed=seed,
      batch_size=batch_size, cond=cond), strict=True)
  np.testing.assert_array_equal(np.concatenate(numbers), np.arange(start, stop))
  return np.concatenate(images)


@pytest.mark.long
@pytest.mark.parametrize('sampler', SAMPLERS)
def test_samples_of_an_optimal_denoiser_have_the_frequencies_of_the_data(sampler):
  n = 4000
  images = drawn(pairs_model, 0, n, sampler=SAMPLERS[sampler], steps=400, batch_size=n, seed=1)
  assert images.dtype == np.int32 and images.shape == (n, 2)
  got = np.zeros((3, 3))
  np.add.at(got, tuple(images.T), 1)
  present = COUNTS > 0
  # Under a log-SNR of 6 the levels are 6 standard deviations from where they are told apart.
  assert got[~present].sum() <= n * 1e-3
  expected = COUNTS[present] / COUNTS.sum() * got[present].sum()
  assert stats.chisquare(got[present], expected).pvalue > 1e-3


@pytest.mark.long
def test_image_i_of_a_seed_is_the_same_for_any_count_batch_and_start():
  ten = drawn(pairs_model, 0, 10)
  np.testing.assert_array_equal(drawn(pairs_model, 0, 3), ten[:3])
  np.testing.assert_array_equal(drawn(pairs_model, 0, 10, batch_size=4), ten)
  np.testing.assert_array_equal(drawn(pairs_model, 5, 10, batch_size=4), ten[5:])
  # The same seed and number: other numbers, and other seeds, draw others.
  assert len(np.unique(ten, axis=0)) > 3
  assert np.any(drawn(pairs_model, 0, 10, seed=1) != ten)


@pytest.mark.long
@pytest.mark.parametrize('start,stop,batch_size,computed', [
    (0, 1, 64, [4]),  # on four devices
    (0, 5, 64, [8]), (0, 64, 64, [64]), (0, 65, 64, [64, 64]), (0, 10, 6, [8, 8]),
    (7, 8, 64, [8])])
def test_hardly_more_images_are_computed_than_are_asked_for(start, stop, batch_size, computed):
  sizes = []

  def cond(numbers):
    sizes.append(len(numbers))
    return {}

  drawn(pairs_model, start, stop, batch_size=batch_size, steps=2, cond=cond)
  assert sizes == computed


@pytest.mark.long
def test_one_device_and_four_draw_the_same_images(monkeypatch):
  four = drawn(pairs_model, 0, 10)
  one_device = jax.devices()[:1]
  monkeypatch.setattr(devices.jax, 'devices', lambda: one_device)
  monkeypatch.setattr(devices.jax, 'device_count', lambda: 1)
  drawing._program.cache_clear()  # a process does not change its devices; this test does
  np.testing.assert_array_equal(drawn(pairs_model, 0, 10, batch_size=3), four)
  drawing._program.cache_clear()


@pytest.mark.long
def test_what_is_asked_for_reaches_the_denoiser_image_by_image():
  """A denoiser that is sure of the level it is told: 0, 1, 2, 0, 1, ..."""
  def told(z, level, cond=None):
    level = level.expand(z)
    x = jnp.broadcast_to(Pixels(3).encode(cond)[:, None], z.shape)
    return Estimate(x, (z - level.alpha * x) / level.sigma)

  model = lambda params: pairs_model(params)._replace(denoise=told, cond=lambda b: b['label'])
  images = drawn(model, 2, 12, batch_size=4, cond=lambda numbers: {'label': numbers % 3})
  np.testing.assert_array_equal(images, np.repeat(np.arange(2, 12)[:, None] % 3, 2, axis=1))


def test_a_datum_is_read_off_z_0_in_the_units_of_x():
  """Where alpha_0 is far from 1: on the vp curve it is 0.855 at a log-SNR of 1."""
  top = jnp.full((2,), 0.97)  # the last of 32 levels; 0.855 of it is the last but two

  def sure(z, level, cond=None):
    return Estimate(jnp.broadcast_to(top, z.shape), jnp.zeros_like(z))

  pixels = Pixels(32)
  model = lambda params: pairs_model(params)._replace(
      denoise=sure, process=GaussianProcess(schedules.Linear(1.0, -6.0)), decode=pixels.decode)
  images = drawn(model, 0, 3, sampler=samplers.ddim)
  np.testing.assert_array_equal(images, np.full((3, 2), 31))


@pytest.mark.first(1)
@pytest.mark.parametrize('process', [
    processes.RectifiedFlow(), GaussianProcess(schedules.Linear(6.0, -6.0), processes.flow)],
    ids=['rectified flow', 'flow'])
def test_a_grid_that_ends_inside_is_decoded_in_the_units_of_its_end(process):
  """At t = 0.4 alpha is 0.6 and 0.65: not divided by it, level 31 would be 25 or less."""
  def sure(z, level, cond=None):
    return Estimate(jnp.full_like(z, 0.97), jnp.zeros_like(z))

  pixels = Pixels(32)
  model = lambda params: pairs_model(params)._replace(
      denoise=sure, process=process, decode=pixels.decode)
  [(_, images, _)] = draw(model, {}, samplers.ddim, times=np.linspace(1.0, 0.4, 5), start=0, stop=4,
                       seed=0, batch_size=4, cond=nothing)
  np.testing.assert_array_equal(images, np.full((4, 2), 31))


@pytest.mark.long
def test_the_evaluations_of_the_network_are_counted_also_where_they_vary():
  """Three calls in the first step and two in the second, as a state tells."""
  class State(NamedTuple):
    z: jax.Array
    evaluations: jax.Array

  def varying(denoise, process):
    def step(keys, state, t, s, _):
      return State(state.z, state.evaluations + jnp.where(t == 1.0, 3, 2))
    return Sampler(step, lambda z: State(z, jnp.zeros((), int)), lambda state: state.z,
                   evaluations=None)

  for sampler, expected in ((varying, 5), (samplers.heun, 4)):
    [batch] = draw(pairs_model, {}, sampler, times=np.linspace(1.0, 0.0, 3), start=0, stop=4,
                   seed=0, batch_size=4, cond=nothing)
    assert batch.evaluations == expected


@pytest.mark.long
def test_the_way_of_an_image_begins_with_noise_and_ends_with_the_image():
  times = np.linspace(1.0, 0.0, 17)
  path = draw_path(pairs_model, {}, samplers.ancestral, times=times, count=10, seed=0, cond=nothing,
                   frames=[0, 8, 16])
  assert path.shape == (3, 10, 2)
  np.testing.assert_array_equal(path[-1], drawn(pairs_model, 0, 10))
  # What starts as unit noise: the three levels meet at -1/3 and 1/3.
  many = draw_path(pairs_model, {}, samplers.ancestral, times=times, count=2000, seed=1,
                   cond=nothing, frames=[0])
  outer = 2.0 * stats.norm.sf(1 / 3)
  np.testing.assert_allclose(np.mean(many != 1), outer, atol=4 * (outer * (1 - outer) / 4000)**0.5)


@pytest.mark.long
def test_a_network_that_gives_nan_is_named_with_its_level_and_the_remedy():
  def broken(z, level, cond=None):
    nan = jnp.where(level.t < 0.5, jnp.nan, 0.0)
    return Estimate(z + nan, z)

  model = lambda params: pairs_model(params)._replace(denoise=broken)
  with pytest.raises(InputError, match=r't = 0\.4375, logsnr = 0\.75, .*checkpoint'):
    drawn(model, 0, 4, sampler=samplers.ddim)


@pytest.mark.long
def test_an_adaptive_sampler_of_a_network_that_gives_nan_draws_nothing():
  def broken(z, level, cond=None):
    return Estimate(z + jnp.where(level.t < 0.5, jnp.nan, 0.0), z)

  def adaptive(denoise, process):
    step = lambda keys, z, t, s, _: dpm_solver_adaptive(denoise, process, z, start=t, end=s).z
    return Sampler(step)

  model = lambda params: pairs_model(params)._replace(denoise=broken)
  with pytest.raises(InputError, match=r't = 1, .*checkpoint'):
    drawn(model, 0, 4, sampler=adaptive, steps=1)


@pytest.mark.long
def test_a_target_that_cannot_be_inverted_where_the_grid_begins_is_named_with_the_remedy():
  network = lambda z, logsnr, cond: 0.1 * z
  model = lambda params: pairs_model(params)._replace(
      denoise=denoisers.denoiser(network, targets.eps), process=processes.RectifiedFlow())
  with pytest.raises(InputError, match=r'from t = 1, logsnr = -inf, .* alpha = 0 .*score target'):
    drawn(model, 0, 4, sampler=samplers.ddim)


def test_a_grid_that_does_not_decrease_is_refused_before_anything_is_compiled():
  with pytest.raises(InputError, match='decrease'):
    next(draw(None, {}, samplers.ddim, times=np.array([0.0, 0.5, 1.0]), start=0, stop=4, seed=0,
              batch_size=4, cond=nothing))
