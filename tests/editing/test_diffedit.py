"""DiffEdit on Gaussians: masks in closed form, and a recording of diffusers' pipeline."""
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import recordings
from vdm_jax import guidance, oracles, schedules
from vdm_jax.editing import diffedit
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess
from vdm_jax.samplers import ddim, encode, inpainting, sample
from vdm_jax.samplers.first_order import noisier_ddim

pytestmark = pytest.mark.usefixtures('x64')
PROCESS = GaussianProcess(schedules.Cosine(8.0, -6.0))
KEYS = jax.random.split(jax.random.key(0), 2)


def region(share, size=12):
  """The first rows of pixels: bool [size, size, 1]."""
  return np.broadcast_to(np.arange(size)[:, None, None] < round(share * size), (size, size, 1))


def differing(inside, source=0.5, target=-0.8, std=0.5):
  """Denoisers of two texts, which differ in the mean of the pixels inside; two channels."""
  wide = np.repeat(inside, 2, axis=-1)
  return [oracles.Gaussian(np.where(wide, mean, 0.2), std) for mean in (target, source)]


@pytest.mark.long
@pytest.mark.parametrize('w', [0.0, 3.0])
def test_the_difference_is_the_closed_form_for_every_noise(w):
  """sigma alpha |m_t - m_s| / (alpha^2 s^2 + sigma^2) inside, 0 outside; 1 + w times under
  guidance by one and the same null text."""
  inside, x = region(1 / 3), jnp.zeros((2, 12, 12, 2)) + 0.3
  null = oracles.Gaussian(0.0, 0.5)
  query, reference = (guidance.classifier_free(d, null, w) for d in differing(inside))
  t = 0.5
  got = diffedit.difference(query, reference, PROCESS, x, diffedit.noises(KEYS, x, 2), t)
  a, s = (float(u) for u in PROCESS(t)[2:4])
  want = (1.0 + w) * s * a * 1.3 / (0.25 * a**2 + s**2) * inside[..., 0]
  np.testing.assert_allclose(got, np.broadcast_to(want, got.shape), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('ratio,share,found', [
    (3.0, 1 / 12, True), (3.0, 7 / 12, True), (3.0, 8 / 12, False), (3.0, 9 / 12, False),
    (2.0, 9 / 12, True), (2.0, 1.0, False), (4.0, 5 / 12, True), (4.0, 6 / 12, False)])
def test_a_region_is_found_exactly_if_its_share_is_below_2_by_the_ratio(ratio, share, found):
  inside = region(share)
  maps = jnp.asarray(np.tile(np.where(inside[..., 0], 0.7, 0.0), (2, 1, 1)))
  if found:
    np.testing.assert_array_equal(diffedit.mask(maps, ratio), np.tile(inside, (2, 1, 1, 1)))
  else:
    problem = 'same estimate' if share == 1.0 else f'2 / ratio = {2 / ratio:.2g} or more'
    with pytest.raises(InputError, match=f'mask of image 0 is empty: .*{problem}'):
      diffedit.mask(maps, ratio)
    assert not jax.jit(lambda u: diffedit.mask(u, ratio))(maps).any()


def test_texts_with_the_same_estimates_have_an_empty_mask_that_says_so():
  with pytest.raises(InputError, match='both texts have the same estimate at all pixels; choose'):
    diffedit.mask(jnp.zeros((1, 4, 4)))
  with pytest.raises(InputError, match='ratio=0.0: it must be above 0'):
    diffedit.mask(jnp.ones((1, 4, 4)), 0.0)


@pytest.mark.long
def test_an_edit_moves_the_masked_pixels_to_the_query_and_keeps_the_others_exactly():
  """The flows of both Gaussians are affine: up with one mean, down with the other."""
  inside = region(1 / 3)
  query, reference = differing(inside)
  x = 0.3 * jax.random.normal(jax.random.key(1), (2, 12, 12, 2)) + 0.2
  strength = 0.8
  times = np.linspace(strength, 0.0, 201)
  got = jax.jit(lambda x: diffedit.edit(query, reference, PROCESS, KEYS, x, jnp.asarray(inside),
                                        times))(x)
  np.testing.assert_array_equal(np.where(inside, 0.0, got), np.where(inside, 0.0, x))
  # (z - alpha m) / S is constant along a flow, S^2 = alpha^2 s^2 + sigma^2.
  at, end = PROCESS(strength), PROCESS(0.0)
  ratio = np.sqrt((0.25 * at.alpha**2 + at.sigma**2) / (0.25 * end.alpha**2 + end.sigma**2))
  z = at.alpha * 0.5 + (x - end.alpha * 0.5) * ratio
  want = end.alpha * -0.8 + (z + at.alpha * 0.8) / ratio
  np.testing.assert_allclose(np.where(inside, got - want, 0.0), 0.0, atol=0.01)


# ------------------------------------------------------ diffusers' pipeline


@functools.cache
def case(name):
  data = {key.removeprefix(f'{name}/'): u
          for key, u in recordings.shared('diffedit_gaussian').items()
          if key.startswith(f'{name}/')}
  return data, json.loads(str(data['config']))


def last(u):
  return jnp.asarray(np.moveaxis(u, -3, -1))


def of_case(name):
  """(denoiser of the query, of the reference, of no text, process, time of a step, image)."""
  data, config = case(name)
  top, bottom, left, right = config['region']
  inside = np.zeros((config['size'],) * 2 + (1,), bool)
  inside[top:bottom, left:right] = True
  mean, std = last(data['in/mu0'])[0], last(data['in/s0'])[0]
  told = {kind: oracles.Gaussian(
      jnp.where(inside, config[kind][0], mean + config['leak'] * config[kind][0]),
      jnp.where(inside, config[kind][1], std)) for kind in ('target', 'source', 'null')}
  betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000)**2
  process = GaussianProcess(schedules.TableSchedule.from_betas(betas))
  guided = [guidance.classifier_free(told[kind], told['null'], config['guidance_scale'] - 1.0)
            for kind in ('target', 'source')]
  return *guided, told, process, lambda step: (np.asarray(step) + 1) / 1000, last(data['in/x'])


