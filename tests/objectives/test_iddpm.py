"""Learned variances: a network's further outputs, the best v, and what the hybrid leaves alone."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import denoisers, oracles, schedules, targets
from vdm_jax.nn.unets.vdm import UNet
from vdm_jax.objectives import iddpm, vlb
from vdm_jax.processes import GaussianProcess, posterior
from vdm_jax.typing import Estimate

STD = 0.5
CONTINUOUS = 5.956014634  # nats: with the true variances of p(z_s | z_t), for any number of steps
PROCESS = GaussianProcess(schedules.Linear(13.3, -5.0))
NET = {'features': 16, 'blocks': 0, 'groups': 4, 'fourier': ()}


def nothing(data, z, level):
  return jnp.zeros(len(z))


# ------------------------------------------------------- further outputs


@pytest.mark.long
def test_further_outputs_leave_the_first_alone_and_have_no_z_in_them():
  z = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
  logsnr = jnp.array([3.0, -2.0])
  plain, headed = UNet(**NET), UNet(**NET, heads=2)
  shapes = jax.eval_shape(headed.init, jax.random.key(1), z, logsnr)['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda u: 0.1 * rng.normal(size=u.shape).astype(np.float32), shapes)
  first = params | {'conv_out': jax.tree.map(lambda u: u[..., :3], params['conv_out'])}
  muted = params | {'conv_out': jax.tree.map(np.zeros_like, params['conv_out'])}
  run = jax.jit(lambda params: headed.apply({'params': params}, z, logsnr))
  outputs = run(params)
  alone = jax.jit(lambda params: plain.apply({'params': params}, z, logsnr))(first)
  np.testing.assert_allclose(outputs[..., :3], alone, rtol=1e-5, atol=1e-5)
  assert np.abs(outputs[..., 3:]).max() > 0.01
  np.testing.assert_array_equal(run(muted), np.concatenate([z, np.zeros((2, 4, 4, 6))], axis=-1))


def test_a_denoiser_hands_on_the_further_outputs_by_name():
  z = jnp.arange(12.0).reshape(2, 2, 3)
  net = lambda z, logsnr, cond=None: jnp.concatenate([0.1 * z, 2.0 * z, 3.0 * z], axis=-1)
  level = PROCESS(jnp.array([0.3, 0.7]))
  estimate = denoisers.denoiser(net, targets.eps, heads=('variance', 'w'))(z, level)
  np.testing.assert_allclose(estimate.eps, 0.1 * z, rtol=1e-6)
  assert estimate.extra.keys() == {'variance', 'w'}
  np.testing.assert_array_equal(estimate.extra['variance'], 2.0 * z)
  np.testing.assert_array_equal(estimate.extra['w'], 3.0 * z)
  message = r"returns \[2, 2, 9\] .* heads = \('variance',\), .*\[2, 2, 6\]"
  with pytest.raises(ValueError, match=message):
    denoisers.denoiser(net, targets.eps, heads=('variance',))(z, level)


# ------------------------------------------------------------ variances


def test_v_of_0_and_1_are_the_variances_of_the_posterior_and_of_the_forward_step(x64):
  t = jnp.array([0.1, 0.5, 0.95])
  z = jnp.zeros((3, 2))

  @jax.jit
  def values():
    at_t, at_s = PROCESS(t), PROCESS(t - 0.1)
    variance = lambda u: vlb.learned(Estimate(z, z, {'variance': jnp.full_like(z, u)}),
                                     at_t.expand(z), at_s.expand(z))
    return at_t, at_s, posterior(z, z, at_t, at_s)[1], variance(-1.0), variance(1.0)

  at_t, at_s, std, lowest, highest = values()
  np.testing.assert_allclose(lowest, np.broadcast_to(std**2, z.shape), rtol=1e-12)
  # z_t = (alpha_t / alpha_s) z_s + noise of the variance that is missing.
  missing = at_t.sigma**2 - (at_t.alpha / at_s.alpha)**2 * at_s.sigma**2
  np.testing.assert_allclose(highest, np.broadcast_to(missing[:, None], z.shape), rtol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize('steps', [1, 4, 25])
def test_the_best_v_on_gaussian_data_is_that_of_the_true_variance(steps, x64):
  """p(z_s | z_t) is normal there: Bayes' rule on the two marginals and the forward step.

  With it the bound has its limit for every number of steps, 1 too.
  """
  sign = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
  t = jnp.tile((jnp.arange(steps) + 0.5) / steps, 4)
  sign = jnp.asarray(np.repeat(sign, steps, axis=0))
  x, eps = STD * sign[:, :1], sign[:, 1:]

  def best(level):
    before = PROCESS(level.t - 1.0 / steps)
    carried = level.alpha / before.alpha
    forward = level.sigma**2 - carried**2 * before.sigma**2
    at_s = before.alpha**2 * STD**2 + before.sigma**2
    truth = 1.0 / (1.0 / at_s + carried**2 / forward)
    small = 1.0 / (1.0 / before.sigma**2 + carried**2 / forward)
    return jnp.log(truth / small) / jnp.log(forward / small)

  def mean(moved):
    def denoise(z, level, cond=None):
      u = 2.0 * best(level)[:, None] - 1.0 + moved
      return oracles.Gaussian(0.0, STD)(z, level)._replace(extra={'variance': u})
    _, terms = vlb.discrete(denoise, PROCESS, x, t, None, steps=steps, data=x, decoder=nothing,
                            variance=vlb.learned, eps=eps, eps_0=eps)
    return jnp.mean(terms['diffusion'])

  value, slope = jax.jit(jax.value_and_grad(mean))(0.0)
  np.testing.assert_allclose(value, CONTINUOUS, rtol=1e-8)
  np.testing.assert_allclose(slope, 0.0, atol=1e-7)
  assert jax.jit(mean)(0.3) > value + 1e-4


# --------------------------------------------------------------- hybrid


def arguments(n=64):
  key_x, key = jax.random.split(jax.random.key(3))
  x = STD * jax.random.normal(key_x, (n, 3))
  t = (jnp.arange(n) + 0.5) / n
  return PROCESS, x, t, jax.random.split(key, n)


def denoiser(params):
  """All of a network that matters here: `mean` moves the estimate alone, `head` the variance."""
  def net(z, logsnr, cond=None):
    share = jax.nn.sigmoid(logsnr)[:, None]
    return jnp.concatenate([z * (1.0 - params['mean'] * share), params['head'] * jnp.tanh(z)], -1)
  return denoisers.denoiser(net, targets.eps, heads=('variance',))


@pytest.mark.long
def test_the_bound_in_the_hybrid_trains_the_variance_alone():
  process, x, t, keys = arguments()
  given = {'steps': 20, 'data': x, 'decoder': nothing}
  params = {'mean': jnp.array(0.3), 'head': jnp.array(0.2)}

  def hybrid(params, weight):
    return jnp.mean(iddpm.hybrid(denoiser(params), process, x, t, keys, weight=weight, **given)[0])

  def bound(params):
    return jnp.mean(vlb.discrete(denoiser(params), process, x, t, keys, variance=vlb.learned,
                                 **given)[0])

  @jax.jit
  def gradients():
    return jax.grad(hybrid)(params, 0.0), jax.grad(hybrid)(params, 0.5), jax.grad(bound)(params)

  simple, both, alone = gradients()
  assert simple['head'] == 0.0
  assert both['mean'] == simple['mean'] != 0.0
  assert abs(alone['mean']) > 1.0
  np.testing.assert_allclose(both['head'], 0.5 * alone['head'], rtol=1e-5)
  assert abs(alone['head']) > 0.01


@pytest.mark.long
def test_the_hybrid_is_the_sum_of_two_losses_at_the_same_draws(x64):
  process, x, t, keys = arguments()
  denoise = denoiser({'mean': 0.3, 'head': 0.2})
  given = {'steps': 20, 'data': x, 'decoder': nothing}

  @jax.jit
  def values():
    return (iddpm.hybrid(denoise, process, x, t, keys, **given),
            vlb.discrete(denoise, process, x, t, keys, variance=vlb.learned, **given),
            vlb.discrete(denoise, process, x, t, keys, **given))

  (nats, terms), (bound, parts), (_, small) = values()
  np.testing.assert_allclose(terms['vlb'], bound, rtol=1e-12)
  for name, value in parts.items():
    np.testing.assert_allclose(terms[name], value, rtol=1e-12)
  np.testing.assert_allclose(nats, terms['eps_error'] + 0.001 * bound, rtol=1e-12)
  # With the posterior's own variance the chain's term is T/2 expm1(dlogsnr) |eps - eps_hat|^2.
  np.testing.assert_allclose(terms['eps_error'],
                             small['diffusion'] / (10 * np.expm1(18.3 / 20)), rtol=1e-7)
