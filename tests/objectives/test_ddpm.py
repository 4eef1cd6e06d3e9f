"""L_simple and L of DDPM: means on oracles, minimisers, and a chain that is respaced."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import denoisers, inputs, oracles, schedules, targets
from vdm_jax.objectives import ddpm, iddpm, vlb
from vdm_jax.processes import GaussianProcess
from vdm_jax.schedules import TableSchedule

STD, STEPS = 0.5, 50
ORACLE = oracles.Gaussian(0.0, STD)
TABLE = TableSchedule.from_betas(schedules.linear_betas(STEPS, 1e-3, 0.2))
PROCESS = GaussianProcess(TABLE)


def alpha_bars():
  """alpha_i^2 of the chain, i = 1 ... T: Ho et al. (2020), eq. 4."""
  return np.cumprod(1.0 - np.linspace(1e-3, 0.2, STEPS))


def normal_density(data, mean, std):
  """log N(data; mean, std^2) [B], for data that are no pixels."""
  return jnp.sum(-0.5 * ((data - mean) / std)**2 - jnp.log(std) - 0.5 * np.log(2 * np.pi), axis=-1)


def four_points(t):
  """x = +-1/2 with eps = +-1 at every t [n]: they average what is quadratic in both exactly."""
  x = jnp.repeat(STD * jnp.array([1.0, 1.0, -1.0, -1.0]), len(t))[:, None]
  eps = jnp.repeat(jnp.array([1.0, -1.0, 1.0, -1.0]), len(t))[:, None]
  return x, jnp.tile(t, 4), eps


# ------------------------------------------------------------- on oracles


def simple_mean():
  """E|eps - eps_hat|^2 = the share of the data in the variance of z_i, over the steps."""
  signal = STD**2 * alpha_bars()
  return np.mean(signal / (signal + 1.0 - alpha_bars()))


def bound_mean(bars, steps):
  """L of the best denoiser with sigma_i^2 = beta_i, from the kernels of the chain, step by step.

  q(x_(i-1) | x_i, x) has the mean a x + ..., so the means are a (x_hat - x) apart.
  """
  before = np.concatenate([[1.0], bars[:-1]])
  betas = 1.0 - bars / before
  posterior = (1.0 - before) / (1.0 - bars) * betas
  of_x = np.sqrt(before) * betas / (1.0 - bars)
  uncertain = STD**2 * (1.0 - bars) / (STD**2 * bars + 1.0 - bars)  # Var(x | x_i)
  divergence = 0.5 * (np.log(betas[1:] / posterior[1:]) + posterior[1:] / betas[1:] - 1.0
                      + of_x[1:]**2 * uncertain[1:] / betas[1:])
  last = 0.5 * (bars[-1] * STD**2 - bars[-1] - np.log(1.0 - bars[-1]))
  # The first step's variance in the public code of DDPM is the posterior's of the second.
  first = 0.5 * np.log(2 * np.pi * posterior[1]) + 0.5 * uncertain[0] / posterior[1]
  assert len(divergence) == steps - 1
  return divergence.sum() + last + first


@pytest.mark.first(1)
@pytest.mark.parametrize('objective,mean', [
    (lambda *given: ddpm.simple(ORACLE, PROCESS, *given, steps=STEPS)[0], simple_mean),
    (lambda x, *given: ddpm.bound(ORACLE, PROCESS, x, *given, steps=STEPS, data=x,
                                  last=normal_density)[0], lambda: bound_mean(alpha_bars(), STEPS)),
], ids=['simple', 'bound'])
def test_the_mean_over_the_library_s_own_draws_is_the_sum_over_the_chain(objective, mean):
  n = 60_000

  @jax.jit
  def draws(key):
    key_x, key_t, key = jax.random.split(key, 3)
    x = STD * jax.random.normal(key_x, (n, 1))
    return objective(x, jax.random.uniform(key_t, (n,)), jax.random.split(key, n))

  each = np.asarray(draws(jax.random.key(0)), np.float64)
  error = each.std() / n**0.5
  assert abs(each.mean() - mean()) < 4 * error
  assert error < 0.1


@pytest.mark.long
def test_the_bound_of_the_chain_is_the_sum_of_its_divergences_to_the_digit(x64):
  x, t, eps = four_points((jnp.arange(STEPS) + 0.5) / STEPS)
  nats, _ = jax.jit(lambda: ddpm.bound(ORACLE, PROCESS, x, t, None, steps=STEPS, data=x,
                                       last=normal_density, eps=eps))()
  np.testing.assert_allclose(jnp.mean(nats), bound_mean(alpha_bars(), STEPS), rtol=1e-9)


def test_a_respaced_chain_keeps_its_alphas_and_has_a_bound_of_its_own(x64):
  """Nichol and Dhariwal (2021), section 4: betas from the kept alphas, network as it was."""
  kept = np.array([0, 1, 6, 17, 30, 41, 50])
  chain = TABLE.respaced(kept)
  x, t, eps = four_points((jnp.arange(6) + 0.5) / 6)

  @jax.jit
  def values():
    seen = []

    def denoise(z, level, cond=None):
      seen.append(inputs.chain(TABLE)(z, level)[1])
      return ORACLE(z, level)

    nats, _ = ddpm.bound(denoise, GaussianProcess(chain), x, t, None, steps=6, data=x,
                         last=normal_density, eps=eps)
    return nats, seen[0]

  nats, steps = values()
  np.testing.assert_allclose(jnp.mean(nats), bound_mean(alpha_bars()[kept[1:] - 1], 6), rtol=1e-9)
  # The number of the step in the whole chain, from zero on, is what the network reads.
  np.testing.assert_allclose(steps, np.tile(kept[1:] - 1.0, 4), atol=1e-9)


# -------------------------------------------------------------- minimisers


@pytest.mark.first(2)
@pytest.mark.parametrize('target', [targets.eps, targets.x, targets.v],
                         ids=['eps', 'x', 'v'])
@pytest.mark.parametrize('steps', [None, STEPS], ids=['continuous', 'discrete'])
def test_a_linear_network_that_minimises_l_simple_is_the_best_denoiser(steps, target, x64):
  """y_hat = c z with a c for each level: the loss is quadratic, one Newton step is its minimum."""
  n = 5
  x, t, eps = four_points(jnp.array([1.0, 10.0, 25.0, 40.0, 50.0]) / STEPS)

  def loss(c):
    net = lambda z, logsnr, cond=None: jnp.tile(c, 4)[:, None] * z
    return jnp.sum(ddpm.simple(denoisers.denoiser(net, target), PROCESS, x, t, None,
                               steps=steps, target=target, eps=eps)[0])

  @jax.jit
  def minimum():
    zero = jnp.zeros(n)
    c = -jax.grad(loss)(zero) / jnp.diag(jax.hessian(loss)(zero))
    level = PROCESS(t)
    a, b = target(level.expand(x))
    z = level.expand(x).alpha * x + level.expand(x).sigma * eps
    best = ORACLE(z, level)
    return jnp.tile(c, 4)[:, None] * z, a * best.x + b * best.eps

  np.testing.assert_allclose(*minimum(), rtol=1e-7, atol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize('steps', [None, STEPS], ids=['continuous', 'discrete'])
def test_l_simple_of_a_target_is_the_squared_error_of_that_target(steps, x64):
  """|eps - eps_hat|^2 = SNR |x - x_hat|^2, and on vp |v - v_hat|^2 = (SNR + 1) |x - x_hat|^2."""
  i, wrong = np.array([1, 10, 25, 50]), oracles.Gaussian(0.1, 0.8)
  x, t, eps = four_points(jnp.asarray(i / STEPS))
  of = lambda target: ddpm.simple(wrong, PROCESS, x, t, None, steps=steps, target=target,
                                  eps=eps)[0]
  bars = np.tile(alpha_bars()[i - 1], 4)
  z = np.sqrt(bars)[:, None] * x + np.sqrt(1.0 - bars)[:, None] * eps
  of_x = np.sum((x - wrong(z, PROCESS(t)).x)**2, axis=1)
  snr = bars / (1.0 - bars)
  for target, factor in ((targets.x, 1.0), (targets.eps, snr), (targets.v, snr + 1.0)):
    np.testing.assert_allclose(of(target), factor * of_x, rtol=1e-7)


# ------------------------------------------------- one evaluation for both


def arguments(n=16):
  x = STD * jax.random.normal(jax.random.key(0), (n, 3))
  t, keys = (jnp.arange(n) + 0.5) / n, jax.random.split(jax.random.key(1), n)
  return (PROCESS, x, t, keys), {'steps': STEPS, 'data': x, 'last': normal_density}


@pytest.mark.long
def test_the_objective_is_l_simple_beside_a_bound_that_trains_nothing():
  given, chain = arguments()

  @jax.jit
  def values(c):
    calls = []

    def denoiser(c):
      def net(z, logsnr, cond=None):
        calls.append(cond)
        return c * jnp.tanh(z)
      return denoisers.denoiser(net, targets.eps)

    both = lambda c: ddpm.objective(denoiser(c), *given, 'told', decoder=None, **chain)
    simple = lambda c: ddpm.simple(denoiser(c), *given, steps=STEPS)[0]
    slopes = [jax.jvp(lambda c, f=f: jnp.mean(f(c)), (c,), (1.0,))[1] for f in (
        lambda c: both(c)[1]['vlb'], lambda c: both(c)[0], simple)]
    assert calls[:2] == ['told', 'told'] and len(calls) == 3
    return both(c), simple(c), ddpm.bound(denoiser(c), *given, **chain)[0], slopes

  (loss, terms), simple, bound, (reported, trained, alone) = values(0.5)
  np.testing.assert_allclose(loss, simple, rtol=1e-6)
  np.testing.assert_allclose(terms['vlb'], bound, rtol=1e-5)
  assert reported == 0.0
  np.testing.assert_allclose(trained, alone, rtol=1e-5)
  assert abs(alone) > 0.1


@pytest.mark.long
def test_the_hybrid_of_weight_zero_is_l_simple(x64):
  given, chain = arguments()

  def denoise(z, level, cond=None):
    return ORACLE(z, level)._replace(extra={'variance': 0.3 * jnp.sin(z)})

  @jax.jit
  def values():
    return (iddpm.hybrid(denoise, *given, weight=0.0, decoder=None, **chain),
            ddpm.simple(denoise, *given, steps=STEPS)[0],
            vlb.discrete(denoise, *given, variance=vlb.learned, decoder=None, **chain)[0])

  (hybrid, terms), simple, bound = values()
  np.testing.assert_allclose(hybrid, simple, rtol=1e-12)
  np.testing.assert_allclose(terms['vlb'], bound, rtol=1e-12)
