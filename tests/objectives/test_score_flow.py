"""ScoreFlow's bound and Soft Truncation, on data whose evidence and scores are known."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from vdm_jax import oracles, schedules, weightings
from vdm_jax.objectives import proposals, score_flow, soft_truncation, weighted_diffusion
from vdm_jax.processes import GaussianProcess, flow, sde, sub_vp, ve, vp

STD = 0.5
GAP = 6.3204e-6  # KL(q(z_1) || N(0, 1)) of this data where logsnr is -5, nats
ORACLE = oracles.Gaussian(0.0, STD)
FIRST = 1e-5     # of the time of the VP SDE
VP_SDE = GaussianProcess(schedules.BetaLinear(t_min=FIRST))
SIGNS = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


def gauss_legendre(n):
  nodes, weights = np.polynomial.legendre.leggauss(n)
  return 0.5 * (nodes + 1.0), 0.5 * weights


def averaged(loss, t):
  """loss(x [n, 1], t [n], eps [n, 1]) -> [n], averaged over x = +-STD and eps = +-1."""
  t = jnp.asarray(t)
  column = lambda value: jnp.full((len(t), 1), value)
  return jnp.mean(jax.vmap(lambda s: loss(STD * column(s[0]), t, column(s[1])))(SIGNS), axis=0)


# ---------------------------------------------------------- ScoreFlow


@pytest.mark.first(3)
@pytest.mark.parametrize('curve', [vp, ve, flow, sub_vp])
def test_the_bound_on_the_density_of_z_0_exceeds_its_entropy_by_the_divergence_at_the_end(
    curve, x64):
  process = GaussianProcess(schedules.Linear(13.3, -5.0), curve)
  nodes, weights = gauss_legendre(300)
  bound = jax.jit(lambda: averaged(lambda x, t, eps: score_flow.density_bound(
      ORACLE, process, x, t, None, eps=eps)[0], nodes))()
  first = process(jnp.zeros(()))
  variance = first.alpha**2 * STD**2 + first.sigma**2
  entropy = 0.5 * np.log(2 * np.pi * np.e * variance)
  np.testing.assert_allclose(np.dot(weights, bound) - entropy, GAP, rtol=1e-4)


def test_it_is_the_bound_in_terms_of_drift_diffusion_and_scores(x64):
  """E[-log pi(z_1)] + 1/2 int g^2 |s_hat - s|^2 - g^2 |s|^2 - 2 div f, with a wrong score."""
  wrong = oracles.Gaussian(0.2, 0.8)
  process = GaussianProcess(schedules.BetaLinear(t_min=1e-2))
  x = 0.3
  beta = lambda t: (0.1 + 19.9 * (0.01 + 0.99 * t)) * 0.99
  integral = lambda t: 0.1 * (0.01 + 0.99 * t) + 9.95 * (0.01 + 0.99 * t)**2

  def rate(t):
    alpha, variance = np.exp(-0.5 * integral(t)), -np.expm1(-integral(t))
    spread = alpha**2 * 0.8**2 + variance
    # score_hat - score = eps (1 / sigma - sigma / spread) - alpha (x - 0.2) / spread
    error = (variance**-0.5 - variance**0.5 / spread)**2 + (alpha * (x - 0.2) / spread)**2
    return 0.5 * (beta(t) * (error - 1 / variance) + beta(t))

  alpha = np.exp(-0.5 * integral(1.0))
  last = 0.5 * (np.log(2 * np.pi) + alpha**2 * x**2 + 1 - alpha**2)
  theirs = last + integrate.quad(rate, 0.0, 1.0, limit=200)[0]
  nodes, weights = gauss_legendre(200)
  def at(eps):
    column = jnp.full((200, 1), x)
    return score_flow.density_bound(wrong, process, column, jnp.asarray(nodes), None,
                                    eps=jnp.full((200, 1), eps))[0]
  ours = jax.jit(lambda: 0.5 * (at(1.0) + at(-1.0)))()
  np.testing.assert_allclose(np.dot(weights, ours), theirs, rtol=1e-7)


def test_the_entropy_is_that_of_the_published_correction():
  """-7.92 bits a dimension for the VP SDE at 1e-5 (Soft-Truncation, issue 2): 7 - 7.92 = -0.92."""
  _, terms = jax.jit(lambda: score_flow.density_bound(
      ORACLE, VP_SDE, jnp.zeros((1, 3)), jnp.full(1, 0.5), None, eps=jnp.ones((1, 3))))()
  np.testing.assert_allclose(terms['entropy'] / (3 * np.log(2)), -7.92, atol=5e-3)


@pytest.mark.long
def test_the_weighting_of_a_score_matching_loss_gives_that_loss(x64):
  """1/2 lambda |score_hat - score|^2; lambda = g^2 is the bound and sigma^2 half of L_simple."""
  t = jnp.linspace(0.05, 0.95, 9)
  x, eps = jnp.full((9, 1), 0.7), jnp.linspace(-1.0, 2.0, 9)[:, None]
  scales = lambda l: jnp.square(sde(l)[1]), lambda l: jnp.square(l.sigma)

  @jax.jit
  def losses(process):
    level = process(t)
    z = level.alpha[:, None] * x + level.sigma[:, None] * eps
    score = -(z - level.alpha[:, None] * x) / level.sigma[:, None]**2
    off = (jax.grad(lambda z: ORACLE.log_prob(z, level).sum())(z) - score)[:, 0]
    weights = [score_flow.matching(scale) for scale in scales]
    got = [weighted_diffusion(ORACLE, process, x, t, None, eps=eps, weight=w)[0] for w in weights]
    return (got, [0.5 * scale(level) * off**2 for scale in scales], [w(level) for w in weights],
            [weightings.vlb(level), 0.5 * weightings.simple(level)])

  for curve in (vp, flow):
    got, expected, weights, known = losses(GaussianProcess(schedules.Cosine(6.0, -4.0), curve))
    np.testing.assert_allclose(got, expected, rtol=1e-7)
    np.testing.assert_allclose(weights, known, rtol=1e-9)


# ---------------------------------------------------- Soft Truncation


POWERS = [0.0, 0.8, 1.0, 1.2, 2.0]


@pytest.mark.parametrize('k', POWERS)
def test_the_truncation_has_a_density_in_proportion_to_a_power_of_time(k, x64):
  prior = soft_truncation.Reciprocal(1e-3, k)
  power = lambda tau: tau**-k
  total = integrate.quad(power, 1e-3, 1.0, epsabs=0, epsrel=1e-11, limit=500)[0]
  t = np.array([0.0, 1e-4, 1e-2, 0.3, 1.0])
  expected = [integrate.quad(power, 1e-3, 1e-3 + (1 - 1e-3) * u, epsrel=1e-11)[0] / total
              for u in t]
  np.testing.assert_allclose(prior.probability(t), expected, rtol=1e-8, atol=1e-15)
  p = np.linspace(0.0, 1.0, 9)
  np.testing.assert_allclose(prior.probability(prior.quantile(p)), p, atol=1e-12)


@pytest.mark.long
def test_the_mean_over_truncations_is_the_loss_weighted_by_their_distribution(x64):
  """Kim et al. (2022), theorem 1: E_tau L(tau) and int P(tau <= t) f(t) dt, both by quadrature.

  L(tau) on Gaussian data is 1/2 log of a ratio; the other side is the library's weighted loss.
  """
  p, of_p = gauss_legendre(60)
  v, of_v = gauss_legendre(400)
  snr = lambda t: STD**2 * jnp.exp(VP_SDE(t).logsnr)
  # Times of the SDE evenly spread in their logarithm, as f is steep near the first.
  t = (FIRST**(1 - v) - FIRST) / (1 - FIRST)
  of_t = of_v * FIRST**(1 - v) * -np.log(FIRST) / (1 - FIRST)

  @jax.jit
  def both(prior):
    truncated = 0.5 * jnp.log((1 + snr(prior.quantile(p))) / (1 + snr(1.0)))
    weighted = averaged(lambda x, t, eps: weighted_diffusion(
        ORACLE, VP_SDE, x, t, None, eps=eps, weight=soft_truncation.weight(prior))[0], t)
    return jnp.dot(of_p, truncated), jnp.dot(of_t, weighted)

  for k in (0.5, 1.0, 1.5):
    np.testing.assert_allclose(*both(soft_truncation.Reciprocal(FIRST, k)), rtol=2e-5)


def test_the_loss_of_a_step_at_importance_sampled_times_is_that_beyond_its_truncation(x64):
  u, share = gauss_legendre(200)
  first = 0.03
  propose = proposals.by_logsnr(VP_SDE, first)

  def loss(x, u, eps):
    t, weight = propose(u)
    return weight * weighted_diffusion(ORACLE, VP_SDE, x, t, None, eps=eps)[0]

  snr = STD**2 * np.exp(np.asarray(VP_SDE(jnp.array([first, 1.0])).logsnr))
  got = jax.jit(lambda: averaged(loss, u))()
  np.testing.assert_allclose(np.dot(share, got), 0.5 * np.log((1 + snr[0]) / (1 + snr[1])),
                             rtol=1e-9)


@pytest.mark.long
def test_the_truncation_is_drawn_anew_at_every_step_and_is_a_function_of_seed_and_step():
  """Log-uniform for k = 1: theirs is first^(1 - u)."""
  prior = soft_truncation.Reciprocal()
  draw = jax.jit(jax.vmap(lambda seed, step: soft_truncation.truncation(prior, seed, step),
                          (None, 0)), static_argnums=0)
  steps = jnp.arange(2000)
  first = np.asarray(draw(1, steps), np.float64)
  assert stats.kstest(np.log(FIRST + (1 - FIRST) * first) / np.log(FIRST), 'uniform').pvalue > 1e-3
  assert first.min() >= 0 and first.max() <= 1
  np.testing.assert_array_equal(draw(1, steps[700:703]), first[700:703].astype(np.float32))
  other = np.asarray(draw(2, steps))
  assert abs(stats.spearmanr(first, other).statistic) < 4 / 2000**0.5
  assert abs(stats.spearmanr(first[1:], first[:-1]).statistic) < 4 / 2000**0.5
