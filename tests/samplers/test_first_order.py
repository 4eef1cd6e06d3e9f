"""First-order and Euler samplers, against exact kernels, spreads and published tables.

On Gaussian data every step is affine, z_s = gain z_t + offset + std noise, so three evaluations
give its kernel, and var_s = gain^2 var_t + std^2 the spread of the samples without sampling.
"""
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import guidance, oracles, processes, random, schedules
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess, flow, from_alpha_sigma, learned_share, sub_vp, ve, vp
from vdm_jax.samplers import ancestral, ddim, encode, sample
from vdm_jax.samplers.euler import euler, euler_maruyama, reverse_diffusion
from vdm_jax.typing import Estimate

pytestmark = pytest.mark.usefixtures('x64')

fixed_large = functools.partial(ancestral, share=1.0)
between = functools.partial(ancestral, share=0.4)
reverse_flow = functools.partial(reverse_diffusion, noise=False)

STOCHASTIC = {'fixed_small': ancestral, 'between': between, 'fixed_large': fixed_large,
              'euler_maruyama': euler_maruyama, 'reverse_diffusion': reverse_diffusion}
FLOWS = {'euler': euler, 'reverse_flow': reverse_flow, 'ddim': ddim}
NEW = [between, fixed_large, euler, euler_maruyama, reverse_diffusion]

OFFICIAL = GaussianProcess(schedules.Linear(13.3, -5.0))
RECTIFIED = from_alpha_sigma(lambda t: 1.0 - t, lambda t: t)
ZERO_TERMINAL = from_alpha_sigma(lambda t: jnp.cos(0.5 * jnp.pi * t),
                                 lambda t: jnp.sin(0.5 * jnp.pi * t))
CURVES = {curve.__name__: GaussianProcess(schedules.Linear(6.0, -4.0), curve)
          for curve in (vp, ve, flow, sub_vp)}
PROCESSES = {**CURVES, 'rectified': RECTIFIED, 'zero_terminal': ZERO_TERMINAL}
DATA = oracles.Gaussian(0.7, 0.4)


def affine(make, denoise, process, t, s):
  """(gain, offset, std) of the steps t -> s, [N, 3]: from z_t = 0, 1, 0 with the draws 0, 0, 1."""
  draws = jnp.array([[0.0], [0.0], [1.0]])
  with (mock.patch.object(random, 'normal', lambda keys, like: draws),
        mock.patch.object(random, 'stream', lambda keys, name: keys)):
    sampler = make(denoise, process)
    step = lambda t, s: sampler.step(None, jnp.array([[0.0], [1.0], [0.0]]), t, s, None)
    z = jax.vmap(step)(t, s)[..., 0]
  return jnp.stack([z[:, 1] - z[:, 0], z[:, 0], z[:, 2] - z[:, 0]], axis=1)


SHORT = np.array([4e-3, 2e-3, 1e-3])
LENGTHS = [40, 80, 160, 320]


@functools.cache
def kernels(make):
  """{process: (gain, offset, std)} of steps t -> s: those of SHORT, then all grids'.  [N, 3]."""
  grids = [np.linspace(1.0, 0.0, n + 1) for n in LENGTHS]
  t = np.concatenate([np.full(3, 0.55), *(g[:-1] for g in grids)])
  s = np.concatenate([0.55 - SHORT, *(g[1:] for g in grids)])
  found = jax.jit(lambda t, s: {name: affine(make, DATA, process, t, s)
                                for name, process in PROCESSES.items()})(t, s)
  return jax.tree.map(np.asarray, found)


def exact_kernel(data, process, t, s):
  """Gain, offset and standard deviation of q(z_s | z_t) for Gaussian data, by Bayes' rule."""
  at_t, at_s = process(t), process(s)
  a, b = at_t.alpha / at_s.alpha, at_t.sigma**2 * processes.tau(at_t, at_s)  # of q(z_t | z_s)
  before = (at_s.alpha * data.std)**2 + at_s.sigma**2
  gain = a * before / (a**2 * before + b)
  return (gain, at_s.alpha * data.mean - gain * at_t.alpha * data.mean,
          jnp.sqrt(before * b / (a**2 * before + b)))


