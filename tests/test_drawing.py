"""Drawing: the right distribution, and an image that depends on its seed and its number alone."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vdm_jax import devices, oracles, samplers, schedules
from vdm_jax.decoders import Pixels
from vdm_jax.processes import GaussianProcess
from vdm_jax.samplers import drawing
from vdm_jax.samplers.drawing import draw
from vdm_jax.typing import Estimate, Model

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
  numbers, images = zip(*draw(model, {}, sampler, steps=steps, start=start, stop=stop, seed=seed,
                              batch_size=batch_size, cond=cond), strict=True)
  np.testing.assert_array_equal(np.concatenate(numbers), np.arange(start, stop))
  return np.concatenate(images)


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


def test_image_i_of_a_seed_is_the_same_for_any_count_batch_and_start():
  ten = drawn(pairs_model, 0, 10)
  np.testing.assert_array_equal(drawn(pairs_model, 0, 3), ten[:3])
  np.testing.assert_array_equal(drawn(pairs_model, 0, 10, batch_size=4), ten)
  np.testing.assert_array_equal(drawn(pairs_model, 5, 10, batch_size=4), ten[5:])
  # The same seed and number: other numbers, and other seeds, draw others.
  assert len(np.unique(ten, axis=0)) > 3
  assert np.any(drawn(pairs_model, 0, 10, seed=1) != ten)


def test_one_device_and_four_draw_the_same_images(monkeypatch):
  four = drawn(pairs_model, 0, 10)
  one_device = jax.devices()[:1]
  monkeypatch.setattr(devices.jax, 'devices', lambda: one_device)
  monkeypatch.setattr(devices.jax, 'device_count', lambda: 1)
  drawing._program.cache_clear()  # a process does not change its devices; this test does
  np.testing.assert_array_equal(drawn(pairs_model, 0, 10, batch_size=3), four)
  drawing._program.cache_clear()


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