CASES = ['plain', 'guided', 'large_region', 'not_so_large_region']


@pytest.mark.long
@pytest.mark.parametrize('name', CASES)
def test_the_mask_is_that_of_diffusers(name):
  """Its noises are recorded.  It takes told for untold there, which changes the map by a factor
  only, and it takes one mean over the batch, where the images have the same region."""
  data, config = case(name)
  query, reference, _, process, time, x = of_case(name)
  noise = last(data['in/mask_noise'])
  noise = jnp.moveaxis(noise.reshape(len(x), config['num_maps'], *x.shape[1:]), 1, 0)
  maps = diffedit.difference(query, reference, process, x, noise, time(data['mask_timestep']))
  if not data['mask'].any():
    with pytest.raises(InputError, match='is empty'):
      diffedit.mask(maps, config['ratio'])
  else:
    np.testing.assert_array_equal(diffedit.mask(maps, config['ratio'])[..., 0], data['mask'])


@pytest.mark.long
@pytest.mark.parametrize('name', CASES)
def test_inversion_and_decoding_repeat_diffusers(name):
  """The inversion was told the source, without guidance.  diffusers blends with the latents of the
  level before, so its decoding is ours with a path that lags by one step."""
  data, config = case(name)
  query, _, told, process, time, x = of_case(name)
  steps = json.loads(str(data['invert_timesteps']))
  times = time([0, *steps])
  keys = jax.random.split(jax.random.key(0), len(x))
  up = noisier_ddim(told['source'], process)
  path = encode(up, keys, x, times, trace=up.value)[1][::-1]
  recorded = jnp.moveaxis(jnp.asarray(data['inverted']), 1, 0)
  np.testing.assert_allclose(path[:-1], last(recorded), rtol=1e-10, atol=1e-10)

  lagging = jnp.concatenate([path[:1], path[:-1]])
  where = jnp.asarray(data['mask'], bool)[..., None]
  got = sample(inpainting.blended(ddim(query, process), lagging, where), keys, path[0],
               times[::-1])
  np.testing.assert_allclose(got, last(data['edited']), rtol=1e-10, atol=1e-10)
  ours = diffedit.edit(query, told['source'], process, keys, x, where, times[::-1])
  outside = ~np.broadcast_to(where, x.shape)
  np.testing.assert_array_equal(ours[outside], x[outside])
  assert not outside.any() or np.abs(last(data['edited']) - x)[outside].max() > 1e-3
