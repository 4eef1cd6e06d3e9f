"""Rounding is judged by what is left to know of the noise, the two parts by closed forms."""
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from vdm_jax import oracles, random
from vdm_jax.benchmark import precision
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess, diffuse
from vdm_jax.runs import workdir
from vdm_jax.schedules import Linear
from vdm_jax.train import step as step_lib
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.typing import Estimate, Model

CONFIG = """
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax import schedules
from vdm_jax.systems.variational import vdm


class Net(nn.Module):
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, z, logsnr, cond=None, keys=None):
    h = nn.Dense(64, dtype=self.dtype)(jnp.concatenate([z, logsnr[:, None] / 10], axis=-1))
    return z + nn.Dense(2, dtype=self.dtype)(nn.tanh(h)).astype(jnp.float32)


def get_config():
  config = vdm.default_config()
  config.data.update(name='swirl', shape=(2,), levels=256)
  return config


def build(config):
  return vdm.experiment(config, net=Net(jnp.dtype(config.model.dtype)),
                        schedule=schedules.Linear(13.3, -5.0))
"""

# E (eps - E[eps | rounded z, x])^2 on CIFAR-10 at these log-SNRs, as recorded with another program.
RECORDED = {13.3: 0.2445, 12.3: 0.1055, 11.3: 0.0444, 10.3: 0.0174, 8.3: 0.0025}
LEVELS = np.loadtxt(Path(__file__).parents[1] / 'data' / 'cifar10_test_levels.txt')
PIXELS = Pixels()


def share(levels):
  return levels.ravel() / levels.sum()


@functools.cache
def irreducible(logsnr):
  """E Var(eps | rounded z, x), by cells: all eps of a fine grid that round z alike."""
  eps = np.linspace(-7.0, 7.0, 10_001)
  mass = np.exp(-0.5 * eps**2)
  mass /= mass.sum()
  alpha, sigma = (np.sqrt(1.0 / (1.0 + np.exp(sign * logsnr))) for sign in (-1.0, 1.0))
  total = 0.0
  for level, p in enumerate(share(LEVELS)):
    z = (alpha * ((2 * level + 1) / 256 - 1) + sigma * eps).astype(np.float32)
    z = z.astype(ml_dtypes.bfloat16).astype(np.float32)
    cell = np.cumsum(np.concatenate([[False], z[1:] != z[:-1]]))
    one, first, second = (np.bincount(cell, mass * eps**k) for k in range(3))
    some = one > 0.0
    total += p * np.sum(second[some] - first[some]**2 / one[some])
  return total


class Images:
  """`n` images of 8 x 8 x 3 pixels that are independent draws of CIFAR-10's levels."""

  def __init__(self, n):
    rng = np.random.default_rng(0)
    self.images = rng.choice(256, (n, 8, 8, 3), p=share(LEVELS)).astype(np.uint8)

  def __len__(self):
    return len(self.images)

  def get(self, rows):
    return {'image': self.images[rows]}


class Normal:
  """`n` points of three dimensions, N(0, 1/4) each."""

  def __len__(self):
    return 500

  def get(self, rows):
    return {'image': 0.5 * np.random.default_rng(0).standard_normal((500, 3))[rows]}


def best(z, level, cond=None):
  """E[eps | z] of pixels that are independent draws of CIFAR-10's levels."""
  wide = level.expand(z)
  x = PIXELS.encode(jnp.arange(256))
  distance = (z[..., None] - wide.alpha[..., None] * x) / wide.sigma[..., None]
  posterior = jax.nn.softmax(jnp.log(share(LEVELS)) - 0.5 * jnp.square(distance))
  return Estimate(jnp.sum(posterior * x, -1), jnp.sum(posterior * distance, -1))


def measured(denoisers, split, encode=PIXELS.encode, decoder=PIXELS.log_prob, **options):
  """{name: row} of {name: Denoiser}."""
  def make(denoise):
    return lambda params: Model(
        denoise=denoise, process=GaussianProcess(Linear(13.3, -5.0)),
        decoder=decoder, encode=encode, decode=None, cond=lambda batch: None,
        shape=split.get([0])['image'].shape[1:])
  rows = precision.measure({name: make(denoise) for name, denoise in denoisers.items()}, {},
                           split, make(None)(None).shape, progress=False, **options)
  return {row['precision']: row for row in rows}


