"""Score matching: one minimiser, known constants, and the levels of NCSN.

Losses of a linear score are of second order in the data and the noise, so that a few points with
the right mean and covariance average them exactly.
"""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import oracles, random, schedules, weightings
from vdm_jax.decoders import DiscretisedNormal, Pixels
from vdm_jax.objectives import iddpm, score_matching, vlb, weighted_diffusion
from vdm_jax.objectives.score_matching import at_level, denoising, implicit, on_ladder, sliced
from vdm_jax.processes import GaussianProcess, RectifiedFlow, SubVP, flow, sde, sub_vp, ve, vp
from vdm_jax.typing import Estimate

pytestmark = pytest.mark.usefixtures('x64')

PROCESSES = {
    **{curve.__name__: GaussianProcess(schedules.Cosine(6.0, -4.0), curve)
       for curve in (vp, ve, flow, sub_vp)},
    'rectified_flow': RectifiedFlow(), 'SubVP': SubVP(),
    'VE SDE': GaussianProcess(schedules.GeometricSigma(0.1, 10.0), ve),
    'VP SDE': GaussianProcess(schedules.BetaLinear())}
MEAN = np.array([0.5, -0.3])
COVARIANCE = np.array([[0.5, 0.2], [0.2, 0.3]])


def split(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


def all_signs(keys, like):
  """Every v of two signs, in the place of a random one."""
  signs = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
  return jnp.broadcast_to(signs[:, None], (4, *like.shape))


def normal(keys, like):
  return random.normal(keys, like)[None]


def points():
  """(x, eps), [8, 2] each, with the first two moments of the data and of the noise."""
  u = 2.0 * np.concatenate([np.eye(4), -np.eye(4)])
  return jnp.array(MEAN + u[:, :2] @ np.linalg.cholesky(COVARIANCE).T), jnp.array(u[:, 2:])


def minimiser(loss, size):
  """Of a quadratic function of `size` numbers, by its normal equations."""
  at = jnp.zeros(size)
  return jax.jit(lambda: jnp.linalg.solve(jax.hessian(loss)(at), -jax.grad(loss)(at)))()


# ------------------------------------------------------------- minimisers


FORMS = {'denoising': denoising, 'implicit': at_level(implicit),
         'sliced': at_level(lambda *args: sliced(*args, probes=all_signs, reduced=False)),
         'reduced': at_level(lambda *args: sliced(*args, probes=all_signs))}


@pytest.mark.long
@pytest.mark.parametrize('name', FORMS)
@pytest.mark.parametrize('process', [PROCESSES['vp'], PROCESSES['VE SDE'], RectifiedFlow()],
                         ids=['vp', 've', 'flow'])
def test_the_best_linear_score_of_gaussian_data_is_their_own(name, process):
  x, eps = points()
  t = jnp.full(8, 0.4)

  def loss(params):
    matrix, offset = params[:4].reshape(2, 2), params[4:]
    denoise = lambda z, level, cond: Estimate(None, z @ matrix.T + offset)
    return jnp.mean(FORMS[name](denoise, process, x, t, split(8), eps=eps)[0])

  best = minimiser(loss, 6)
  level = jax.jit(process)(0.4)
  spread = level.alpha**2 * COVARIANCE + level.sigma**2 * np.eye(2)
  expected = level.sigma * np.linalg.inv(spread)  # eps_hat = expected (z - alpha mean)
  np.testing.assert_allclose(best[:4].reshape(2, 2), expected, rtol=1e-9)
  np.testing.assert_allclose(best[4:], -level.alpha * expected @ MEAN, rtol=1e-9)


def test_without_noise_the_best_linear_score_is_that_of_the_data():
  x, _ = points()

  def loss(params):
    score = lambda x: x @ params[:4].reshape(2, 2).T + params[4:]
    return jnp.mean(implicit(score, x, split(8))[0])

  best, precision = minimiser(loss, 6), np.linalg.inv(COVARIANCE)
  np.testing.assert_allclose(best[:4].reshape(2, 2), -precision, rtol=1e-9)
  np.testing.assert_allclose(best[4:], precision @ MEAN, rtol=1e-9)


MIXTURE = oracles.Mixture(jnp.array([0.3, 0.7]), jnp.array([[-0.6], [0.5]]),
                          jnp.array([0.2, 0.3]))


def mixture_points(n):
  """x, eps [2 n^2, 1] and weights [2 n^2]: Gauss-Hermite sums over `MIXTURE` and the noise."""
  nodes, weights = np.polynomial.hermite_e.hermegauss(n)
  weights = weights / weights.sum()
  x, eps = (jnp.array(u.reshape(-1, 1)) for u in np.meshgrid(
      np.concatenate([-0.6 + 0.2 * nodes, 0.5 + 0.3 * nodes]), nodes, indexing='ij'))
  return x, eps, np.outer(np.concatenate([0.3 * weights, 0.7 * weights]), weights).ravel()


@pytest.mark.long
@pytest.mark.parametrize('form', [denoising, at_level(implicit)], ids=['denoising', 'implicit'])
def test_the_best_sum_of_bumps_is_the_score_of_a_mixture(form):
  """Ten on a line, their heights by the normal equations: 99 % of the score's variance."""
  x, eps, weights = mixture_points(40)
  process, t = PROCESSES['vp'], jnp.full(len(x), 0.25)
  centres = jnp.linspace(-2.4, 2.4, 10)
  bumps = lambda z: jnp.exp(-0.5 * jnp.square((z - centres) / 0.5))

  def loss(heights):
    denoise = lambda z, level, cond: Estimate(None, (bumps(z) @ heights)[:, None])
    return weights @ form(denoise, process, x, t, split(len(x)), eps=eps)[0]

  heights = minimiser(loss, 10)
  level = jax.jit(process)(0.25)
  z = jnp.linspace(-2.5, 2.5, 400)[:, None]
  density, truth = (np.asarray(u) for u in jax.jit(lambda: (
      jnp.exp(MIXTURE.log_prob(z, level)), MIXTURE(z, level).eps[:, 0]))())
  mean = np.average(truth, weights=density)
  unexplained = np.average((np.asarray(bumps(z) @ heights) - truth)**2, weights=density)
  assert unexplained < 0.01 * np.average((truth - mean)**2, weights=density)


# -------------------------------------------------------------- constants


@pytest.mark.long
@pytest.mark.parametrize('scale', [score_matching.variance, score_matching.likelihood],
                         ids=['variance', 'likelihood'])
@pytest.mark.parametrize('name', ['vp', 've', 'rectified_flow'])
def test_two_models_differ_by_the_same_in_every_form(name, scale):
  """Denoising and implicit are explicit score matching and a constant, for any two scores.

  Expectations over a mixture and its noise are Gauss-Hermite sums; the explicit one is a sum over
  a fine grid of z.
  """
  process, t = PROCESSES[name], 0.5
  x, eps, weights = mixture_points(80)
  models = [oracles.Gaussian(0.2, 0.7), dataclasses.replace(MIXTURE, weights=jnp.array([0.5, 0.5]))]
  level = jax.jit(process)(t)

  @jax.jit
  def losses(model):
    given = model, process, x, jnp.full(len(x), t), split(len(x))
    return [weights @ form(*given, scale=scale, eps=eps)[0] for form in (
        denoising, lambda *args, scale, eps: at_level(implicit, scale)(*args, eps=eps))]

  z = np.linspace(-12.0, 12.0, 40_001)[:, None]
  density = np.exp(MIXTURE.log_prob(z, level)) * (z[1] - z[0])
  truth = MIXTURE(z, level).eps
  explicit = [0.5 * scale(level) / level.sigma**2
              * np.sum(density[:, None] * (model(z, level).eps - truth)**2) for model in models]
  one, other = losses(models[0]), losses(models[1])
  for i in range(2):
    np.testing.assert_allclose(one[i] - other[i], explicit[0] - explicit[1], rtol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize('reduced', [True, False])
@pytest.mark.parametrize('probes', ['signs', 'normal'])
def test_sliced_is_implicit_in_expectation(reduced, probes):
  n = 5_000
  rng = np.random.default_rng(1)
  mixture = oracles.Mixture(jnp.array([0.4, 0.6]), jnp.array(rng.normal(size=(2, 3))),
                            jnp.array([0.6, 0.9]))
  level = jax.jit(PROCESSES['vp'])(jnp.array(0.3))
  # A rotation makes of it a field with a Jacobian that is not symmetric.
  turn = jnp.array(np.linalg.qr(rng.normal(size=(3, 3)))[0])
  score = lambda x: -mixture(x, level).eps @ turn
  x = jnp.broadcast_to(jnp.array([0.3, -0.2, 0.5]), (n, 3))
  given = {'probes': normal} if probes == 'normal' else {}
  draws, _ = jax.jit(lambda: sliced(score, x, split(n), reduced=reduced, **given))()
  exact, terms = jax.jit(lambda: implicit(score, x[:1], split(1)))()
  jacobian = jax.jit(jax.jacobian(lambda x: score(x[None])[0]))(x[0])
  np.testing.assert_allclose(terms['divergence'][0], jnp.trace(jacobian), rtol=1e-9)
  error = np.std(draws) / n**0.5
  assert 0.0 < error < 0.1
  np.testing.assert_allclose(np.mean(draws), exact[0], atol=4 * error)


# ----------------------------------------------------------------- levels


@pytest.mark.long
def test_the_probes_and_the_noise_of_a_level_are_independent():
  process, t, n = PROCESSES['vp'], 0.25, 60_000
  at = lambda form, x, **more: at_level(form)(MIXTURE, process, x, jnp.full(len(x), t),
                                              split(len(x)), **more)[0]
  x, eps, weights = mixture_points(80)
  exact = weights @ jax.jit(lambda: at(implicit, x, eps=eps))()
  rng = np.random.default_rng(0)
  noise, right = rng.normal(size=n), rng.random(n) < 0.7
  data = jnp.array(np.where(right, 0.5 + 0.3 * noise, -0.6 + 0.2 * noise))[:, None]
  draws = jax.jit(lambda: at(lambda *args: sliced(*args, probes=normal), data))()
  assert abs(np.mean(draws) - exact) < 4 * np.std(draws) / n**0.5


@pytest.mark.first(2)
@pytest.mark.parametrize('name', PROCESSES)
def test_on_every_process_it_is_the_weighted_error_of_the_score(name):
  """1/2 lambda |score_hat - grad log q(z | x)|^2 by the densities; lambda = g^2 is the bound."""
  process, t = PROCESSES[name], jnp.linspace(0.1, 0.9, 7)
  x, eps = jnp.full((7, 1), 0.7), jnp.linspace(-1.0, 2.0, 7)[:, None]
  oracle = oracles.Gaussian(0.1, 0.5)

  @jax.jit
  def losses():
    level = process(t)
    wide = level.expand(x)
    z = wide.alpha * x + wide.sigma * eps
    of_data = lambda z: -0.5 * jnp.sum(jnp.square((z - wide.alpha * x) / wide.sigma))
    off = (jax.grad(lambda z: oracle.log_prob(z, level).sum())(z) - jax.grad(of_data)(z))[:, 0]
    scales = [score_matching.variance, score_matching.likelihood, lambda l: jnp.ones_like(l.t)]
    lambdas = [level.sigma**2, sde(level)[1]**2, 1.0]
    got = [denoising(oracle, process, x, t, None, scale=scale, eps=eps)[0] for scale in scales]
    bound = weighted_diffusion(oracle, process, x, t, None, eps=eps, weight=weightings.vlb)[0]
    return got, [0.5 * u * off**2 for u in lambdas], bound

  got, expected, bound = losses()
  np.testing.assert_allclose(got, expected, rtol=1e-7)
  np.testing.assert_allclose(got[1], bound, rtol=1e-9)


@pytest.mark.long
def test_the_ladder_of_ncsn_has_its_levels_equally_often():
  """1 to 0.01 in 10 levels of equal ratio: Song and Ermon (2019), section 5."""
  sigmas = np.geomspace(1.0, 0.01, 10)
  process = GaussianProcess(schedules.TableSchedule.from_sigmas(sigmas), ve)
  t = (np.arange(200) + 0.5) / 200
  seen = []

  def denoise(z, level, cond):
    seen.append(level.sigma)
    return Estimate(z, 2.0 * z)

  x, eps = jnp.full((200, 1), 0.3), jnp.full((200, 1), 0.7)
  loss, _ = on_ladder(denoising, 10)(denoise, process, x, jnp.array(t), None, eps=eps)
  np.testing.assert_allclose(np.sort(seen[0]), np.repeat(sigmas[::-1], 20), rtol=1e-9)
  # 1/2 sigma^2 |score + eps / sigma|^2 with score = -2 z / sigma
  sigma = np.asarray(seen[0])
  expected = 0.5 * sigma**2 * (-2.0 * (0.3 + sigma * 0.7) / sigma + 0.7 / sigma)**2
  np.testing.assert_allclose(loss, expected, rtol=1e-9)


@pytest.mark.long
def test_ncsn_is_half_of_the_simple_loss_of_a_chain_of_its_levels():
  process = GaussianProcess(schedules.TableSchedule.from_sigmas(np.geomspace(9.0, 0.05, 12)), ve)
  n, pixels = 50, Pixels(17)
  data = jnp.array(np.random.default_rng(2).integers(0, 17, (n, 3)))
  given = (oracles.Gaussian(0.1, 0.5), process, pixels.encode(data),
           jnp.array(np.random.default_rng(3).random(n)), split(n))
  ours, theirs = jax.jit(lambda: (
      on_ladder(denoising, 12)(*given)[0],
      iddpm.hybrid(*given, steps=12, data=data, decoder=pixels.log_prob, weight=0.0,
                   variance=vlb.fixed_small, last=DiscretisedNormal(17).log_prob)[0]))()
  np.testing.assert_allclose(2.0 * ours, theirs, rtol=1e-9)
