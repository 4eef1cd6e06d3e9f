"""Denoiser -> Denoiser, against Gaussians, where guidance leads to another Gaussian."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from vdm_jax import guidance, oracles, schedules
from vdm_jax.processes import GaussianProcess, flow, from_alpha_sigma, sub_vp, ve, vp
from vdm_jax.samplers import ddim, grids, sample
from vdm_jax.samplers.runge_kutta import RK4, rho_rk
from vdm_jax.typing import Estimate

pytestmark = pytest.mark.usefixtures('x64')

CURVES = [vp, ve, flow, sub_vp]
WIDE = oracles.Gaussian(0.4, 1.5)  # whose x_hat leaves [-1, 1]
WRAPPERS = {
    'clip': guidance.clip,
    'dynamic': lambda d: guidance.dynamic_threshold(d, 90.0),
    'classifier_free': lambda d: guidance.classifier_free(d, oracles.Gaussian(0.0, 2.0), 3.0),
    'classifier': lambda d: guidance.classifier(
        d, lambda z, level, cond: level.expand(z).alpha * jnp.sin(z), 2.0),
    'known': lambda d: guidance.known(d, lambda cond: (0.3, 0.75)),
    'guided_between': lambda d: guidance.guided_between(d, guidance.clip(d), -2.0, 2.0),
}


def process_on(curve):
  return GaussianProcess(schedules.Linear(8.0, -8.0), curve)


def rectified_flow():
  return from_alpha_sigma(lambda t: 1.0 - t, lambda t: t)


def at(process, times=(0.9, 0.6, 0.5, 0.2, 0.1), shape=(3, 4), seed=0):
  """z of five examples at times of their own, and the level."""
  level = process(jnp.asarray(times))
  x, eps = jax.random.normal(jax.random.key(seed), (2, len(times), *shape))
  return level.expand(x).alpha * 1.5 * x + level.expand(x).sigma * eps, level


@pytest.mark.first(4)
@pytest.mark.parametrize('curve', CURVES)
@pytest.mark.parametrize('name', WRAPPERS)
def test_x_and_eps_change_together_and_add_up_to_z(name, curve):
  z, level = at(process_on(curve))
  plain, got = WIDE(z, level), WRAPPERS[name](WIDE)(z, level)
  wide = level.expand(z)
  np.testing.assert_allclose(wide.alpha * got.x + wide.sigma * got.eps, z, rtol=1e-9, atol=1e-9)
  assert np.abs(got.x - plain.x).max() > 0.1


@pytest.mark.parametrize('name', WRAPPERS)
def test_extra_goes_through(name):
  """`classifier_free` has two, and keeps that of the conditional model."""
  extra = {'variance': jnp.arange(5.0)}
  with_extra = lambda z, level, cond=None: WIDE(z, level)._replace(extra=extra)
  got = WRAPPERS[name](with_extra)(*at(process_on(vp)))
  np.testing.assert_array_equal(got.extra['variance'], extra['variance'])


@pytest.mark.first(1)
@pytest.mark.parametrize('name', WRAPPERS)
def test_the_end_points_of_rectified_flow_stay_finite(name):
  z, level = at(rectified_flow(), times=(1.0, 0.5, 0.0))
  got = WRAPPERS[name](WIDE)(z, level)
  assert np.all(np.isfinite(got.x)) and np.all(np.isfinite(got.eps))
  # At alpha = 0 all is noise, whatever x is said to be; at sigma = 0 nothing is.
  np.testing.assert_allclose(got.eps[0], z[0], atol=1e-12)


@pytest.mark.parametrize('name', WRAPPERS)
def test_a_sampler_runs_through_a_wrapper_from_pure_noise_to_pure_data(name):
  keys = jax.random.split(jax.random.key(0), 4)
  z = jax.random.normal(jax.random.key(1), (4, 3))
  wrapped = WRAPPERS[name](WIDE)
  out = jax.jit(lambda: sample(ddim(wrapped, rectified_flow()), keys, z,
                               jnp.linspace(1.0, 0.0, 21)))()
  assert np.all(np.isfinite(out)) and np.abs(out).max() > 0.1
  if name == 'clip':
    assert np.abs(out).max() <= 1.0


# ---------------------------------------------------- where x_hat may be


@pytest.mark.parametrize('wrap', [guidance.clip, guidance.dynamic_threshold])
def test_inside_of_the_range_thresholding_changes_not_a_bit(wrap):
  inside = oracles.Gaussian(0.1, 0.01)
  z, level = at(process_on(vp))
  for before, after in zip(inside(z, level), wrap(inside)(z, level), strict=True):
    if before is not None:
      np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize('wrap', [guidance.clip, guidance.dynamic_threshold])
def test_thresholding_twice_is_thresholding_once(wrap):
  z, level = at(process_on(sub_vp))
  once, twice = wrap(WIDE)(z, level), wrap(wrap(WIDE))(z, level)
  np.testing.assert_array_equal(once.x, twice.x)
  np.testing.assert_array_equal(once.eps, twice.eps)
  assert np.abs(once.x).max() <= 1.0 < np.abs(WIDE(z, level).x).max()


def fixed(x):
  """A denoiser that always believes in x [B, ...]."""
  return lambda z, level, cond=None: Estimate(x, (z - level.expand(z).alpha * x)
                                              / level.expand(z).sigma)


def test_clipping_is_to_the_range_that_was_given():
  x = jnp.array([[-3.0, -0.5, 0.2, 7.0]])
  z, level = at(process_on(vp), times=(0.5,), shape=(4,))
  np.testing.assert_array_equal(guidance.clip(fixed(x))(z, level).x, [[-1.0, -0.5, 0.2, 1.0]])
  np.testing.assert_array_equal(guidance.clip(fixed(x), 0.0, 5.0)(z, level).x,
                                [[0.0, 0.0, 0.2, 5.0]])


def test_a_sample_has_the_known_part_and_the_rest_is_not_changed():
  """The numbers of `WIDE` are independent, so the unknown ones are those of plain samples."""
  y, mask = jnp.linspace(-0.9, 0.9, 8).reshape(2, 4), np.array([1.0, 0.0, 0.0, 1.0])
  completed = guidance.known(WIDE, lambda cond: (cond, mask))
  process, z = rectified_flow(), jax.random.normal(jax.random.key(3), (2, 4))
  keys, times = jax.random.split(jax.random.key(0), 2), np.linspace(1.0, 0.0, 5)
  told = lambda z, level, cond=None: completed(z, level, y)
  got = sample(ddim(told, process), keys, z, times)
  plain = sample(ddim(WIDE, process), keys, z, times)
  np.testing.assert_allclose(got, jnp.where(mask > 0, y, plain), rtol=1e-9)


def test_dynamic_thresholding_divides_each_image_by_its_own_percentile():
  """Of |x| = 0, 1, .., 10 times c the 80th percentile is 8 c, and no image is blown up."""
  ramp = jnp.arange(11.0) * jnp.where(jnp.arange(11) % 2, -1.0, 1.0)
  x = jnp.stack([ramp, 0.5 * ramp, 0.05 * ramp]).reshape(3, 11, 1)
  z, level = at(process_on(vp), times=(0.9, 0.5, 0.1), shape=(11, 1))
  got = guidance.dynamic_threshold(fixed(x), 80.0)(z, level).x
  np.testing.assert_allclose(got[0], got[1], rtol=1e-12)
  np.testing.assert_allclose(got[0, :9], x[0, :9] / 8.0, rtol=1e-12)
  np.testing.assert_allclose(got[0, 9:, 0], [-1.0, 1.0], rtol=1e-12)
  np.testing.assert_array_equal(got[2], x[2])


# ------------------------------------------------------ what it is led to


@pytest.mark.parametrize('curve', CURVES)
@pytest.mark.parametrize('w', [0.0, 2.5, -1.0])
def test_guidance_between_gaussians_of_one_width_is_a_gaussian_further_on(curve, w):
  """Their scores are linear in the mean: means 0.6 and -0.2 lead to 0.6 + w 0.8."""
  with_label, without = oracles.Gaussian(0.6, 0.5), oracles.Gaussian(-0.2, 0.5)
  z, level = at(process_on(curve))
  got = guidance.classifier_free(with_label, without, w)(z, level)
  expected = oracles.Gaussian(0.6 + 0.8 * w, 0.5)(z, level)
  np.testing.assert_allclose(got.x, expected.x, rtol=1e-9, atol=1e-12)
  np.testing.assert_allclose(got.eps, expected.eps, rtol=1e-9, atol=1e-12)


def test_the_guided_flow_from_log_snr_minus_5_ends_in_gaussians_of_known_moments():
  """p(x | c) = N(1, s^2), p(x) = N(0, 1) and z_1 ~ N(0, 1); not the tilted p(x | c)^(1+w) / p(x)^w.

  With k = sigma / alpha the flow of y = z / alpha is linear:
  dy / dk = (1 + w) k (y - 1) / (s^2 + k^2) - w k y / (1 + k^2).  So deviations change by
  h(0) / h(k), h = (s^2 + k^2)^((1+w)/2) (1 + k^2)^(-w/2), and the mean is an integral.
  """
  known = {0.0: (0.958992, 0.501260), 1.0: (1.339131, 0.251261), 3.0: (1.497009, 0.063132)}
  s, first = 0.5, np.exp(2.5)
  for w, (mean, std) in known.items():
    h = lambda k: (s**2 + k**2)**(0.5 + 0.5 * w) * (1 + k**2)**(-0.5 * w)  # noqa: B023
    slope = lambda k: (1 + w) * k / (s**2 + k**2) / h(k)                   # noqa: B023
    integral = integrate.quad(slope, 0, first)[0] * h(0)
    np.testing.assert_allclose((integral, np.sqrt(1 + first**2) * h(0) / h(first)), (mean, std),
                               atol=6e-7)
  process = GaussianProcess(schedules.Linear(30.0, -5.0), vp)
  guided = guidance.classifier_free(oracles.Gaussian(1.0, s), oracles.Gaussian(0.0, 1.0),
                                    jnp.array([*known]))
  keys, z = jax.random.split(jax.random.key(0), 2), jnp.array([[0.0] * 3, [1.0] * 3])
  x = sample(rho_rk(guided, process, RK4), keys, z, grids.karras(process, 100))
  np.testing.assert_allclose(np.stack([x[0], x[1] - x[0]], axis=1), [*known.values()], atol=2e-6)
  tilted = (1 + 3) / s**2 / ((1 + 3) / s**2 - 3)  # the mean for w = 3
  assert abs(x[0, 2] - tilted) > 0.1


def test_each_image_may_have_a_weight_of_its_own():
  with_label, without = oracles.Gaussian(0.6, 0.5), oracles.Gaussian(-0.2, 1.0)
  z, level = at(process_on(vp), shape=(4,))
  each = jnp.arange(5.0)
  got = guidance.classifier_free(with_label, without, each[:, None])(z, level)
  for i, w in enumerate(each):
    alone = guidance.classifier_free(with_label, without, w)(z, level)
    np.testing.assert_allclose(got.eps[i], alone.eps[i], rtol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize('curve', CURVES)
def test_an_exact_classifier_leads_to_the_class(curve):
  """Bayes' rule: score of the mixture + gradient of log p(y | z) = score of the component."""
  weights, means, std = jnp.array([0.3, 0.7]), jnp.array([[-0.8], [0.5]]), 0.4
  mixture = oracles.Mixture(weights, means, jnp.array([std, std]))
  component = oracles.Gaussian(means[1], std)
  gradient = lambda z, level, cond: jax.grad(
      lambda z: jnp.sum(component.log_prob(z, level) - mixture.log_prob(z, level)))(z)
  z, level = at(process_on(curve), shape=(1,))
  got = guidance.classifier(mixture, gradient)(z, level)
  expected = component(z, level)
  np.testing.assert_allclose(got.x, expected.x, rtol=1e-8, atol=1e-10)
  np.testing.assert_allclose(got.eps, expected.eps, rtol=1e-8, atol=1e-10)
  plain = guidance.classifier(mixture, gradient, 0.0)(z, level)
  np.testing.assert_array_equal(plain.x, mixture(z, level).x)