@functools.cache
def known():
  """{process: (exact kernels of SHORT [3, 3], mean and variance of z_1 [2], of z_0 [2])}."""
  def moments(process, t):
    level = process(jnp.asarray(t))
    return jnp.stack([level.alpha * 0.7, (level.alpha * 0.4)**2 + level.sigma**2])

  found = jax.jit(lambda s: {
      name: (jnp.stack(exact_kernel(DATA, process, jnp.full_like(s, 0.55), s), axis=1),
             moments(process, 1.0), moments(process, 0.0))
      for name, process in PROCESSES.items()})(0.55 - SHORT)
  return jax.tree.map(np.asarray, found)


@pytest.mark.long
@pytest.mark.parametrize('make', STOCHASTIC.values(), ids=STOCHASTIC)
def test_a_short_step_draws_from_the_exact_reverse_kernel(make):
  """Gain, offset and variance are wrong by O(h^2) on every curve, so the chain by O(h)."""
  for name, found in kernels(make).items():
    got, exact = found[:3].copy(), known()[name][0].copy()
    got[:, 2], exact[:, 2] = got[:, 2]**2, exact[:, 2]**2
    for wrong in np.abs(got - exact).T:
      assert wrong.max() < 1e-12 or np.log2(wrong[-2] / wrong[-1]) > 1.9, name


def spread(make, name):
  """Mean and variance at t = 0, [2, len(LENGTHS)], of the chains that start as they should."""
  ends = []
  for steps in np.split(kernels(make)[name][3:], np.cumsum(LENGTHS)[:-1]):
    mean, variance = known()[name][1]
    for gain, offset, std in steps:
      mean, variance = gain * mean + offset, gain**2 * variance + std**2
    ends.append((mean, variance))
  return np.array(ends).T


def error(make, name):
  """Of the mean and of the variance at t = 0: [2, len(LENGTHS)]."""
  return np.abs(spread(make, name) - known()[name][2][:, None])


@pytest.mark.long
@pytest.mark.parametrize('kind', [*STOCHASTIC, *FLOWS])
def test_mean_and_variance_converge_with_order_one_on_every_process(kind):
  """Also from alpha = 0 to sigma = 0; only the flow of `reverse_diffusion` is refused there."""
  for name in [*CURVES, *([] if kind == 'reverse_flow' else ['rectified', 'zero_terminal'])]:
    for wrong in error({**STOCHASTIC, **FLOWS}[kind], name):
      assert wrong[-1] < 0.01, name
      assert wrong.max() < 1e-12 or np.log2(wrong[-2] / wrong[-1]) > 0.9, name


@pytest.mark.long
def test_reverse_diffusion_without_noise_does_not_converge_from_alpha_zero_and_says_so():
  keys, z = jax.random.split(jax.random.key(0), 2), jnp.ones((2, 1))
  for name in ('rectified', 'zero_terminal'):
    assert error(reverse_flow, name)[1].min() > 0.4  # of a variance of 0.16
    with pytest.raises(InputError, match='begin the grid at a smaller t'):
      sample(reverse_flow(DATA, PROCESSES[name]), keys, z, np.linspace(1.0, 0.0, 5))
  got = sample(reverse_flow(DATA, RECTIFIED), keys, z, np.linspace(0.9, 0.0, 5))
  assert np.isfinite(got).all()


@pytest.mark.long
def test_a_gradient_multiplies_the_kernel_by_the_exponential_of_its_slope():
  """N(z_s; m, v) exp(g z_s) is N(m + v g, v) up to a constant, for every variance v.

  A classifier of the same slope moves the mean by (alpha_s / alpha_t) beta g.
  """
  process, t, s, g = OFFICIAL, np.array([0.9, 0.5]), np.array([0.6, 0.45]), 0.7
  slope = lambda z, level, cond=None: jnp.full_like(z, g)
  at_t, at_s = process(t), process(s)
  beta = at_t.sigma**2 * processes.tau(at_t, at_s)
  for share in (0.0, 0.4, 1.0):
    make = functools.partial(ancestral, share=share)
    gain, offset, std = affine(make, DATA, process, t, s).T
    found = affine(functools.partial(make, gradient=slope), DATA, process, t, s).T
    np.testing.assert_allclose(found, [gain, offset + std**2 * g, std], rtol=1e-9)
    found = affine(make, guidance.classifier(DATA, slope), process, t, s).T
    moved = at_s.alpha / at_t.alpha * beta * g
    np.testing.assert_allclose(found, [gain, offset + moved, std], rtol=1e-9)


# ---------------------------------------------------------- the variances


