"""Flow matching: public code on five paths, the oracle's loss, and the density of the flow."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.support import recordings
from vdm_jax import dequantisers, oracles, random, schedules, targets
from vdm_jax.decoders import Pixels
from vdm_jax.likelihood import ode
from vdm_jax.objectives import flow_matching
from vdm_jax.processes import (
    GaussianProcess,
    RectifiedFlow,
    Truncated,
    diffuse,
    flow,
    from_alpha_sigma,
    time_of,
    vp,
)
from vdm_jax.samplers import runge_kutta, sample
from vdm_jax.typing import Model
from vdm_jax.units import sum_over_data

pytestmark = pytest.mark.usefixtures('x64')

INFINITE = (np.inf, -np.inf)
PATHS = {'condot': RectifiedFlow(),
         'vp': GaussianProcess(schedules.BetaLinear(t_min=0.0)),
         'linear_vp': from_alpha_sigma(lambda t: 1.0 - t, lambda t: jnp.sqrt(t * (2.0 - t))),
         'cosine': GaussianProcess(schedules.Cosine(*INFINITE)),
         'poly3': GaussianProcess(schedules.Polynomial(3.0, *INFINITE), flow)}


def keys(n):
  return random.per_example(random.key(0), jnp.arange(n))


@pytest.mark.long
@pytest.mark.parametrize('path', PATHS)
def test_paths_velocities_and_losses_are_those_of_the_public_code(path):
  """facebookresearch/flow_matching, whose time is 1 - t."""
  saved, process = recordings.shared('flow_matching'), PATHS[path]
  x, eps, t = (jnp.asarray(saved[name]) for name in ('x_1', 'x_0', 't'))
  level = process(1.0 - t)
  close = lambda a, name: np.testing.assert_allclose(a, saved[f'{path}/{name}'], rtol=1e-9,
                                                     atol=1e-11)
  close(level.alpha, 'alpha_t')
  close(level.sigma, 'sigma_t')
  close(-level.dalpha, 'd_alpha_t')
  close(-level.dsigma, 'd_sigma_t')
  z = diffuse(x, eps, level)
  close(z, 'x_t')
  for data in ('gauss', 'mix'):
    oracle = recordings.exact(saved, data)
    close(-flow_matching.velocity(oracle, process, z, 1.0 - t), f'{data}/velocity')
    loss, _ = flow_matching.objective(oracle, process, x, 1.0 - t, keys(len(x)), eps=eps)
    close(loss / x.shape[1], f'{data}/cfm_loss')


@pytest.mark.long
@pytest.mark.parametrize('path', PATHS)
def test_conversions_between_targets_are_those_of_the_public_code(path):
  """A network of x, eps or the velocity has the same velocity, and its time follows from logsnr."""
  saved, process = recordings.shared('flow_matching'), PATHS[path]
  x, eps, t = (jnp.asarray(saved[name]) for name in ('x_1', 'x_0', 't'))
  theirs = lambda name: jnp.asarray(saved[f'{path}/{name}'])
  level, z = process(1.0 - t), theirs('x_t')

  @jax.jit
  def ours(dx_t, snr):
    predicts = lambda target, y: lambda z, level, cond=None: targets.solve(target, y, z, level)
    velocity = lambda denoise: -flow_matching.velocity(denoise, process, z, 1.0 - t)
    estimate = targets.solve(targets.velocity(process), -dx_t, z, level)
    return {'target_to_velocity': velocity(predicts(targets.x, x)),
            'epsilon_to_velocity': velocity(predicts(targets.eps, eps)),
            'velocity_to_target': estimate.x, 'velocity_to_epsilon': estimate.eps,
            'snr_inverse': 1.0 - time_of(process, 2.0 * jnp.log(snr))}
  for name, u in ours(theirs('dx_t'), theirs('alpha_t') / theirs('sigma_t')).items():
    np.testing.assert_allclose(u, theirs(name), rtol=1e-7, atol=1e-9, err_msg=name)


# With a speck of noise at the data: there, too, a step is of the order of its method, as in the
# public code.  At sigma = 0 the last step here is one of Euler.
SPECK = 1e-30
NOISY = {'condot': RectifiedFlow(SPECK),
         'cosine': from_alpha_sigma(lambda t: jnp.cos(0.5 * jnp.pi * t),
                                    lambda t: jnp.sin(0.5 * jnp.pi * t) + SPECK),
         'poly3': GaussianProcess(schedules.Polynomial(3.0, -2.0 * np.log(SPECK), -np.inf), flow)}
THREE_EIGHTHS = runge_kutta.Tableau(((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
                                    (0.125, 0.375, 0.375, 0.125), (0.0, 1 / 3, 2 / 3, 1.0))
METHODS = {'euler': (runge_kutta.EULER, (1, 2, 4, 16)),
           'midpoint': (runge_kutta.MIDPOINT, (1, 4, 16)), 'heun2': (runge_kutta.HEUN, (4, 16)),
           'rk4': (THREE_EIGHTHS, (4, 16))}


@pytest.mark.long
@pytest.mark.parametrize('path', NOISY)
@pytest.mark.parametrize('data', ['mix', 'gauss'])
def test_chains_of_four_methods_are_those_of_the_public_code(data, path):
  """torchdiffeq's fixed steps on the exact velocity; its rk4 is the 3/8 rule."""
  saved = recordings.shared('flow_matching')
  oracle, z = recordings.exact(saved, data), jnp.asarray(saved['z'])
  for method, (tableau, counts) in METHODS.items():
    sampler = runge_kutta.runge_kutta(oracle, NOISY[path], tableau)
    run = jax.jit(lambda times, sampler=sampler: sample(sampler, keys(len(z)), z, times))
    for n in counts:
      times = np.append(np.linspace(1.0, 0.0, n + 1), np.zeros(16 - n))  # one program for every n
      np.testing.assert_allclose(run(times), saved[f'ode/{path}/{data}/{method}/n{n}'], rtol=1e-7,
                                 atol=1e-8, err_msg=f'{method} {n}')


