"""Bounds on samplers, term by term: published tables, closed forms, and two ways to one number."""
import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import convergence, laws, oracles, processes, schedules
from vdm_jax.errors import InputError
from vdm_jax.samplers import ancestral, ddim, edm, euler, heun

NORMAL = oracles.Gaussian(np.ones(4), np.full(4, 0.5))
MIXTURE = oracles.Mixture(np.array([0.8, 0.2]), np.array([[-1.0], [1.5]]), np.array([0.3, 0.3]))
LONGEST = 10.0


@pytest.fixture(autouse=True)
def float64(x64):
  """Closed forms deserve it."""


def grid(horizon, steps):
  """Steps of equal length from h = horizon to 0, in the time of the longest process."""
  return np.linspace(horizon / LONGEST, 0.0, steps + 1)


def measured(truth, runs, error=0.0, make=euler.exponential_sde):
  """The results for runs of (horizon, steps), with an error of the score along the first axis."""
  process = convergence.ornstein_uhlenbeck(LONGEST)
  shape = np.shape(truth.mean if isinstance(truth, oracles.Gaussian) else truth.means[0])
  first = np.zeros(shape)
  first[0] = error
  denoise = convergence.with_score_error(truth, first) if error else None
  return convergence.compare(truth, make, process, [grid(*run) for run in runs], denoise=denoise)


# T, N, eps: initial, discretisation, score, exact KL; from the mathematics alone, in float64.
OF_NORMAL = {
    (1, 1000, 0.0): (.281728, .0123167, 0.0, .0112812),
    (2, 1000, 0.0): (.0368217, .033364, 0.0, .000234136),
    (3, 1000, 0.0): (.00496096, .0621255, 0.0, .000147134),
    (5, 10, 0.0): (9.0801e-5, 10.6583, 0.0, 2.18252),
    (5, 30, 0.0): (9.0801e-5, 4.26541, 0.0, .393681),
    (5, 100, 0.0): (9.0801e-5, 1.38633, 0.0, .0400408),
    (5, 1000, 0.0): (9.0801e-5, .143324, 0.0, .000400758),
    (5, 1000, 0.1): (9.0801e-5, .143324, .05, .0117048),
    (5, 1000, 0.3): (9.0801e-5, .143324, .45, .102157),
    (10, 1000, 0.3): (4.1223e-9, .484914, .9, .102836)}


@pytest.mark.long
@pytest.mark.parametrize('error', [0.0, 0.1, 0.3])
def test_the_terms_and_the_divergence_of_normal_data_are_those_of_the_table(error):
  cases = [case for case in OF_NORMAL if case[2] == error]
  for case, result in zip(cases, measured(NORMAL, [case[:2] for case in cases], error),
                          strict=True):
    terms = convergence.by_girsanov(result.walk)
    np.testing.assert_allclose((*terms[:3], result.kl), OF_NORMAL[case], rtol=1e-5, atol=1e-12)
    assert abs(terms.cross) < 1e-12


# T, N, eps: the sum of the terms, KL, TV, the share of the right mode; by quadrature, three digits.
OF_MIXTURE = {(2, 100, 0.0): (.148, .0147, .0589, .206), (5, 100, 0.0): (.480, .0777, .145, .207),
              (5, 200, 0.0): (.253, .0223, .0734, .203), (5, 100, 0.3): (.930, .227, .295, .430)}


@pytest.mark.long
@pytest.mark.parametrize('error', [0.0, 0.3])
def test_the_bound_and_the_distances_of_a_mixture_are_those_of_the_table(error):
  cases = [case for case in OF_MIXTURE if case[2] == error]
  for case, result in zip(cases, measured(MIXTURE, [case[:2] for case in cases], error),
                          strict=True):
    got = convergence.by_girsanov(result.walk).bound, result.kl, result.tv, result.shares[1]
    want = OF_MIXTURE[case]
    last = [10.0**math.floor(math.log10(u)) / 100 for u in want]  # the third digit
    assert (np.abs(np.subtract(got, want)) < 0.6 * np.array(last)).all(), (case, got)
    assert result.kl <= convergence.by_steps(result.walk).bound
    assert convergence.by_steps(result.walk).bound <= got[0]
    assert result.tv <= convergence.tv_bound(result.kl) and sum(result.shares) > 0.9999


