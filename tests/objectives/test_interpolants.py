"""Stochastic interpolants: public coefficients and losses, and drifts between two mixtures."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import recordings
from vdm_jax import interpolants as interpolants_lib
from vdm_jax import oracles, random, schedules
from vdm_jax.interpolants import interpolant, interpolate, one_sided
from vdm_jax.objectives import flow_matching, interpolants
from vdm_jax.processes import GaussianProcess, RectifiedFlow, from_alpha_sigma

pytestmark = pytest.mark.usefixtures('x64')

lib = interpolants_lib
PATHS = {'linear': lambda variance: lib.linear, 'trig': lib.trigonometric,
         'encoding-decoding': lambda variance: lib.encoding_decoding}
VARIANCES = {'brownian': lib.brownian(), 'bsquared': lib.quadratic,
             'sinesquared': lib.sine_squared, 'sigmoid': lib.sigmoid()}
TWO_SIDED = [('linear', 'brownian'), ('linear', 'bsquared'), ('trig', 'brownian'),
             ('encoding-decoding', 'sinesquared')]


def keys(n):
  return random.per_example(random.key(0), jnp.arange(n))


def close(a, b, rtol=1e-9, atol=1e-11):
  np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def of_names(path, variance):
  return interpolant(PATHS[path](VARIANCES[variance]), VARIANCES[variance])


def linear_network(saved):
  w, u, b = (saved[f'param/{name}'] for name in 'Wub')
  return lambda z, t, cond: z @ w.T + t[:, None] * u + b


@pytest.mark.first(2)
@pytest.mark.parametrize('name', VARIANCES)
def test_gamma_its_slope_and_their_product_are_those_of_the_public_code(name):
  saved = recordings.shared('stochastic_interpolants')
  at = interpolant(lib.linear, VARIANCES[name])(jnp.asarray(saved['t']))
  for value, expected in zip((at.gamma, at.dgamma, at.gamma_dgamma), saved[f'gamma/{name}'],
                             strict=True):
    close(value, expected)


@pytest.mark.long
@pytest.mark.parametrize('path,variance', TWO_SIDED)
def test_two_sided_losses_are_those_of_the_public_code(path, variance):
  """malbergo/stochastic-interpolants.  Theirs are sums over eps and -eps, here means."""
  saved = recordings.shared('stochastic_interpolants')
  t, x, y = (jnp.asarray(saved[name]) for name in ('t', 'x_0', 'x_1'))
  made = of_names(path, variance)
  at, case = made(t), f'{path}/{variance}'
  for field, name in {'a': 'a', 'da': 'adot', 'b': 'b', 'db': 'bdot'}.items():
    close(getattr(at, field), saved[f'{case}/{name}'])
  network, eps = linear_network(saved), jnp.asarray(saved[f'{case}/z'])
  loss = lambda of, both, sign=1.0: interpolants.objective(
      lambda *u: sign * network(*u), made, x, y, t, keys(len(t)), of=of, antithetic=both, eps=eps)
  close(2.0 * loss('drift', True), saved[f'{case}/loss/b'])
  close(2.0 * loss('score', True), saved[f'{case}/loss/s'])
  close(loss('velocity', False), saved[f'{case}/loss/v'])
  close(loss('noise', False, -1.0), saved[f'{case}/loss/eta'])  # eta estimates -eps


@pytest.mark.long
@pytest.mark.parametrize('path', ['linear', 'trig'])
def test_one_sided_losses_are_flow_matching_on_a_process(path):
  """Their base x_0 is eps, and their time 1 - t."""
  saved = recordings.shared('stochastic_interpolants')
  t, eps, x = (jnp.asarray(saved[name]) for name in ('t', 'x_0', 'x_1'))
  alpha_sigma = {'linear': lib.linear, 'trig': lib.trigonometric()}[path]
  process = from_alpha_sigma(lambda u: alpha_sigma(u)[0], lambda u: alpha_sigma(u)[1])
  made, case = one_sided(process), f'one-sided-{path}/None'
  at = made(1.0 - t)
  for value, name in {'gamma': 'a', 'a': 'b'}.items():
    close(getattr(at, value), saved[f'{case}/{name}'])
  network = linear_network(saved)
  loss = lambda of, both, sign: interpolants.objective(
      lambda z, u, cond: sign * network(z, 1.0 - u, cond), made, x, jnp.zeros_like(x), 1.0 - t,
      keys(len(t)), of=of, antithetic=both, eps=eps)
  close(loss('drift', False, -1.0), saved[f'{case}/loss/one-sided-b'])  # time runs the other way
  close(2.0 * loss('score', True, 1.0), saved[f'{case}/loss/one-sided-s'])
  close(loss('noise', False, -1.0), saved[f'{case}/loss/one-sided-eta'])


@pytest.mark.long
def test_the_mirror_s_loss_is_that_of_the_public_code():
  """Theirs goes from the data x_1 back to them, and calls the noise x_0 and gamma a."""
  saved = recordings.shared('stochastic_interpolants')
  t, x, eps = (jnp.asarray(saved[name]) for name in ('t', 'x_1', 'x_0'))
  made, case = interpolant(lib.mirror, lib.quadratic), 'mirror/bsquared'
  at = made(t)
  for field, name in {'gamma': 'a', 'dgamma': 'adot', 'a': 'b', 'da': 'bdot'}.items():
    close(getattr(at, field), saved[f'{case}/{name}'])
  close(interpolate(x, 7.0 + x, eps, at), x + at.gamma[:, None] * eps)  # y has no part in it
  loss = interpolants.objective(linear_network(saved), made, x, 7.0 + x, t, keys(len(t)),
                                of='score', antithetic=False, eps=eps)
  close(loss, saved[f'{case}/loss/mirror'])


def between_mixtures(made, t, z, of_x, of_y):
  """E[x | z], E[y | z], E[eps | z] of two independent mixtures of round Gaussians; [K, D] means."""
  at = made(t).expand(z[:, None])
  (wx, mx, sx), (wy, my, sy) = of_x, of_y
  shape = (len(wx), len(wy))
  pairs = [np.repeat(np.arange(shape[0]), shape[1]), np.tile(np.arange(shape[1]), shape[0])]
  mx, sx, my, sy = mx[pairs[0]], sx[pairs[0]][:, None], my[pairs[1]], sy[pairs[1]][:, None]
  variance = (at.a * sx)**2 + (at.b * sy)**2 + at.gamma**2
  deviation = z[:, None] - at.a * mx - at.b * my
  log = (np.log(wx[pairs[0]] * wy[pairs[1]])
         + jnp.sum(-0.5 * deviation**2 / variance - 0.5 * jnp.log(variance), -1))
  share = jax.nn.softmax(log, axis=-1)[..., None]
  mean = lambda u: jnp.sum(share * u, axis=1)
  pull = deviation / variance
  return (mean(mx + at.a * sx**2 * pull), mean(my + at.b * sy**2 * pull), mean(at.gamma * pull))


@pytest.mark.long
@pytest.mark.parametrize('path,variance', [('linear', 'brownian'), ('trig', 'brownian'),
                                           ('linear', 'sinesquared')])
def test_the_drift_and_the_score_between_two_mixtures_are_those_of_the_public_code(path, variance):
  """drift = v - gamma dgamma s, from the conditional means of the definition."""
  saved = recordings.shared('stochastic_interpolants')
  made, t, z = of_names(path, variance), saved['t'], saved['gmm/x']
  parts = lambda i: [saved[f'gmm/{name}{i}'] for name in ('w', 'mu', 's')]
  x, y, eps = between_mixtures(made, jnp.asarray(t), jnp.asarray(z), parts(0), parts(1))
  at = made(jnp.asarray(t)).expand(z)
  score = -eps / at.gamma
  close(score, saved[f'gmm/{path}/{variance}/s'], rtol=1e-7)
  close(at.da * x + at.db * y - at.gamma_dgamma * score, saved[f'gmm/{path}/{variance}/v'],
        rtol=1e-7)


@pytest.mark.long
@pytest.mark.parametrize('of', ['velocity', 'drift', 'score', 'noise'])
def test_the_minimiser_is_the_conditional_mean(of):
  """Of N(m, s^2) and N(k, r^2): the gradient by slope and intercept vanishes at every t.

  The eight corners x = m +- s, y = k +- r, eps = +-1 average what is quadratic exactly.
  """
  (m, s), (k, r) = (0.4, 0.5), (-1.0, 0.8)
  made = interpolant(lib.trigonometric(), lib.brownian(0.7))
  t = jnp.repeat(jnp.array([0.1, 0.4, 0.9]), 8)
  signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8)
  x, y, eps = (jnp.tile(u, 3)[:, None] for u in (m + s * signs[0], k + r * signs[1], signs[2]))
  at = made(t)
  variance = (at.a * s)**2 + (at.b * r)**2 + at.gamma**2
  covariance = {'velocity': at.da * at.a * s**2 + at.db * at.b * r**2, 'score': -jnp.ones(24),
                'noise': at.gamma}
  covariance['drift'] = covariance['velocity'] + at.gamma_dgamma
  mean = at.da * m + at.db * k if of in ('velocity', 'drift') else jnp.zeros(24)

  def loss(theta, both):
    slope, intercept = (jnp.repeat(u, 8) for u in theta)
    network = lambda z, t, cond: (intercept + slope * (z[:, 0] - at.a * m - at.b * k))[:, None]
    return jnp.sum(interpolants.objective(network, made, x, y, t, keys(24), of=of, antithetic=both,
                                          eps=eps))
  best = jnp.stack([(covariance[of] / variance)[::8], mean[::8]])
  for both in (True, False):
    value = jax.jit(jax.value_and_grad(lambda theta, both=both: loss(theta, both)))
    least, slope = value(best)
    close(slope, 0.0, atol=1e-10)
    assert value(best + 0.01)[0] > least


def test_the_joint_loss_is_finite_at_both_ends_where_the_brownian_slope_is_infinite():
  made = interpolant(lib.linear, lib.brownian())
  x = jnp.ones((2, 3))
  loss, terms = interpolants.joint(lambda z, t, cond: jnp.concatenate([z, z], -1), made, x, -x,
                                   jnp.array([0.0, 1.0]), keys(2), eps=0.5 * x)
  # At t = 0 z = x = 1: |1 - (-2)|^2 + |1 - .5|^2 a dimension; at t = 1 z = -1.
  close(terms['velocity_error'], [27.0, 3.0])
  close(terms['noise_error'], [0.75, 6.75])
  close(loss, [27.75, 9.75])


def test_a_one_sided_interpolant_is_a_gaussian_process():
  process = GaussianProcess(schedules.Cosine(15.0, -15.0))
  t, z = jnp.array([0.2, 0.9]), jnp.array([[0.3], [-1.0]])
  at = one_sided(process)(t)
  oracle = oracles.Gaussian(0.2, 0.6)
  estimate, wide = oracle(z, process(t)), at.expand(z)
  close(wide.da * estimate.x + wide.dgamma * estimate.eps,
        flow_matching.velocity(oracle, process, z, t))
  close(interpolate(z, 7.0 + z, z, at), (process(t).alpha + process(t).sigma)[:, None] * z)


@pytest.mark.long
def test_matchers_of_minibatch_ot_are_interpolants():
  """atong01/conditional-flow-matching: constant noise, Brownian bridges, trigonometric paths."""
  saved = recordings.shared('minibatch_ot')
  eps, sigma = (jnp.asarray(saved[name]) for name in ('eps', 'sigma'))
  t = 1.0 - jnp.asarray(saved['t'])
  n = len(t)
  y, x = (jnp.asarray(saved[f'B{n}/{name}']) for name in ('noise', 'data'))
  constant = lambda t: jnp.full_like(t, sigma**2)
  # Its path to noise itself, with sigma left at the data, is Lipman's: a process.
  target = one_sided(RectifiedFlow(sigma))(t)
  close(target.gamma, saved['target/sigma_t'])
  close(target.a[:, None] * x, saved['target/mu_t'], rtol=1e-7)
  close(interpolate(x, y, eps, target), saved['target/x_t'], rtol=1e-7)
  close(-interpolants.target('drift', x, y, eps, target), saved['target/u_t'], rtol=1e-5, atol=1e-6)
  for name, path, variance in (('cfm', lib.linear, constant), ('vp', lib.trigonometric(), constant),
                               ('sb', lib.linear, lib.brownian(sigma**2))):
    at = interpolant(path, variance)(t)
    close(interpolate(x, y, eps, at), saved[f'{name}/x_t'], rtol=1e-7)
    velocity = -interpolants.target('drift', x, y, eps, at)
    close(velocity, saved[f'{name}/u_t'], rtol=1e-5, atol=1e-6)
