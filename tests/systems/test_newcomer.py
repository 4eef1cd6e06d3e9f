"""A system that the library does not have is one file and one config, outside of the checkout.

The two files of tests/data/newcomer are blurring diffusion (Hoogeboom and Salimans 2022).
"""
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from vdm_jax import load, objectives, oracles, processes, random, runs, schedules, weightings
from vdm_jax.errors import InputError
from vdm_jax.runs import workdir
from vdm_jax.train import metrics

FILES = Path(__file__).parents[1] / 'data' / 'newcomer'
COSINE = processes.GaussianProcess(schedules.Cosine(6.0, -5.0))


@pytest.fixture(scope='module')
def blurring():
  return workdir.import_config(FILES / 'digits_blurring.py').blurring


@pytest.mark.long
def test_it_blurs_as_a_gaussian_filter_does(blurring):
  """SciPy convolves with a sampled Gaussian; an image goes on beyond its borders as its mirror."""
  images = np.random.default_rng(0).normal(size=(2, 12, 8, 1))
  process = blurring.Blurring(COSINE, (12, 8), blur_max=3.0, least=0.0)
  t = jnp.array([0.5, 1.0])
  for i, width in enumerate([1.5, 3.0]):  # 3 sin^2(pi t / 2)
    blurred = blurring.inverse(process.scales(t) * blurring.transform(images))[i, ..., 0]
    exact = ndimage.gaussian_filter(images[i, ..., 0], width, mode='reflect', truncate=8.0)
    np.testing.assert_allclose(blurred, exact, atol=1e-4)


@pytest.mark.long
def test_without_a_blur_its_loss_is_that_of_ddpm_draw_by_draw(blurring):
  std = 0.5  # the same in all directions, so that the best denoiser is the same in both coordinates
  x = std * random.normal(random.each(random.key(0), 64), jnp.zeros((64, 8, 8, 1)))
  t, keys = jnp.linspace(0.0, 1.0, 64), random.each(random.key(1), 64)
  process = blurring.Blurring(COSINE, (8, 8), blur_max=0.0)
  mine, _ = blurring.objective(oracles.Gaussian(0.0, std), process, blurring.transform(x), t, keys)
  ddpm, _ = objectives.weighted_diffusion(oracles.Gaussian(0.0, std), COSINE, x, t, keys,
                                          weight=weightings.simple)
  np.testing.assert_allclose(mine, ddpm, rtol=1e-4)


@pytest.mark.long
def test_its_loss_is_least_where_theory_says(blurring):
  """E|eps - E[eps | z]|^2 = sum v alpha^2 / (v alpha^2 + sigma^2), v the data's power."""
  n, t = 20_000, 0.4
  rows, columns = np.arange(6.0)[:, None, None], np.arange(4.0)[:, None]
  power = 1.0 / (1.0 + rows + columns)
  alpha, sigma = float(COSINE(t).alpha), float(COSINE(t).sigma)
  width = 2.0 * np.sin(0.5 * np.pi * t)**2
  squared = (np.pi * rows / 6)**2 + (np.pi * columns / 4)**2
  signal = power * (alpha * (0.999 * np.exp(-0.5 * squared * width**2) + 0.001))**2
  exact = np.sum(signal / (signal + sigma**2))

  process = blurring.Blurring(COSINE, (6, 4), blur_max=2.0)
  u = np.sqrt(power) * np.random.default_rng(0).normal(size=(n, 6, 4, 1))
  losses, _ = blurring.objective(oracles.Gaussian(0.0, np.sqrt(power)), process, jnp.asarray(u),
                                 jnp.full(n, t), random.each(random.key(0), n))
  assert abs(losses.mean() - exact) < 4.0 * losses.std() / np.sqrt(n)


@pytest.mark.long
def test_two_files_elsewhere_train_and_are_evaluated_sampled_and_loaded_without_them(tmp_path):
  files = tmp_path / 'files'
  shutil.copytree(FILES, files)
  config = workdir.import_config(files / 'digits_blurring.py').get_config()
  config.data.update(batch_size=16, validation=16, data_dir=str(tmp_path / 'data'))
  config.model.update(features=8, blocks=1, groups=2, dropout=0.0)
  config.train.update(steps=60, log_every=10, validate_every=60, checkpoint_every=60,
                      validation_repeats=1, splits=('validation',))
  config.optimizer.update(warmup_steps=5, decay_steps=0)
  config.ema = {'ema': 0.9}
  run = tmp_path / 'run'
  runs.train(config, files / 'digits_blurring.py', run)
  shutil.rmtree(files)
  losses = [r['loss'] for r in metrics.read(run) if r['kind'] == 'train']
  assert losses[-1] < 0.8 * losses[0]
  # An upper bound on an entropy of at least 0: it exceeds what a trained model reaches.
  assert runs.evaluate(run, times=4, examples=16, batch_size=64).rows[0]['bits_per_dim'] > 1.8
  runs.sample(run, tmp_path / 'a.npz', count=4)
  with np.load(tmp_path / 'a.npz') as drawn:
    images = drawn['images']
  model = load(run)
  again = model.sample(random.key(0), 4, sampler='ancestral', steps=250)
  assert images.shape == (4, 8, 8, 1) and len(np.unique(images)) > 2
  np.testing.assert_array_equal(images, again)  # of pixels, as of any model

  with pytest.raises(InputError, match='here every pixel has its own; choose one without a plan'):
    model.sample(random.key(0), 4, sampler='dpmpp_2m', steps=8)
  with pytest.raises(InputError, match='here every pixel has its own; choose one of times'):
    model.sample(random.key(0), 4, sampler='ddim', grid='logsnr')
