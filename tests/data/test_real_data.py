"""Real data through the commands: the density of Gaussian data is known in closed form."""
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import configs
from vdm_jax import data, runs
from vdm_jax.data import formulas
from vdm_jax.decoders import Reals
from vdm_jax.errors import InputError
from vdm_jax.runs import workdir
from vdm_jax.samplers import grids
from vdm_jax.samplers.catalogue import ANCESTRAL
from vdm_jax.typing import Level


def test_oscillations_are_bounded_and_start_at_the_cosine_of_a_uniform_phase():
  x = formulas.draw('oscillations', 4000, 0)
  assert x.shape == (4000, 32) and x.dtype == np.float32 and np.abs(x).max() <= 1.0
  # E cos = 0 and E cos^2 = 1/2, of variance 1/8.
  assert abs(x[:, 0].mean()) < 4 * (0.5 / 4000)**0.5
  assert abs(np.square(x[:, 0]).mean() - 0.5) < 4 * (0.125 / 4000)**0.5


def test_orbits_shrink_as_they_turn_and_are_oscillations_in_each_coordinate():
  x = formulas.draw('orbits', 500, 0)
  assert x.shape == (500, 32, 2) and x.dtype == np.float32
  np.testing.assert_array_equal(x[..., 0], formulas.draw('oscillations', 500, 0))
  radius = np.linalg.norm(x, axis=-1)
  np.testing.assert_allclose(radius[:, 0], 1.0, rtol=1e-6)
  # exp(-d k / 32) for one d in [0, 3) a sequence.
  rate = -np.log(radius[:, 1:]) * 32 / np.arange(1, 32)
  assert rate.min() >= -1e-4 and rate.max() < 3.001
  np.testing.assert_allclose(rate, np.broadcast_to(rate[:, -1:], rate.shape), atol=1e-4)


def test_the_density_of_scaled_data_counts_the_scale():
  """log p(y) = log N(x; z / alpha, sigma^2 / alpha^2) - log std, each dimension."""
  coding = Reals(2.0, 3.0)
  y = np.array([[1.0, 5.0], [2.0, -1.0]], np.float32)
  x = coding.encode(jnp.asarray(y))
  np.testing.assert_allclose(x, (y - 2.0) / 3.0, rtol=1e-6)
  np.testing.assert_allclose(coding.decode(x), y, rtol=1e-6)
  level = Level(*(jnp.float32(u) for u in (0.0, np.log(4.0), 0.8**0.5, 0.2**0.5, 0.0, 0.0, 0.0)))
  z = jnp.array([[0.3, 0.1], [-0.2, 0.5]])
  mean, std = 2.0 + 3.0 * np.asarray(z) / 0.8**0.5, 3.0 * 0.5
  exact = (-0.5 * ((y - mean) / std)**2 - np.log(std) - 0.5 * np.log(2 * np.pi)).sum(-1)
  np.testing.assert_allclose(coding.log_prob(jnp.asarray(y), z, level), exact, rtol=1e-5)


@pytest.mark.parametrize('axes', [1, 2, 3, 4])
def test_points_sequences_images_and_volumes_of_real_numbers_are_kept_as_they_are(axes, tmp_path):
  x = np.random.default_rng(0).normal(size=(12, *(3, 2, 4, 1)[:axes])).astype(np.float32)
  for name in ('x', 'image'):
    np.savez(tmp_path / 'x.npz', **{name: x})
    config = data.default_config()
    config.update(name=str(tmp_path / 'x.npz'), validation=1, batch_size=2)
    split = data.Data(config).split('test')
    assert split.spec.x == data.fields.reals(name, x.shape[1:])
    np.testing.assert_array_equal(split.get([0, 1])[name], x[[0, 6]])  # every sixth


@pytest.mark.parametrize('x, message', [
    (np.zeros((12, 2, 2, 2, 2, 2)), r'12, 2, 2, 2, 2, 2.*or volumes \[N, D, H, W, C\]'),
    (np.zeros((12, 2, 2, 2, 2), np.uint8), r'store \[N, H, W, C\], \[N, H, W\] or \[N, D\]\.?$')])
def test_data_of_too_many_axes_are_refused(x, message, tmp_path):
  np.save(tmp_path / 'x.npy', x)
  config = data.default_config()
  config.update(name=str(tmp_path / 'x.npy'))
  with pytest.raises(InputError, match=message):
    data.resolve(config)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  directory = tmp_path_factory.mktemp('motion') / 'run'
  file, (_, config) = configs.file('sequences/motion'), configs.read('sequences/motion')
  config.data.update(batch_size=16, validation=16)
  config.model.update(features=8, blocks=1)
  config.optimizer.decay_steps = 0
  config.ema = {'ema': 0.5}
  config.train.update(steps=4, log_every=2, validate_every=4, checkpoint_every=4,
                      pictures_every=4, validation_repeats=1)
  runs.train(config, file, directory)
  return directory


@pytest.mark.long
def test_a_run_of_real_data_is_trained_evaluated_and_sampled(run, tmp_path):
  ledger = runs.evaluate(run, examples=16, times=4, repeats=1, batch_size=64)
  assert ledger.dataset['levels'] is None and all(check['passed'] for check in ledger.checks)
  row = ledger.rows[0]
  # E -log N(x; z_0 / alpha_0, e^-logsnr), whose mean is known whatever the network.
  exact = 0.5 * (np.log(2.0 * np.pi * np.e) - row['logsnr_max']) / np.log(2.0)
  error = (0.5 / (16 * 4 * 64))**0.5 / np.log(2.0)
  assert abs(row['parts']['reconstruction'] - exact) < 4.0 * error
  runs.sample(run, tmp_path / 'a.npz', method=ANCESTRAL._replace(
      times=lambda process: grids.uniform(4)), count=3)
  runs.sample(run, tmp_path / 'a.png', method=ANCESTRAL._replace(
      times=lambda process: grids.uniform(4)), count=3, trace=tmp_path / 'b.png')
  with np.load(tmp_path / 'a.npz') as drawn:
    assert drawn['images'].shape == (3, 32, 2) and drawn['images'].dtype == np.float32


@pytest.mark.long
def test_what_needs_levels_is_refused_of_real_data(run):
  with pytest.raises(InputError, match='the data are real numbers'):
    runs.evaluate(run, estimates=['ode/uniform'], examples=4)
  spec = workdir.load_trained(run).experiment.data.spec
  with pytest.raises(InputError, match='real numbers, and this system needs integers'):
    data.fields.levels(spec, spec.x)