@pytest.mark.long
def test_the_two_variances_on_the_chain_of_ddpm_are_its_beta_and_beta_tilde():
  """Ho et al. (2020), section 4 (beta from 1e-4 to 0.02) and eq. 7; no noise at its last step."""
  beta = np.linspace(1e-4, 0.02, 1000)
  squared = np.append(1.0, np.cumprod(1.0 - beta))
  at = np.linspace(0.0, 1.0, 1001)
  table = lambda values: lambda t: jnp.interp(t, at, values)
  process = from_alpha_sigma(table(np.sqrt(squared)), table(np.sqrt(1.0 - squared)))
  tilde = (1.0 - squared[:-1]) / (1.0 - squared[1:]) * beta

  @jax.jit
  def variances(t, s):
    return [affine(make, DATA, process, t, s)[:, 2]**2
            for make in (ancestral, between, fixed_large)]

  small, middle, large = variances(at[1:], at[:-1])
  np.testing.assert_allclose(large[1:], beta[1:], rtol=1e-9)
  np.testing.assert_allclose(small[1:], tilde[1:], rtol=1e-9)
  # Nichol and Dhariwal (2021), eq. 15, at v = 0.4.
  np.testing.assert_allclose(np.log(middle[1:]), 0.4 * np.log(beta[1:]) + 0.6 * np.log(tilde[1:]),
                             rtol=1e-9)
  assert small[0] == middle[0] == large[0] == 0.0


HALF = oracles.Gaussian(0.0, 0.5)


def bounds(make, lengths, denoiser=lambda s: HALF):
  """sum of E KL(q(z_s | z_t, x) || the sampler's kernel), nats, for x ~ N(0, 1/4), [lengths].

  denoiser: s -> the denoiser of the step that ends at s.
  """
  def divergence(t, s):
    gain, _, std = affine(make, denoiser(s), OFFICIAL, t[None], s[None])[0]
    at_t, at_s = OFFICIAL(t), OFFICIAL(s)
    of_z, own = processes.posterior(jnp.ones(1), jnp.zeros(1), at_t, at_s)
    of_x, _ = processes.posterior(jnp.zeros(1), jnp.ones(1), at_t, at_s)
    # The difference of the means, by x and eps: z_t = alpha x + sigma eps.
    apart = ((of_z - gain) * at_t.alpha + of_x)**2 * 0.25 + ((of_z - gain) * at_t.sigma)**2
    return (jnp.log(std / own) + 0.5 * (own**2 + apart) / std**2 - 0.5)[0]

  grids = [np.linspace(1.0, 0.0, n + 1) for n in lengths]
  nats = jax.jit(jax.vmap(divergence))(np.concatenate([g[:-1] for g in grids]),
                                       np.concatenate([g[1:] for g in grids]))
  return [np.sum(part) for part in np.split(np.asarray(nats), np.cumsum(lengths)[:-1])]


def test_the_bound_of_the_chain_that_is_sampled_is_the_known_one_for_either_variance():
  np.testing.assert_allclose(bounds(ancestral, [10, 100]), [15.727564, 6.485690], atol=1e-6)
  np.testing.assert_allclose(bounds(fixed_large, [10, 100]), [6.072638, 5.969983], atol=1e-6)


def test_with_the_best_learned_variance_the_chain_of_gaussian_data_is_exact():
  """However few the steps, the bound is 1/2 log((1 + s^2 SNR_0) / (1 + s^2 SNR_1))."""
  def denoiser(s):
    def denoise(z, level, cond=None):
      at_s = OFFICIAL(s)
      new = processes.tau(level, at_s)
      low, high = jnp.log(at_s.sigma**2 * new), jnp.log(level.sigma**2 * new)
      best = 2.0 * jnp.log(exact_kernel(HALF, OFFICIAL, level.t, s)[2])
      head = 2.0 * (best - low) / (high - low) - 1.0
      return HALF(z, level)._replace(extra={'variance': jnp.full_like(z, head)})
    return denoise

  got = bounds(functools.partial(ancestral, share=learned_share), [1, 2, 5], denoiser)
  np.testing.assert_allclose(got, 5.956014634, atol=1e-8)


# -------------------------------------------------------------- as wholes