@pytest.mark.long
@pytest.mark.parametrize('path', NOISY)
@pytest.mark.parametrize('data', ['mix', 'gauss'])
def test_samples_and_their_density_are_those_of_the_public_code_and_of_the_closed_form(data, path):
  """Its dopri5 at 1e-11 with the exact trace, down from z; its density back up from the samples."""
  saved, process = recordings.shared('flow_matching'), PATHS[path]
  theirs = lambda name: saved[f'ode/{path}/{data}/{name}']
  oracle, z, x = recordings.exact(saved, data), jnp.asarray(saved['z']), theirs('dopri5')
  method = {'steps': 400, 'probe': 'exact'}
  up = jax.jit(lambda x: ode.log_prob(oracle, process, x, keys(len(x)), **method))(x)
  np.testing.assert_allclose(up.log_prob, theirs('logp_closed'), rtol=0, atol=1e-5)
  np.testing.assert_allclose(up.log_prob, theirs('logp'), rtol=0, atol=1e-5)
  np.testing.assert_allclose(up.z, theirs('source'), rtol=0, atol=1e-5)
  down = jax.jit(lambda z: ode.decode(oracle, process, z, keys(len(z)), **method))(z)
  np.testing.assert_allclose(down.z, x, rtol=0, atol=1e-5)
  np.testing.assert_allclose(down.log_prob, theirs('logp_closed'), rtol=0, atol=1e-5)


def four_points(s, t):
  """x = +-s with eps = +-1 at every t [n]: they average what is quadratic in both exactly."""
  x = jnp.repeat(s * jnp.array([1.0, 1.0, -1.0, -1.0]), len(t))[:, None]
  eps = jnp.repeat(jnp.array([1.0, -1.0, 1.0, -1.0]), len(t))[:, None]
  return x, jnp.tile(t, 4), eps


@pytest.mark.first(1)
@pytest.mark.parametrize('s', [0.1, 0.5, 2.0])
def test_the_oracle_s_loss_is_s_pi_over_2_on_straight_lines_and_no_other_gain_has_less(s):
  """int_0^1 s^2 / (s^2 (1 - t)^2 + t^2) dt = s pi / 2, for data N(0, s^2)."""
  nodes, weights = np.polynomial.legendre.leggauss(400)
  t, w = 0.5 * (1.0 + nodes), 0.5 * weights
  x, times, eps = four_points(s, jnp.asarray(t))
  oracle = oracles.Gaussian(0.0, s)

  @jax.jit
  def losses(gain):
    def denoise(z, level, cond=None):  # whose velocity is gain(t) times the oracle's
      wide, best = level.expand(z), oracle(z, level)
      u = jnp.tile(gain, 4)[:, None] * (best.eps - best.x)
      return best._replace(x=z - wide.sigma * u, eps=z + wide.alpha * u)
    loss, _ = flow_matching.objective(denoise, RectifiedFlow(), x, times, keys(len(x)), eps=eps)
    return w @ loss.reshape(4, -1).mean(0)

  best = jnp.ones(len(t))
  np.testing.assert_allclose(losses(best), s * np.pi / 2, rtol=1e-10)
  np.testing.assert_allclose(jax.grad(losses)(best), 0.0, atol=1e-12)
  assert losses(1.01 * best) > losses(best) < losses(0.99 * best)


@pytest.mark.long
def test_the_diffusion_paths_have_finite_slopes_at_the_data():
  """The public code has dsigma/dt = -inf there, and so an infinite target."""
  for process in (PATHS['vp'], PATHS['cosine'], PATHS['poly3']):
    x = jnp.full((2, 3), 0.5)
    loss, _ = flow_matching.objective(oracles.Gaussian(0.0, 0.5), process, x, jnp.array([0.0, 1.0]),
                                      keys(2))
    assert np.isfinite(loss).all() and np.isfinite(process(jnp.zeros(())).dsigma)