@pytest.mark.long
@pytest.mark.parametrize('curve', [processes.vp, processes.ve])
def test_the_discretisation_of_ancestral_is_the_bound_of_t_steps_less_that_of_continuous_time(
    curve):
  """Kingma et al. (2021), eq. 13 and 17, whose expectations are known for normal data."""
  process = processes.GaussianProcess(schedules.Linear(4.0, -5.0), curve)
  times = np.array([1.0, 0.7, 0.45, 0.3, 0.1, 0.0])
  std, d = 0.5, 3
  [result] = convergence.compare(oracles.Gaussian(0.2, std), ancestral, process, [times],
                                 shape=(d,))
  snr = np.exp(4.0 - 9.0 * times)
  chain = 0.5 * d * np.sum(np.diff(snr) * std**2 / (1.0 + std**2 * snr[:-1]))
  continuous = 0.5 * d * np.log((1.0 + std**2 * snr[-1]) / (1.0 + std**2 * snr[0]))
  terms = convergence.by_steps(result.walk)
  np.testing.assert_allclose(terms.discretisation, chain - continuous, rtol=1e-10)
  assert terms.score == terms.cross == 0.0 and 0.0 < result.kl < terms.bound


@pytest.mark.long
def test_an_error_of_x_hat_adds_its_square_to_the_bound_of_ancestral_and_no_cross_term():
  """1/2 (SNR(s) - SNR(t)) |x - x_hat|^2 a step: eq. 13 of Kingma et al. (2021)."""
  process = processes.GaussianProcess(schedules.Linear(4.0, -5.0))
  times, wrong = np.linspace(1.0, 0.0, 6), 0.1
  def denoise(z, level, cond=None):
    estimate, wide = MIXTURE(z, level), level.expand(z)
    shift = wrong * jnp.tanh(z)
    return estimate._replace(x=estimate.x + shift, eps=estimate.eps - shift * wide.alpha
                             / wide.sigma)
  [result] = convergence.compare(MIXTURE, ancestral, process, [times], denoise=denoise)
  [exact] = convergence.compare(MIXTURE, ancestral, process, [times])
  snr, z = np.exp(4.0 - 9.0 * times), np.linspace(-8.0, 8.0, 4001)
  squares = [np.trapezoid(np.exp(MIXTURE.log_prob(z[:, None], process(t)))
                          * (wrong * np.tanh(z))**2, z) for t in times[:-1]]
  terms = convergence.by_steps(result.walk)
  np.testing.assert_allclose(terms.score, 0.5 * np.sum(np.diff(snr) * squares), rtol=1e-6)
  np.testing.assert_allclose(terms.discretisation,
                             convergence.by_steps(exact.walk).discretisation, rtol=1e-12)
  assert abs(terms.cross) < 1e-12 < terms.score and exact.kl < terms.bound > result.kl
  # The weights by which an error counts are those of its squares.
  np.testing.assert_allclose(result.walk.weight @ result.walk.error, terms.score, rtol=1e-9)


@pytest.mark.long
def test_girsanovs_bound_of_an_error_that_grows_with_z_is_the_integral_over_pairs_of_times():
  """z_r and z_t are jointly normal: E |score_hat(z_t) - score(z_r)|^2 by hand, one dimension."""
  c, std, horizon, steps = 0.2, 0.5, 2.0, 4
  denoise = convergence.with_score_error(oracles.Gaussian(0.0, std), lambda z, level: c * z)
  [result] = convergence.compare(
      oracles.Gaussian(0.0, std), euler.exponential_sde, convergence.ornstein_uhlenbeck(horizon),
      [np.linspace(1.0, 0.0, steps + 1)], denoise=denoise, shape=(1,))
  node, weight = np.polynomial.legendre.leggauss(30)
  h = np.linspace(horizon, 0.0, steps + 1)
  variance = lambda u: 1.0 + (std**2 - 1.0) * np.exp(-2.0 * u)
  total = 0.0
  for t, s in zip(h[:-1], h[1:], strict=True):
    r, a = s + (t - s) * (node + 1.0) / 2.0, c - 1.0 / variance(t)
    total += (t - s) / 2.0 * weight @ (a**2 * variance(t) + 1.0 / variance(r)
                                       + 2.0 * a * np.exp(r - t))
  terms = convergence.by_girsanov(result.walk)
  assert terms.cross < -1e-3
  np.testing.assert_allclose(terms.bound - terms.initial, total, rtol=1e-9)
  assert result.kl < convergence.by_steps(result.walk).bound < terms.bound


