"""How far estimates scatter: measured, against closed forms."""
from collections import namedtuple

import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import oracles, random, schedules
from vdm_jax.errors import InputError
from vdm_jax.likelihood import time_variances
from vdm_jax.processes import GaussianProcess, flow, from_alpha_sigma, vp
from vdm_jax.studies import gaussian
from vdm_jax.typing import Model

Split = namedtuple('Split', 'images')


class Drawn(Split):
  """Images of real numbers, as a split of data."""

  def __len__(self):
    return len(self.images)

  def get(self, rows):
    return {'image': self.images[rows]}


def oracle(process, dim=16, **more):
  return Model(denoise=oracles.Gaussian(0.0, 0.5), process=process, encode=lambda u: u, decode=None,
               cond=lambda batch: None, decoder=None, shape=(dim,), **more)


def within_errors(found, expected, most):
  values, errors = found
  for value, error, exact in zip(values, errors, expected, strict=True):
    assert abs(value - exact) < 4.0 * error and error < most * abs(exact)


def test_the_measured_variances_of_an_oracle_are_those_of_the_closed_form():
  images = np.random.default_rng(0).normal(0.0, 0.5, (4000, 16)).astype(np.float32)
  process = GaussianProcess(schedules.Linear(8.0, -8.0))
  draws = time_variances.draw(time_variances.diffusion_term(oracle), process, Drawn(images),
                              batch=32, batches=250)
  assert draws.t.shape == draws.bits.shape == (250, 32)
  mean, independent = gaussian.estimate(process, dim=16)
  stratified = gaussian.estimate(process, dim=16, batch=32)[1]
  within_errors(time_variances.variances(draws), (mean, independent, stratified), 0.2)
  assert independent > 2.0 * stratified
  edges = np.linspace(0.0, 1.0, 5)
  t = (np.arange(4000) + 0.5) / 4000
  expected = np.asarray(gaussian.integrand(process, t)).reshape(4, -1).mean(axis=1)
  np.testing.assert_allclose(time_variances.mean_by_time(draws, edges), expected, rtol=0.1)


def test_a_variance_that_a_thousandth_of_the_times_holds_is_found():
  """1 / (2 sqrt(a t)) up to t = a, a = 1e-3, from 1e-5: log 100 / (4 a) a, and evenly spread."""
  first, last = 1e-5, 1e-3
  term = lambda params, batch, t, keys: jnp.where((t > first) & (t < last), 0.5 * t**-0.5, 0.0)
  draws = time_variances.draw(term, None, None, batch=16, batches=400)
  mean = last**0.5 - first**0.5
  variance = 0.25 * np.log(last / first) - mean**2
  # Of a batch at most one time is so early: the mean of its draws is that draw's, over B.
  within_errors(time_variances.variances(draws),
                (mean, variance, variance + mean**2 - 16 * mean**2), 0.2)


def test_the_variances_of_a_proposal_are_measured():
  """2 t + noise with density 2 t: 1 and the noise, weighted, E[1 / (2 t)^2] / 4 from t = 0.1 on."""
  density = lambda u: jnp.sqrt(0.01 + 0.99 * u)  # of t in [0.1, 1], 2 t / 0.99
  propose = lambda params: lambda u: (density(u), 0.495 / density(u))
  term = lambda params, batch, t, keys: 2.0 * t + 0.5 * random.normal(keys, t)
  draws = time_variances.draw(term, None, None, batch=16, batches=400, propose=propose)
  noise = 0.25 * 0.495 * np.log(10.0)  # int 1 / p from 0.1 to 1
  within_errors(time_variances.variances(draws), (0.99, noise, noise), 0.1)


def test_the_standard_errors_are_the_spread_of_independent_repetitions():
  """Of 1 / (t + 0.1) and noise, with independent offsets."""
  rng, (n, batches, batch) = np.random.default_rng(0), (200, 60, 8)
  v = rng.random((n, batches))
  share = np.square(v * (1.0 - v))
  offset = v**3 * (10.0 - 15.0 * v + 6.0 * v**2)
  t = (offset[..., None] + np.arange(batch)) / batch
  bits = 1.0 / (t + 0.1) + 0.3 * rng.standard_normal(t.shape)
  found = [time_variances.variances(time_variances.TimeDraws(*one), resamples=200)
           for one in zip(t, bits, share / share.sum(axis=1, keepdims=True), strict=True)]
  values, errors = np.array(found).transpose(1, 2, 0)
  np.testing.assert_allclose(np.mean(np.square(errors), axis=1)**0.5, values.std(axis=1, ddof=1),
                             rtol=4 / (2 * n)**0.5)


def test_a_history_of_losses_learns_the_density_of_least_variance():
  """Of losses 1 + 4 t, whose squares are averaged over each of four bins."""
  past = time_variances.loss_history(lambda params, batch, t, keys: 1.0 + 4.0 * t, None, None,
                                     batch=200, batches=10, bins=4)
  assert past.count.sum() == 2000
  u = np.linspace(0.0, 1.0, 10_001, dtype=np.float32)
  t, weight = past.proposal()(u)
  shares = np.diff(np.interp(np.arange(5) / 4, t, u))
  edges = 1.0 + np.arange(5)
  root = np.sqrt(np.diff(edges**3) / 3.0)
  np.testing.assert_allclose(shares, root / root.sum(), atol=0.02)


@pytest.mark.long
@pytest.mark.parametrize('curve', [vp, flow], ids=['vp', 'flow'])
def test_published_schedules_keep_the_ends_and_the_curve(curve, x64):
  found = time_variances.published_schedules(GaussianProcess(schedules.Cosine(9.0, -6.0), curve))
  assert list(found) == ['log-SNR-linear', 'alpha-cosine', 'beta-linear']
  for process in found.values():
    level = process(jnp.array([0.0, 0.4, 1.0]))
    np.testing.assert_allclose(level.logsnr[jnp.array([0, 2])], [9.0, -6.0], rtol=1e-9)
    alpha, sigma = curve(level.logsnr)
    np.testing.assert_allclose(level.alpha, alpha, rtol=1e-9)
    np.testing.assert_allclose(level.sigma, sigma, rtol=1e-9)
  lower = time_variances.published_schedules(GaussianProcess(schedules.Linear(9.0, -12.0), curve))
  assert list(lower) == ['log-SNR-linear', 'alpha-cosine']  # beta-linear ends at -10.05


def test_models_of_another_bound_or_process_are_refused():
  linear = GaussianProcess(schedules.Linear())
  own = oracle(linear, bound=lambda batch, t, keys, steps: None)
  straight = oracle(from_alpha_sigma(lambda t: 1.0 - t, lambda t: t))
  none = oracle(linear, no_likelihood='its latents have no density')
  with pytest.raises(InputError, match='its latents have no density'):
    time_variances.require_proposable(none)
  with pytest.raises(InputError, match='^workdir: '):
    time_variances.with_published_schedules(lambda params: none, None)
  for model in (own, straight):
    with pytest.raises(InputError, match='^workdir: '):
      time_variances.with_published_schedules(lambda params, model=model: model, None)
    with pytest.raises(InputError, match='^workdir: '):
      time_variances.require_proposable(model)
  time_variances.require_proposable(oracle(linear))
  assert len(time_variances.with_published_schedules(oracle, linear)) == 3
