"""The statistics of latents, against closed forms, and their picture."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vdm_jax import data, random
from vdm_jax.runs import latents, pictures
from vdm_jax.systems.latent.autoencoder import Autoencoder

N = 4000
SPEC = data.Spec('gaussian', (data.fields.reals('image', (2, 3, 1)),))
CENTRE = np.float32([[-1.0, 0.0, 2.0], [0.5, -0.5, 1.0]])  # of x at each position
WIDTH = np.float32([[0.5, 1.0, 2.0], [1.0, 0.2, 0.8]])
GAIN, SHIFT, SPREAD = np.float32([1.5, -0.4]), np.float32([0.3, -2.0]), np.float32([0.1, 0.6])


class Part:
  """x ~ N(CENTRE, WIDTH^2) at each position, independent."""
  spec = SPEC

  def __init__(self):
    eps = np.random.default_rng(0).standard_normal((N, 2, 3), np.float32)
    self.x = (CENTRE + WIDTH * eps)[..., None]

  def __len__(self):
    return N

  def get(self, rows):
    return {'image': self.x[rows]}


def linear(params):
  """q(y | x) = N(GAIN x + SHIFT, SPREAD^2), a latent of two channels at each pixel."""
  def encode(x):
    mean = x * GAIN + SHIFT
    return mean, jnp.broadcast_to(jnp.log(SPREAD**2), mean.shape)
  return Autoencoder(encode, None, None, None, None, (2, 3, 1), (2, 3, 2))


@pytest.fixture(scope='module')
def drawn():
  return latents.draw(linear, {'none': np.zeros(1)}, Part(), random.key(3), count=N, at_once=1000)


def test_the_statistics_of_linear_latents_of_gaussian_data_are_the_closed_forms(drawn):
  found = latents.statistics(drawn)
  mean_at = GAIN * CENTRE[..., None] + SHIFT                      # [2, 3, 2]
  variance_at = (GAIN * WIDTH[..., None])**2 + SPREAD**2
  mean = mean_at.mean((0, 1))
  variance = variance_at.mean((0, 1)) + mean_at.var((0, 1))        # of the mixture over positions
  whole = variance.mean() + mean.var()
  s = 1.0 / np.sqrt(whole)
  assert found.images == N
  # The relative error of a standard deviation of N Gaussian numbers is 1 / sqrt(2 N).
  assert found.scale == pytest.approx(s, rel=4.0 / np.sqrt(2 * N))
  np.testing.assert_allclose(found.mean_at / found.scale, mean_at,
                             atol=5.0 * np.sqrt(variance_at.max() / N))
  np.testing.assert_allclose(found.std_at / found.scale, np.sqrt(variance_at),
                             rtol=5.0 / np.sqrt(2 * N))
  np.testing.assert_allclose(found.mean / found.scale, mean, atol=4.0 * np.sqrt(whole / N))
  np.testing.assert_allclose(found.std / found.scale, np.sqrt(variance), rtol=0.04)

  edges = found.edges[None, :, None, None] / found.scale
  centre, width = mean_at[..., :, None].reshape(6, 2).T, np.sqrt(variance_at).reshape(6, 2).T
  for c in range(2):
    cdf = stats.norm.cdf(edges[0, :, 0, 0][:, None], centre[c], width[c])  # [edges, positions]
    odds = np.diff(cdf, axis=0)
    expected, error = odds.mean(1), np.sqrt((odds * (1.0 - odds)).sum(1) / N) / 6
    area = found.density[c] * np.diff(found.edges)
    assert np.all(np.abs(area - expected) <= 5.0 * error + 1.5 / (6 * N))


def test_latents_of_the_prior_cover_its_density():
  """A linear encoder of N(0, 1) that keeps the variance, as probabilistic PCA does."""
  x = np.random.default_rng(1).standard_normal((20_000, 1, 1, 1))
  y = 0.8 * x + 0.6 * np.random.default_rng(2).standard_normal(x.shape)
  found = latents.statistics(y)
  odds = np.diff(stats.norm.cdf(found.edges))
  counts = found.density[0] * np.diff(found.edges) * len(y)
  many = odds * len(y) > 20
  chi = ((counts - odds * len(y))**2 / (odds * len(y)))[many].sum()
  assert stats.chi2.sf(chi, many.sum()) > 1e-4


@pytest.mark.long
def test_large_latents_are_drawn_for_fewer_images(monkeypatch):
  monkeypatch.setattr(latents, 'DRAWN', 12 * 7)
  few = latents.draw(linear, {'none': np.zeros(1)}, Part(), random.key(3), count=100, at_once=4)
  assert few.shape == (7, 2, 3, 2)
  keys = random.per_example(jax.random.fold_in(random.key(3), 0), jnp.arange(7))
  np.testing.assert_allclose(few, linear(None).draw(Part().x[:7], keys)[0], rtol=1e-5)


def test_as_many_entries_of_equal_share_have_the_perplexity():
  equal = latents.usage(np.repeat([[0, 2, 5]], 4, axis=0), 6)
  assert (equal.used, len(equal.share)) == (3, 6)
  assert equal.perplexity == pytest.approx(3.0)
  halves = latents.usage(np.array([1, 1, 1, 1, 0, 0, 2, 3]), 4)  # 1/2, 1/4, 1/8, 1/8: 1.75 bits
  assert halves.perplexity == pytest.approx(2.0**1.75)
  np.testing.assert_allclose(halves.share, [0.5, 0.25, 0.125, 0.125])


def test_the_picture_draws_these_numbers(drawn):
  found = latents.statistics(drawn)
  axes = latents.picture(found, 'gaussian, test').axes
  assert len(axes) == 3 * 2 + 2  # two bars of colours
  for c in range(2):
    heights, edges, _ = axes[c].patches[0].get_data()
    np.testing.assert_allclose(heights, found.density[c])
    at, normal = axes[c].lines[0].get_data()
    np.testing.assert_allclose(normal, stats.norm.pdf(at))
    assert edges[0] == at[0] == -edges[-1]
    assert axes[c].get_title().startswith(f'channel {c}\nmean {found.mean[c]:.2f}')
  for at, values in ((2, found.mean_at), (5, found.std_at)):
    for c in range(2):
      np.testing.assert_allclose(axes[at + c].images[0].get_array(), values[..., c])
  low, high = axes[2].images[0].get_clim()
  assert low == -high == pytest.approx(-np.abs(found.mean_at).max())  # white is 0
  assert axes[5].images[0].get_clim() == (0.0, found.std_at.max())


def test_a_codebook_has_a_panel_and_many_channels_are_cut():
  found = latents.statistics(np.random.default_rng(0).standard_normal((5, 20)))
  codebook = latents.usage(np.array([1, 1, 1, 1, 0, 0, 2, 3]), 16)
  figure = latents.picture(found, 'numbers', codebook)
  assert len(figure.axes) == 8 + 1  # vectors have no positions
  assert 'numbers: latents y (20) of 5 examples, the first 8 channels' in figure.get_suptitle()
  assert figure.axes[-1].get_title() == '4 of 16 entries occur; perplexity 3.4'
  assert figure.axes[-1].lines[0].get_ydata()[0] == 1 / 16


@pytest.mark.first(2)
@pytest.mark.parametrize('y', [np.zeros((1, 2, 2, 1)), np.ones((3, 2)), np.full((2, 4, 3), -2.0)])
def test_latents_that_are_one_or_equal_are_drawn(y, tmp_path):
  found = latents.statistics(y)
  assert found.scale == 1.0
  pictures.save_png(tmp_path / 'a.png', latents.picture(found, 'equal'))