def test_what_a_wrapper_is_conditioned_on_reaches_what_it_wraps():
  seen = []

  def denoise(z, level, cond=None):
    seen.append(cond)
    return WIDE(z, level)

  gradient = lambda z, level, cond: seen.append(cond) or jnp.zeros_like(z)
  z, level = at(process_on(vp))
  for wrapped, calls in [(guidance.clip(denoise), 1), (guidance.dynamic_threshold(denoise), 1),
                         (guidance.classifier_free(denoise, denoise, 1.0), 2),
                         (guidance.classifier(denoise, gradient), 2),
                         (guidance.guided_between(denoise, denoise, 0.0, 1.0), 2)]:
    seen.clear()
    wrapped(z, level, 'label')
    assert seen == ['label'] * calls


# ----------------------------------------------------- where that applies


@pytest.mark.parametrize('curve', CURVES)
def test_within_an_interval_of_log_snr_the_other_denoiser_is_used(curve):
  other = oracles.Gaussian(-1.0, 0.3)
  process = process_on(curve)  # log-SNR 8 - 16 t
  z, level = at(process, times=(0.0, 0.3, 0.5, 0.7, 1.0))  # 8, 3.2, 0, -3.2, -8
  got = guidance.guided_between(WIDE, other, -3.3, 3.1)(z, level)
  for i, expected in enumerate([WIDE, WIDE, other, other, WIDE]):
    np.testing.assert_array_equal(got.x[i], expected(z, level).x[i])
    np.testing.assert_array_equal(got.eps[i], expected(z, level).eps[i])
  single = process(jnp.asarray(0.5))  # one level for the whole batch
  np.testing.assert_array_equal(guidance.guided_between(WIDE, other, -1.0, 1.0)(z, single).x,
                                other(z, single).x)


def test_what_is_not_used_may_be_anything():
  nowhere = lambda z, level, cond=None: Estimate(z * jnp.nan, z * jnp.inf)
  z, level = at(process_on(vp))
  got = guidance.guided_between(WIDE, nowhere, 20.0, 30.0)(z, level)
  np.testing.assert_array_equal(got.eps, WIDE(z, level).eps)
