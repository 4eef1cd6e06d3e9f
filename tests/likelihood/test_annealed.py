"""Annealed importance sampling: log Z of energies whose normaliser is known, and their rows."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import oracles, schedules
from vdm_jax.decoders import Reals
from vdm_jax.errors import InputError
from vdm_jax.ledger import families, measuring, tables
from vdm_jax.ledger.family import Options, TrainingStatistics
from vdm_jax.likelihood import annealed
from vdm_jax.processes import GaussianProcess, ve, vp
from vdm_jax.systems.scores import energy
from vdm_jax.typing import Model
from vdm_jax.units import log_mean_exp

COVARIANCE, ENDS = np.array([[0.5, 0.2], [0.2, 0.3]]), (3.0, -6.0)
PROCESS = GaussianProcess(schedules.Linear(*ENDS))


def split(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


def gaussian(z, level, cond=None):
  """1/2 z^T (alpha^2 C + sigma^2)^-1 z + 3 t - 1: Gaussian data without its factor."""
  values, vectors = np.linalg.eigh(COVARIANCE)
  wide = level.expand(z)
  spread = wide.alpha**2 * values + wide.sigma**2
  return 0.5 * jnp.sum(jnp.square(z @ vectors) / spread, axis=1) + 3.0 * level.t - 1.0


def log_z():
  """At t = 0, in closed form."""
  signal = 1.0 / (1.0 + np.exp(-ENDS[0]))
  return 1.0 + 0.5 * np.linalg.slogdet(
      2 * np.pi * (signal * COVARIANCE + (1.0 - signal) * np.eye(2)))[1]


CODING = Reals(1.0, 2.0)  # the data are 2 x + 1
MODEL = Model(denoise=energy.denoiser(gaussian), process=PROCESS, decoder=CODING.log_prob,
              encode=CODING.encode, decode=CODING.decode, cond=lambda batch: None, shape=(2,))


class Points:
  """x ~ N(0, COVARIANCE), coded."""
  data = (1.0 + 2.0 * np.random.default_rng(0).multivariate_normal(
      np.zeros(2), COVARIANCE, 3000)).astype(np.float32)

  def __len__(self):
    return len(self.data)

  def get(self, rows):
    return {'image': self.data[rows]}


# --------------------------------------------------------------------- log Z


@pytest.mark.parametrize('at_once', [1000, 400])
def test_log_z_of_a_gaussian_energy_is_found_from_below(at_once):
  found = annealed.normaliser(MODEL, split(1000), 30, at_once=at_once, progress=False)
  assert found.error < 0.05
  np.testing.assert_allclose(found.log_z, log_z(), atol=4 * found.error)
  assert found.evaluations == 1000 * (1 + 4 * 30)


def test_the_log_weight_of_a_single_chain_is_below_log_z_on_average():
  log_w, _ = jax.jit(lambda: annealed.log_weights(
      MODEL.denoise, PROCESS, split(1000), jnp.zeros((1000, 2)), jnp.linspace(1.0, 0.0, 11)))()
  log_w = np.asarray(log_w, np.float64)
  assert log_w.mean() < log_z() - 4 * log_w.std() / 1000**0.5


@pytest.mark.long
@pytest.mark.parametrize('curve', [vp, ve])
def test_annealed_importance_sampling_finds_the_normaliser_and_the_weights_of_modes(curve):
  """exp(-E) = sum_k a_k exp(-|z - alpha m_k|^2 / (2 v_k)), v_k = alpha^2 s_k^2 + sigma^2, and at
  every level another factor, which must not count but at t = 0."""
  heights, means = np.array([3.0, 0.5]), np.array([[0.8, 0.2], [-0.7, -0.4]])
  stds = np.array([0.2, 0.3])

  def unnormalised(z, level, cond=None):
    wide = level.expand(z)
    v = wide.alpha**2 * stds**2 + wide.sigma**2
    far = jnp.sum(jnp.square(z[:, None] - wide.alpha[..., None] * means), axis=-1)
    return -jax.nn.logsumexp(-0.5 * far / v + jnp.log(heights), axis=-1) + 3.0 * level.t - 1.0

  process, n = GaussianProcess(schedules.Linear(6.0, -4.0), curve), 4000
  log_w, z = jax.jit(lambda: annealed.log_weights(
      energy.denoiser(unnormalised), process, split(n), jnp.zeros((n, 2)),
      jnp.linspace(1.0, 0.0, 31)))()
  first = jax.jit(process)(0.0)
  v = float(first.alpha)**2 * stds**2 + float(first.sigma)**2
  mass = heights * 2 * np.pi * v * np.exp(1.0)
  w = np.exp(np.asarray(log_w, np.float64) - np.log(mass.sum()))
  error = w.std() / n**0.5
  assert error < 0.05
  np.testing.assert_allclose(log_mean_exp(log_w), np.log(mass.sum()), atol=4 * error)
  right = np.asarray(z[:, 0] > 0.0)  # which the modes are far from
  share = w @ right / w.sum()
  error = np.sqrt(np.mean((w * (right - share))**2)) / w.mean() / n**0.5
  np.testing.assert_allclose(share, mass[0] / mass.sum(), atol=4 * error + 1e-3)


@pytest.mark.parametrize('spread', [0.0, 0.8])
def test_the_normaliser_of_weights_has_the_error_of_its_repetitions(spread):
  """Log-normal weights of mean e^2: 200 estimates from 400 chains scatter by the error of each."""
  draws = np.random.default_rng(0).normal(size=(200, 400))
  log_z, error = jax.jit(jax.vmap(annealed.log_normaliser))(
      jnp.array(2.0 + spread * draws - 0.5 * spread**2, jnp.float32))
  np.testing.assert_allclose(np.mean(log_z), 2.0, atol=4 * np.std(log_z) / 200**0.5 + 1e-5
                             + np.mean(np.square(error)))
  np.testing.assert_allclose(np.mean(error), np.std(log_z), rtol=0.25, atol=1e-5)
  expected = np.sqrt(np.expm1(spread**2) / 400)
  np.testing.assert_allclose(np.mean(error), expected, rtol=0.15, atol=1e-5)


# -------------------------------------------------------------------- the row


def measured(name='ais@500x40', of=MODEL, **options):
  about = {'dataset': {'examples': 3000, 'shape': [2], 'levels': None}, 'checkpoint': {}}
  return measuring.measure(
      families.parse([name])[-1], Options(**options), lambda params: of, {}, Points(), shape=(2,),
      levels=None, statistics=TrainingStatistics(), fields=about, progress=False)


@pytest.mark.parametrize('repeats', [1, pytest.param(2, marks=pytest.mark.long)])
def test_the_row_of_a_gaussian_energy_is_the_density_of_the_data(repeats):
  """With the SNR s of t = 0 and eigenvalues l, it is above it by the sum of 1/2 log(1 + 1 / (s l)).

  That is the divergence of q(z_0 | x) from the posterior, on average over the data.
  """
  of = measured(repeats=repeats)
  covariance = 4.0 * COVARIANCE
  x = np.float64(Points.data) - 1.0
  truth = 0.5 * (np.einsum('ni,ij,nj->n', x, np.linalg.inv(covariance), x)
                 + np.linalg.slogdet(2 * np.pi * covariance)[1])
  nats = 2 * np.log(2.0) * of.bits['total'].mean(axis=0)
  gap = 0.5 * np.sum(np.log1p(np.exp(-ENDS[0]) / np.linalg.eigvalsh(COVARIANCE)))
  error = np.hypot((nats - truth).std() / 3000**0.5, of.row['log_normaliser_error'])
  assert error < 0.05
  np.testing.assert_allclose((nats - truth).mean(), gap, atol=4 * error)
  np.testing.assert_allclose(of.row['log_normaliser'], log_z(),
                             atol=4 * of.row['log_normaliser_error'])
  np.testing.assert_allclose(sum(of.row['parts'].values()), of.row['bits_per_dim'], rtol=1e-5)
  each = 1 + 500 * (1 + 4 * 40) / 3000  # the chains of all repetitions are shared by all images
  np.testing.assert_allclose(of.row['evaluations_per_image'], repeats * each, rtol=1e-6)


@pytest.mark.long
def test_more_draws_of_the_noise_tighten_the_bound_by_the_divergence():
  one, many = (measured(importance=k).bits['total'][0] for k in (1, 20))
  more = one - many
  assert more.mean() > 4 * more.std() / 3000**0.5


def test_what_is_printed_says_on_which_side_the_likelihood_errs():
  of = measured()
  assert (of.row['kind'], of.row['model'], of.row['decoder']) == ('estimate', 'energy',
                                                                  'of the model')
  text = ' '.join(tables.explained([of.row]))
  assert 'a lower bound of log Z in expectation, and so an upper bound of the likelihood' in text
  error = of.row['log_normaliser_error']
  assert f'log Z is {of.row["log_normaliser"]:.3f} +- {error:.3f} nats.' in text
  assert f'share: {error:.4f} nats.' in text and 'trustworthy' not in text
  poor = tables.explained([{**of.row, 'log_normaliser_error': 0.5}])
  assert 'neither number is trustworthy' in poor[-1]


@pytest.mark.parametrize('change,problem', [
    ({'denoise': oracles.Gaussian(0.0, 1.0)}, 'not the gradient of an energy'),
    ({'cond': lambda batch: batch['image'][:, 0]}, 'each has a normaliser of its own'),
    ({'inner': MODEL}, 'one of latents')])
def test_a_model_without_an_energy_of_its_data_is_refused(change, problem):
  batch = Points().get(np.arange(1))
  with pytest.raises(InputError, match=problem):
    families.needs(families.parse(['ais@10x10']), Options(), MODEL._replace(**change), batch)