@pytest.mark.long
def test_moments_and_quadrature_agree_for_samplers_with_and_without_noise():
  """N(m, s^2) as normal data, and as a mixture of one: no code of expectations is shared."""
  process = processes.GaussianProcess(schedules.Linear(4.0, -4.0))
  one = oracles.Mixture(np.ones(1), np.array([[0.4, -0.3]]), np.array([[0.5, 0.8]]))
  normal = oracles.Gaussian(np.array([0.4, -0.3]), np.array([0.5, 0.8]))
  turned = oracles.Correlated.of(one.means, np.diag([0.25, 0.64])[None])
  times = [np.linspace(1.0, 0.0, 7)]
  for make in (euler.euler_maruyama, ddim):
    [exact], [on_grid], [other] = (convergence.compare(truth, make, process, times)
                                   for truth in (normal, one, turned))
    assert other.kl == pytest.approx(on_grid.kl, rel=1e-9)
    np.testing.assert_allclose(on_grid.kl, exact.kl, rtol=1e-5)
    np.testing.assert_allclose(on_grid.tv, exact.tv, rtol=2e-3)
    np.testing.assert_allclose(convergence.by_steps(on_grid.walk),
                               convergence.by_steps(exact.walk), rtol=1e-6, atol=1e-8)
    assert math.isinf(convergence.by_steps(exact.walk).bound) == (make is ddim)


@pytest.mark.long
def test_the_divergence_of_a_deterministic_sampler_tends_to_that_of_the_exact_flow():
  process = processes.GaussianProcess(schedules.Linear(4.0, -2.0))
  oracle = oracles.Gaussian(0.8, 0.5)
  ends = process(jnp.ones(2)), process(jnp.zeros(2))
  low, high = oracle.flow_map(jnp.array([[0.0], [1.0]]), *ends)[:, 0].tolist()
  end = process(0.0)
  mean, std = 0.8 * float(end.alpha), float(jnp.hypot(0.5 * end.alpha, end.sigma))
  ratio = std / (high - low)
  kl = 0.5 * (ratio**2 - 1.0 + ((mean - low) / (high - low))**2) - math.log(ratio)
  [result] = convergence.compare(oracle, heun, process, [np.linspace(1.0, 0.0, 201)], shape=(1,))
  assert kl > 0.01
  np.testing.assert_allclose(result.kl, kl, rtol=1e-3)


@pytest.mark.long
def test_the_total_variation_in_many_dimensions_is_within_its_error_and_known_in_one():
  """Of N(0, 1) and N(m, 1), as a step without noise would leave them: 2 Phi(m / 2) - 1."""
  for d in (1, 4):
    law = laws.of(oracles.Gaussian(np.zeros(d), np.ones(d)))
    shift = jnp.zeros(d).at[0].set(1.2)
    kl, tv, error, _ = law.distances(law.summary((shift, jnp.eye(d)), laws.on_vp(3.0)))
    assert kl == pytest.approx(0.72)
    assert abs(tv - math.erf(0.6 / math.sqrt(2.0))) < 4.0 * error + 1e-5
    assert (error > 0.0) == (d > 2)


churned = functools.partial(edm.edm, s_churn=40.0)


@pytest.mark.first(4)
@pytest.mark.parametrize('arguments,words', [
    ({'truth': NORMAL.__call__}, 'the law of a method is not known'),
    ({'truth': oracles.Gaussian(0.0, 1.0)}, 'shape: it is missing'),
    ({'truth': oracles.Mixture(np.ones(1), np.zeros((1, 3)), np.ones(1))}, '3 dimensions'),
    ({'grids': [np.array([0.0, 1.0])]}, 'must decrease'),
    ({'make': ancestral}, 'step 3 draws no noise'),
    ({'make': churned}, 'it draws noise'),
    ({'make': euler.exponential_sde, 'points': 16}, 'narrower than the grid'),
    ({'truth': NORMAL, 'denoise': convergence.with_score_error(NORMAL, lambda z, _: 0.1 * z**2)},
     '4 dimensions'),
])
def test_what_has_no_exact_distance_is_refused_with_the_remedy(arguments, words):
  given = {'truth': MIXTURE, 'make': euler.exponential_sde, 'grids': [np.linspace(0.3, 0.0, 5)],
           **arguments}
  with pytest.raises(InputError, match=words):
    convergence.compare(given.pop('truth'), given.pop('make'),
                        convergence.ornstein_uhlenbeck(LONGEST), given.pop('grids'), **given)
  with pytest.raises(InputError, match='positive'):
    convergence.ornstein_uhlenbeck(0.0)
