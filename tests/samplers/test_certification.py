"""The certifier: what is right passes, and what is wrong in a known way does not."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vdm_jax import certification, random
from vdm_jax.certification import certify, exact
from vdm_jax.errors import InputError
from vdm_jax.processes import tau
from vdm_jax.samplers import ancestral, ddim, heun, sample
from vdm_jax.samplers.first_order import transition
from vdm_jax.samplers.multistep import Coefficients, multistep, steps_back
from vdm_jax.typing import Sampler


def passed(rows):
  return {(row.curve, row.model): row.passed for row in rows}


def two_step(ratio):
  """DPM-Solver++ 2M: x_hat + (h / 2 r) (x_hat - x_hat_before) in place of x_hat, r = h_-1 / h."""
  def make(denoise, process):
    def plan(times):
      level = process(times)
      half = 0.5 * level.logsnr
      h = jnp.diff(half)
      finite = jnp.isfinite(h) & (jnp.arange(len(h)) > 0)
      r = steps_back(h, 1) / h if ratio else jnp.ones_like(h)
      grows = -level.alpha[1:] * jnp.expm1(-jnp.where(finite, h, 0.0))
      return Coefficients(jnp.where(finite & jnp.isfinite(r), -0.5 * grows / r, 0.0)[:, None])
    return multistep(denoise, process, plan, depth=2, of='x')
  return make


@pytest.mark.long
def test_a_sampler_with_its_true_order_is_certified_on_every_curve_and_model():
  for make, order in ((ddim, 1), (heun, 2), (two_step(ratio=True), 2)):
    rows = certify(make, order)
    assert len(rows) == len(certification.CURVES) * len(certification.MODELS)
    assert all(passed(rows).values()), rows
    slopes = [row.measured_order for row in rows
              if row.curve != 'ends' and row.model == 'mixture']
    np.testing.assert_allclose(slopes, order, atol=0.15)


@pytest.mark.long
def test_a_claim_of_too_high_an_order_fails():
  assert not any(passed(certify(ddim, order=2, curves=['vp'])).values())


@pytest.mark.long
def test_ddim_with_the_alpha_of_the_step_before_fails():
  def wrong(denoise, process):
    def step(keys, z, t, s, _):
      at_t, at_s = process(t), process(s)
      return transition(denoise(z, at_t), at_t, at_s._replace(alpha=at_t.alpha))
    return Sampler(step)
  rows = certify(wrong, order=1)
  # Where alpha never changes there is nothing to be wrong.
  assert not any(ok for (curve, _), ok in passed(rows).items() if curve != 've')


@pytest.mark.long
def test_a_two_step_method_that_forgets_the_ratio_of_its_steps_fails():
  assert not any(ok for (curve, _), ok in passed(certify(two_step(ratio=False), 2)).items()
                 if curve != 'ends')


@pytest.mark.long
def test_ancestral_sampling_is_certified_by_its_moments_and_half_its_noise_is_not():
  some = {'curves': ['vp', 'ends']}
  assert all(passed(certify(ancestral, **some)).values())

  def half(denoise, process):
    def step(keys, z, t, s, _):
      at_t, at_s = process(t), process(s)
      x, eps, _ = denoise(z, at_t)
      share = tau(at_t, at_s)
      noise = 0.5 * random.normal(random.stream(keys, 'noise'), z)
      return at_s.alpha * x + at_s.sigma * (jnp.sqrt(1.0 - share) * eps + jnp.sqrt(share) * noise)
    return Sampler(step)
  assert not any(passed(certify(half, **some)).values())


def langevin(noise):
  """Unadjusted Langevin dynamics: twelve steps at each level, of a tenth of its variance."""
  def make(denoise, process):
    def step(keys, z, t, s, _):
      at_s = process(s)
      z = z * (at_s.alpha / process(t).alpha)
      size = 0.05 * at_s.sigma**2

      def move(z, i):
        score = -denoise(z, at_s).eps / at_s.sigma
        fresh = random.normal(jax.vmap(jax.random.fold_in, (0, None))(keys, i), z)
        return z + size * score + noise * jnp.sqrt(2.0 * size) * fresh, None
      return jax.lax.scan(move, z, jnp.arange(12))[0]
    return Sampler(step, evaluations=12)
  return make


@pytest.mark.long
def test_langevin_dynamics_is_certified_and_with_half_its_noise_is_not():
  some = {'curves': ['ve'], 'models': ['mixture'], 'steps': [60], 'tolerance': 0.05}
  assert all(passed(certify(langevin(1.0), **some)).values())
  assert not any(passed(certify(langevin(0.5), **some)).values())


@pytest.mark.long
def test_a_miscounted_evaluation_fails():
  wrong = lambda denoise, process: heun(denoise, process)._replace(evaluations=1)
  assert not any(passed(certify(wrong, 2, curves=['vp'])).values())
  assert certification.count_evaluations(heun, steps=5) == 10


def test_of_the_branches_of_a_condition_the_one_with_most_calls_counts():
  def longer_but_at_the_end(denoise, process):
    two, one = heun(denoise, process), ddim(denoise, process)

    def step(keys, z, t, s, _):
      return jax.lax.cond(s > 0.0, lambda: two.step(keys, z, t, s, None),
                          lambda: one.step(keys, z, t, s, None))
    return Sampler(step, evaluations=2)
  assert certification.count_evaluations(longer_but_at_the_end, steps=5) == 10
  assert certification.count_evaluations(longer_but_at_the_end, steps=5, branch=min) == 5


@pytest.mark.long
def test_a_network_that_is_used_at_sigma_zero_fails_at_the_ends():
  def midpoint_of_both_ends(denoise, process):
    def step(keys, z, t, s, _):
      at_t, at_s = process(t), process(s)
      first = transition(denoise(z, at_t), at_t, at_s)
      x, eps, _ = denoise(first, at_s)
      return first + 0.0 * x
    return Sampler(step, evaluations=2)
  got = passed(certify(midpoint_of_both_ends, 1, models=['gaussian']))
  assert not got.pop(('ends', 'gaussian'))
  assert all(got.values())


@pytest.mark.long
def test_equal_samplers_are_equal_and_others_are_not():
  eta = functools.partial(ddim, eta=1.0)
  assert all(row.passed for row in certification.equality('eta 1 = ancestral', [ancestral, eta]))
  assert not any(row.passed for row in certification.equality('?', [ddim, heun]))


def test_the_exact_quantiles_and_moments_are_those_of_the_marginal():
  alpha, sigma = 0.6, 0.8
  p = np.array([0.1, 0.5, 0.9])
  one = certification.MODELS['gaussian']
  expected = stats.norm.ppf(p, alpha * 0.3, np.hypot(alpha * 0.7, sigma))
  np.testing.assert_allclose(certification.quantiles(p, one, alpha, sigma), expected, rtol=1e-10)
  rng = np.random.default_rng(0)
  two = certification.MODELS['mixture']
  pick = rng.random(400_000) < two.weights[0]
  u = rng.normal(np.where(pick, *two.means), np.hypot(np.where(pick, *two.stds), 0.5))
  mean, std, share = exact.moments(two, 0.5)
  assert abs(u.mean() - mean) < 4 * std / len(u)**0.5
  assert abs(u.std() - std) < 4 * std / (2 * len(u))**0.5
  assert abs((u > 0).mean() - share) < 4 * 0.5 / len(u)**0.5


def test_the_oracle_and_its_heads_are_those_of_a_numerical_integral():
  """E[x | z], E[eps | z], E[eps^2 | z] and q(z) over a fine grid of x."""
  data = certification.MODELS['mixture']
  with jax.enable_x64(True):
    z = np.array([[-0.7, 0.1, 0.9]])

    @jax.jit
    def look():
      level = exact.process_of(jnp.asarray(3))(jnp.asarray(0.6))
      oracle = certification.ExactDenoiser(data)
      return level, oracle(jnp.asarray(z), level), oracle.log_prob(jnp.asarray(z), level)
    level, got, density = look()
  x = np.linspace(-4.0, 4.0, 20_001)[:, None]
  alpha, sigma = float(level.alpha), float(level.sigma)
  joint = sum(w * stats.norm.pdf(x, m, s) for w, m, s in zip(*data, strict=True))
  joint = joint * stats.norm.pdf(z, alpha * x, sigma)
  eps = (z - alpha * x) / sigma
  mean = lambda u: np.sum(u * joint, axis=0) / np.sum(joint, axis=0)
  np.testing.assert_allclose(got.x[0], mean(x), atol=1e-9)
  np.testing.assert_allclose(got.eps[0], mean(eps), atol=1e-9)
  np.testing.assert_allclose(got.extra['eps_sq'][0], mean(eps**2), atol=1e-9)
  np.testing.assert_allclose(got.extra['residual_sq'][0], mean(eps**2) - mean(eps)**2, atol=1e-9)
  np.testing.assert_allclose(density[0], np.log(np.sum(joint, axis=0) * (x[1] - x[0])).sum(),
                             atol=1e-9)


@pytest.mark.long
def test_a_tolerance_that_has_no_effect_fails():
  """One hundred steps of DDIM, whatever the tolerance."""
  def make(tolerance):
    def of(denoise, process):
      inner = ddim(denoise, process)
      step = lambda keys, z, t, s, _: sample(inner, keys, z, jnp.linspace(t, s, 101))
      return Sampler(step, evaluations=None)
    return of
  rows = certification.certify_adaptive(make, curves=['vp'])
  assert not any(row.passed for row in rows)
  # With as many steps as the tolerance asks for, and no more of them needed than 1 / tolerance.
  steps = {1e-1: 11, 1e-2: 101, 1e-3: 1001}

  def right(tolerance):
    def of(denoise, process):
      inner = ddim(denoise, process)
      step = lambda keys, z, t, s, _: sample(inner, keys, z, jnp.linspace(t, s, steps[tolerance]))
      return Sampler(step, evaluations=None)
    return of
  rows = certification.certify_adaptive(right, curves=['vp'], tolerances=tuple(steps))
  assert all(row.passed for row in rows)


@pytest.mark.long
def test_what_an_oracle_supplies_is_exact():
  """E Var(x | z_t) of a Gaussian in closed form, of the mixture by a grid over x and z."""
  with jax.enable_x64(True):
    @jax.jit
    def look():
      level = exact.process_of(jnp.asarray(2))(jnp.array([0.2, 0.7]))
      return level, [certification.ExactDenoiser(data).mean_variance(level)
                     for data in certification.MODELS.values()]
    level, (one, two) = look()
  noise = np.asarray(level.sigma / level.alpha)
  np.testing.assert_allclose(one, 0.49 * noise**2 / (0.49 + noise**2), rtol=1e-10)
  x, u = np.linspace(-3.0, 3.0, 2001)[:, None], np.linspace(-12.0, 12.0, 3001)
  prior = sum(w * stats.norm.pdf(x, m, s)
              for w, m, s in zip(*certification.MODELS['mixture'], strict=True))
  for c, got in zip(noise, two, strict=True):
    joint = prior * stats.norm.pdf(u, x, c)
    mass = joint.sum(axis=0)
    variance = (x**2 * joint).sum(axis=0) / mass - ((x * joint).sum(axis=0) / mass)**2
    np.testing.assert_allclose(got, np.sum(variance * mass) / mass.sum(), rtol=1e-6)


@pytest.mark.long
def test_encoding_is_judged_by_the_flow_upwards():
  rows = certify(ddim, 1, up=True, curves=certification.FINITE)
  np.testing.assert_allclose([row.measured_order for row in rows], 1.0, atol=0.1)
  assert all(row.passed for row in rows)
  assert not any(row.passed for row in certify(ddim, 2, up=True, curves=['vp']))


@pytest.mark.parametrize('options', [{'curves': ['vpp']}, {'models': ['gauss']}])
def test_an_unknown_curve_or_model_is_named(options):
  with pytest.raises(InputError, match='choose one of'):
    certify(ddim, 1, **options)


def test_a_slope_takes_four_numbers_of_steps():
  with pytest.raises(InputError, match='four'):
    certify(ddim, 1, steps=(10, 20, 40))