@pytest.mark.long
@pytest.mark.parametrize('logsnr', RECORDED)
def test_who_knows_the_data_and_the_rounded_z_is_left_with_the_recorded_error(logsnr):
  rng = np.random.default_rng(1)
  x = PIXELS.encode(jnp.asarray(rng.choice(256, (400, 1000), p=share(LEVELS))))
  eps = random.normal(random.per_example(jax.random.key(0), jnp.arange(400)), x)
  level = GaussianProcess(Linear(logsnr, -5.0))(jnp.zeros(400))
  estimate = precision.knowing(x)(diffuse(x, eps, level), level)
  error = np.square(np.asarray(eps - estimate.eps, np.float64))
  standard_error = error.std() / np.sqrt(error.size)
  assert abs(error.mean() - irreducible(logsnr)) < 4.0 * standard_error
  # The record is of four digits, and of other images, whose squares are larger by half a percent.
  np.testing.assert_allclose(error.mean(), RECORDED[logsnr], rtol=0.03)


@pytest.mark.long
def test_once_z_is_rounded_even_the_best_denoiser_is_a_fifth_of_a_bit_above_the_entropy():
  """The floor is 1/2 of the integral of the error above over the log-SNRs from 8 to 13.3."""
  nodes, weights = np.polynomial.legendre.leggauss(12)
  floor = sum(w * irreducible(10.65 + 2.65 * u) for u, w in zip(nodes, weights, strict=True))
  floor *= 2.65 / (2.0 * np.log(2.0))
  np.testing.assert_allclose(floor, 0.2074, rtol=0.03)  # as recorded
  rows = measured({'float32': best, 'naive': precision.naive(best)}, Images(150), times=8)

  found = rows[precision.FLOOR]
  assert found['bits_above_error'] < 0.02 * floor
  assert abs(found['bits_above'] - floor) < 4.0 * found['bits_above_error']
  assert found['bits'] is None
  # The bound of the best denoiser is the entropy, up to its end terms of 0.010 and 0.001 bits.
  entropy = -np.sum(share(LEVELS) * np.log2(share(LEVELS)))
  exact, naive = rows['float32'], rows['naive']
  assert abs(exact['bits'] - entropy) < 0.012 + 4.0 * exact['bits_error']
  assert naive['bits_above'] - floor > 10.0 * naive['bits_above_error']
  # The draws are the same: the difference is known better than either number.
  assert naive['bits_above_difference'] > 0.2
  assert naive['bits_difference_error'] < 0.2 * exact['bits_error']
  assert exact['bits_difference'] is None


@pytest.mark.long
def test_the_two_parts_are_those_of_the_bound_of_a_gaussian():
  """1/2 log((1 + s^2 e^b) / (1 + s^2 e^a)) from the log-SNR a to b, in nats for each dimension."""
  rows = measured({'exact': oracles.Gaussian(0.0, 0.5)}, Normal(), times=32, encode=lambda u: u,
                  decoder=lambda data, z, level: jnp.zeros(len(z)))
  row = rows['exact']
  part = 0.5 * np.log2((1.0 + 0.25 * np.exp(13.3)) / (1.0 + 0.25 * np.exp(8.0)))
  assert abs(row['bits_above'] - part) < 4.0 * row['bits_above_error'] < 0.03 * part
  # 5.956014634 nats, and the divergence of the latent, 6.3e-6.
  whole = 5.956020954 / np.log(2.0)
  assert abs(row['bits'] - whole) < 4.0 * row['bits_error'] < 0.03 * whole


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Of a network of random weights."""
  directory = tmp_path_factory.mktemp('run')
  file = directory / 'source.py'
  file.write_text(CONFIG)
  module = workdir.import_config(file)
  config = module.get_config()
  workdir.prepare(directory, config, file)
  experiment = module.build(config)
  params = experiment.init(jax.random.key(0))
  checkpoints = Checkpoints(directory)
  checkpoints.save(step_lib.init(params, experiment.tx, experiment.ema), 1.0)
  checkpoints.close()
  return directory


@pytest.mark.long
def test_a_trunk_in_bfloat16_differs_by_its_rounding_and_no_more(run):
  result = precision.compare(run, examples=100, times=8)
  single, trunk, naive, floor = result['precisions']
  assert [row['precision'] for row in result['precisions']] == [
      precision.FLOAT32, precision.TRUNK, precision.NAIVE, precision.FLOOR]
  # Eight bits of a number: relative errors of 2^-9, of which the sum over many is less.
  assert 0.0 < abs(trunk['bits_difference']) < 2**-8 * single['bits']
  assert trunk['bits_difference'] != naive['bits_difference']
  assert result['examples'] == 100 and floor['bits_above'] > 0.0


@pytest.mark.long
@pytest.mark.parametrize('options,message', [
    ({'times': 3}, '^times=3: .*give an even number'), ({'examples': 0}, '^examples=0: '),
    ({'repeats': 0}, '^repeats=0: '), ({'split': 'test', 'step': 7}, '^step=7: ')])
def test_what_cannot_be_compared_is_refused_by_its_flag(run, options, message):
  with pytest.raises(InputError, match=message):
    precision.compare(run, **options)