@pytest.mark.long
def test_encoding_by_ddim_is_inverted_up_to_an_error_that_halves_with_the_steps():
  process = PROCESSES['vp']
  x = jnp.linspace(-0.5, 1.5, 7)[:, None]
  keys = jax.random.split(jax.random.key(0), 7)
  lengths = [160, 320, 640]
  pad = lambda grid: jnp.pad(grid, (0, 640 - len(grid) + 1), mode='edge')
  up = jnp.stack([pad(jnp.linspace(0.0, 1.0, n + 1)) for n in lengths])
  down = jnp.stack([pad(jnp.linspace(1.0, 0.0, n + 1)) for n in lengths])

  @jax.jit
  @jax.vmap
  def there_and_back(up, down):
    sampler = ddim(DATA, process)
    return sample(sampler, keys, encode(sampler, keys, x, up), down)

  wrong = np.sqrt(np.mean((there_and_back(up, down) - x)**2, axis=(1, 2)))
  np.testing.assert_allclose(np.log2(wrong[:-1] / wrong[1:]), 1.0, atol=0.1)
  assert wrong[-1] < 0.02


@pytest.mark.long
@pytest.mark.parametrize('kind', ['between', 'euler_maruyama', 'reverse_diffusion'])
def test_the_samples_spread_as_the_kernels_say(kind):
  """The library's own draws are new at every step: four standard errors of 20000 samples."""
  make, n = STOCHASTIC[kind], 20_000
  start, spread_at_start = known()['flow'][1]

  @jax.jit
  def run():
    keys = jax.random.split(jax.random.key(2), n)
    z = random.normal(random.stream(keys, 'z_1'), jnp.zeros((n, 1)))
    return sample(make(DATA, PROCESSES['flow']), keys, start + spread_at_start**0.5 * z,
                  jnp.linspace(1.0, 0.0, 41))

  got = run()
  mean, variance = spread(make, 'flow')[:, 0]
  np.testing.assert_allclose(np.mean(got), mean, atol=4 * (variance / n)**0.5)
  np.testing.assert_allclose(np.var(got), variance, rtol=4 * (2 / n)**0.5)


@pytest.mark.first(1)
@pytest.mark.parametrize('make', NEW)
def test_where_sigma_vanishes_a_denoiser_is_not_used(make):
  """The denoiser is NaN at sigma = 0, where the grid is padded too; samples come near the data."""
  data = jnp.array([[-2.0], [0.5], [3.0]])

  def denoise(z, level, cond=None):
    return jax.tree.map(lambda u: jnp.where(level.sigma > 0.0, u, jnp.nan),
                        oracles.Empirical(data)(z, level))

  z = jnp.linspace(-1.5, 1.5, 6)[:, None]
  keys = jax.random.split(jax.random.key(0), 6)
  sampler = make(denoise, RECTIFIED)
  times = jnp.pad(jnp.linspace(1.0, 0.0, 129), (0, 3))
  got = jax.jit(lambda: sample(sampler, keys, z, times))()
  assert np.abs(got[:, :, None] - data[:, 0]).min(axis=-1).max() < 0.05
  assert len(np.unique(np.round(got, 1))) > 1


@pytest.mark.first(2)
@pytest.mark.parametrize('make', [*NEW, reverse_flow])
def test_float32_stays_float32_and_near_float64_with_one_evaluation_a_step(make):
  asked = []

  def denoise(z, level, cond=None):
    asked.append(1)
    return DATA(z, level)

  def run():
    noise = jnp.linspace(-1.0, 1.0, 5)[:, None]
    process = GaussianProcess(schedules.Linear(6.0, -4.0))
    keys = jax.random.split(jax.random.key(0), 5)
    with mock.patch.object(random, 'normal', lambda keys, like: noise.astype(like.dtype)):
      sampler = make(denoise, process)
      return sampler, jax.jit(lambda: sample(sampler, keys, 2.0 * noise,
                                             jnp.linspace(1.0, 0.0, 101)))()

  with jax.enable_x64(False):
    sampler, single = run()
  assert single.dtype == jnp.float32
  assert len(asked) == sampler.evaluations == 1  # traced once
  np.testing.assert_allclose(single, run()[1], atol=2e-5)


def test_a_variance_may_differ_from_element_to_element():
  head = jnp.array([[-1.0, 1.0]])
  blind = lambda z, level: Estimate(0.0 * z, 0.0 * z, {'variance': head})
  keys = jax.random.split(jax.random.key(0), 1)

  @jax.jit
  def stds():
    step = lambda v: ancestral(blind, OFFICIAL, v).step(keys, jnp.zeros((1, 2)), 0.8, 0.6, None)[0]
    return step(learned_share), step(0.0), step(1.0)

  with mock.patch.object(random, 'normal', lambda keys, like: jnp.ones_like(like)):
    mixed, small, large = stds()
  np.testing.assert_allclose(mixed, [small[0], large[1]], rtol=1e-12)
  assert mixed[1] > 1.1 * mixed[0]