@pytest.mark.long
def test_a_square_root_of_time_has_an_infinite_slope_at_the_data_and_cut_ends_have_none():
  """sigma = sqrt(t (2 - t)), the variance-preserving partner of alpha = 1 - t."""
  def loss(process):
    return flow_matching.objective(oracles.Gaussian(0.0, 0.5), process, jnp.full((1, 3), 0.5),
                                   jnp.zeros(1), keys(1))[0]
  whole = PATHS['linear_vp']
  cut = Truncated.between(whole, 20.0, -np.inf)
  assert np.isposinf(whole(jnp.zeros(())).dsigma) and not np.isfinite(loss(whole)).any()
  assert np.isfinite(loss(cut)).all()
  # d/dt sqrt(t (2 - t)) = (1 - t) / sigma, at the first of the times that are kept.
  level = cut(jnp.zeros(()))
  np.testing.assert_allclose(level.dsigma, (cut.last - cut.first) * level.alpha / level.sigma,
                             rtol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize('process', [
    GaussianProcess(schedules.Polynomial(1.0, 20.0, -25.0), flow),
    GaussianProcess(schedules.Cosine(20.0, -25.0), vp)], ids=['straight', 'cosine'])
def test_the_flow_s_likelihood_of_an_image_is_its_density_and_so_is_its_gradient(process):
  """An image of one channel, exact trace, and reverse mode: none works in the public code."""
  image = jnp.linspace(-1.0, 1.5, 4).reshape(1, 2, 2, 1)

  def by_flow(std, image):
    return ode.log_prob(oracles.Gaussian(0.2, std), process, image, keys(1), steps=60,
                        probe='exact').log_prob[0]

  def density(std, image):
    return oracles.Gaussian(0.2, std).log_prob(image, process(jnp.zeros(1)))[0]

  value, grads = jax.jit(jax.value_and_grad(by_flow, argnums=(0, 1)))(0.5, image)
  expected = jax.value_and_grad(density, argnums=(0, 1))(0.5, image)
  np.testing.assert_allclose(value, expected[0], rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), grads, expected[1])


@pytest.mark.long
def test_the_polynomial_path_keeps_its_digits_at_both_ends_in_float32():
  schedule = schedules.Polynomial(3.0, 13.3, -20.0)
  t = jnp.array([0.0, 1e-4, 0.5, 0.9999, 1.0])
  single = schedule(t.astype(jnp.float32))
  assert single.dtype == jnp.float32
  np.testing.assert_allclose(single, schedule(t), rtol=2e-5)
  np.testing.assert_allclose(single[np.array([0, -1])], [13.3, -20.0], rtol=1e-5)
  alpha = jax.nn.sigmoid(0.5 * schedule(jnp.linspace(0.0, 1.0, 5)))
  np.testing.assert_allclose(np.diff(alpha**(1 / 3), 2), 0.0, atol=1e-12)


@pytest.mark.long
def test_sums_are_over_the_data():
  loss, terms = flow_matching.objective(
      oracles.Gaussian(0.0, 1.0), RectifiedFlow(), jnp.ones((2, 3, 2)), jnp.array([0.3, 0.6]),
      keys(2), eps=jnp.ones((2, 3, 2)))
  assert loss.shape == terms['eps_error'].shape == (2,)
  assert sum_over_data(jnp.ones((2, 3, 2)))[0] == 6


@pytest.mark.long
def test_bits_of_a_flow_with_k_draws_of_dequantisation_fall_towards_the_probability_of_the_bin():
  """Four bins of N(.1, .6^2), known by Phi: K = 1 costs what a uniform y costs, K = 32 little."""
  levels, mean, std, n = 4, 0.1, 0.6, 400
  coding = Pixels(levels)
  process = GaussianProcess(schedules.Polynomial(1.0, 20.0, -25.0), flow)
  model = Model(oracles.Gaussian(mean, std), process, coding.log_prob, coding.encode, coding.decode,
                lambda batch: None, (1,))
  batch = {'image': (jnp.arange(n) % levels)[:, None]}
  centres = coding.encode(jnp.arange(levels))
  edges = stats.norm(mean, std).cdf(np.append(centres - 1 / levels, 1.0))
  exact = -np.log(np.diff(edges)).mean()
  # E of -log p(y) + log q over y uniform in a bin of half-width 1 / levels.
  spread = (np.square(centres - mean) + 1 / (3 * levels**2)) / (2 * std**2)
  one = np.mean(spread + np.log(std * np.sqrt(2 * np.pi))) + np.log(levels / 2)

  def nats(k):
    estimate = ode.estimator(dequantisers.uniform(levels), importance=k, steps=20, probe='exact')
    return np.asarray(jax.jit(lambda keys: estimate(model, batch, keys)['nats'])(keys(n)))
  of_one, of_many = nats(1), nats(32)
  standard_error = lambda u: 4 * u.reshape(-1, levels).mean(1).std() / (n / levels)**0.5
  assert abs(of_one.mean() - one) < standard_error(of_one) + 1e-4
  assert abs(of_many.mean() - exact) < standard_error(of_many) + (one - exact) / 16
  assert one > exact + 0.02
