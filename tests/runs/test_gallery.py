"""A row of the gallery, of a run whose network is exact."""
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import oracles, runs, schedules
from vdm_jax.data import fields
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess, ve
from vdm_jax.runs import gallery, workdir
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
  spec = fields.of_images('made', (2,), 256)

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


@pytest.mark.long
def test_samples_of_an_exact_network_are_as_far_from_the_truth_as_the_data(run):
  row = gallery.row('exact', 'anywhere', run, count=1000)
  assert row.samples.shape == row.data.shape == (1000, 2)
  # Both distances are of independent draws: equal in the mean, and of one size.
  assert row.distance < 3.0 * row.floor
  distance, error = row.energy
  assert abs(distance) < 4.0 * error
  gallery.picture([row, row])


def test_a_picture_of_samples_has_a_panel_with_the_points_of_each_system():
  points = np.arange(14.0).reshape(7, 2)
  row = lambda i: gallery.GalleryRow(f'system {i}', points, [], points[:0], points[:0], points + i,
                                     0.1 * i, 0.05, (0.0, 0.0))
  figure = gallery.samples([row(i) for i in range(4)], across=3)
  shown = [place for place in figure.axes if place.get_title()]
  assert [place.get_title() for place in shown] == [f'system {i}' for i in range(4)]
  for i, place in enumerate(shown):
    np.testing.assert_array_equal(place.collections[0].get_offsets(), points + i)
    assert place.get_xlabel() == f'distance {0.1 * i:.3f} (data 0.050)'
  assert len(figure.axes) == 6  # two lines of three


@pytest.mark.long
def test_the_field_points_the_way_that_sampling_goes(run):
  row = gallery.row('exact', 'anywhere', run, count=1000)
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
    alpha2 = 1.0 / (1.0 + np.exp(-logsnr))
    assert_variance(cloud, alpha2 * STD**2 + 1.0 - alpha2)


def changed(monkeypatch, **parts):
  trained = workdir.load_trained('anywhere')
  experiment = trained.experiment._replace(
      model=lambda params, keys=None: trained.experiment.model(params)._replace(**parts))
  monkeypatch.setattr(workdir, 'load_trained',
                      lambda directory: trained._replace(experiment=experiment))


def assert_variance(cloud, exact):
  """Of n independent normal numbers the variance has the relative error sqrt(2 / n)."""
  assert abs(np.mean(np.var(cloud, axis=0)) / exact - 1.0) < 4.0 * np.sqrt(2.0 / cloud.size)


@pytest.mark.long
def test_a_network_that_is_off_is_as_far_as_its_mean_is(run, monkeypatch):
  """The sliced distance of a shift by d is |d| / sqrt(2): directions in the plane are even."""
  changed(monkeypatch, denoise=oracles.Gaussian(jnp.asarray(MEAN + [0.3, 0.0], jnp.float32), STD))
  row = gallery.row('off', 'anywhere', run, count=1000)
  assert abs(row.distance - 0.3 / 2**0.5) < 4.0 * STD * (2 / 1000)**0.5
  assert row.energy[0] > 4.0 * row.energy[1]


@pytest.mark.long
def test_on_ve_the_arrows_stand_where_the_noisy_data_are(run, monkeypatch):
  changed(monkeypatch, process=GaussianProcess(schedules.Linear(8.0, -6.0), ve))
  row = gallery.row('ve', 'anywhere', run, count=1000)
  variance = np.exp(-gallery.FIELD)
  z = (1.0 + variance)**0.5 * row.grid
  # dsigma / dt = 7 sigma, eps_hat = sigma (z - mean) / (s^2 + sigma^2)
  np.testing.assert_allclose(row.field, -7.0 * variance * (z - MEAN) / (STD**2 + variance),
                             rtol=2e-3, atol=2e-3)
  for logsnr, cloud in zip(gallery.NOISY, row.noisy, strict=True):
    assert_variance(cloud, (STD**2 + np.exp(-logsnr)) / (1.0 + np.exp(-logsnr)))


@pytest.mark.long
def test_a_student_of_few_steps_shows_its_samples_and_no_flow(run, monkeypatch):
  changed(monkeypatch, distilled=('ddim_to_x', 1))
  row = gallery.row('student', 'anywhere', run, count=100)
  assert row.samples.shape == (100, 2)
  assert row.noisy == [] and row.grid.shape == row.field.shape == (0, 2)


def test_what_is_no_plane_is_refused(run, monkeypatch):
  trained = workdir.load_trained('anywhere')
  images = trained.experiment._replace(
      model=lambda params: trained.experiment.model(params)._replace(shape=(8, 8, 1)))
  monkeypatch.setattr(workdir, 'load_trained', lambda directory: trained._replace(
      experiment=images))
  with pytest.raises(InputError, match=r'shape \(8, 8, 1\), and are not points in the plane'):
    gallery.row('images', 'anywhere', run)
