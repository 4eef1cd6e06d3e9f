"""A row of the gallery, of a run whose network is exact."""
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import gallery, oracles, runs, schedules, workdir
from vdm_jax.data import Spec
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess
from vdm_jax.samplers import ddim, grids
from vdm_jax.typing import Experiment, Model

MEAN, STD, PIXELS = np.array([0.2, -0.1]), 0.25, Pixels(256)


class Points:
  """10,000 points of N(MEAN, STD^2), as integers."""

  def __init__(self, seed):
    x = MEAN + STD * np.random.default_rng(seed).standard_normal((10_000, 2))
    self.images = np.asarray(PIXELS.decode(jnp.asarray(x)))

  def __len__(self):
    return len(self.images)

  def get(self, rows):
    return {'image': self.images[rows]}


class Data:
  spec = Spec('made', (2,), 256, 0)

  def split(self, name):
    return Points({'train': 0, 'test': 1}[name])


@pytest.fixture
def run(monkeypatch):
  """Pretends that a directory holds it."""
  def exact(params, keys=None):
    return Model(
        denoise=oracles.Gaussian(jnp.asarray(MEAN, jnp.float32), STD),
        process=GaussianProcess(schedules.Linear(8.0, -6.0)), decoder=PIXELS.log_prob,
        encode=PIXELS.encode, decode=PIXELS.decode, cond=lambda batch: None, shape=(2,))

  experiment = Experiment(init=None, loss=None, model=exact, data=Data(), tx=None, ema={})
  monkeypatch.setattr(workdir, 'load_trained', lambda directory: workdir.Trained(
      experiment, None, {}, 0, 'ema'))
  return runs.Method('ddim', ddim, 'uniform', lambda process: grids.uniform(100))


def test_samples_of_an_exact_network_are_as_far_from_the_truth_as_the_data(run):
  row = gallery.row('exact', 'anywhere', run, count=1000)
  assert row.samples.shape == row.data.shape == (1000, 2)
  # Both distances are of independent draws: equal in the mean, and of one size.
  assert row.distance < 3.0 * row.floor
  distance, error = row.energy
  assert abs(distance) < 4.0 * error
  gallery.picture([row, row])


def test_the_field_points_the_way_that_sampling_goes(run):
  row = gallery.row('exact', 'anywhere', run, count=50)
  # On `vp` at log-SNR 2.5; in time, dlogsnr = -14: the flow of a Gaussian is known.
  alpha2 = 1.0 / (1.0 + np.exp(-2.5))
  sigma2 = 1.0 - alpha2
  z = row.grid  # of sqrt(alpha^2 + sigma^2) = 1
  slope = (STD**2 - 1.0) * alpha2 * sigma2 * -14.0 / 2.0 / (alpha2 * STD**2 + sigma2)
  alpha_rate = 0.5 * np.sqrt(alpha2) * sigma2 * -14.0
  velocity = alpha_rate * MEAN + slope * (z - np.sqrt(alpha2) * MEAN)
  np.testing.assert_allclose(row.field, -velocity, rtol=2e-3, atol=2e-3)
  # Noise is shown at the same log-SNR for all systems.
  for logsnr, cloud in zip(gallery.NOISY, row.noisy, strict=True):
    spread = np.sqrt(np.mean(np.var(cloud, axis=0)))
    alpha2 = 1.0 / (1.0 + np.exp(-logsnr))
    assert abs(spread - np.sqrt(alpha2 * STD**2 + 1.0 - alpha2)) < 0.2 * spread


def test_what_is_no_plane_is_refused(run, monkeypatch):
  trained = workdir.load_trained('anywhere')
  images = trained.experiment._replace(
      model=lambda params: trained.experiment.model(params)._replace(shape=(8, 8, 1)))
  monkeypatch.setattr(workdir, 'load_trained', lambda directory: trained._replace(
      experiment=images))
  with pytest.raises(InputError, match='a run of points in the plane'):
    gallery.row('images', 'anywhere', run)
