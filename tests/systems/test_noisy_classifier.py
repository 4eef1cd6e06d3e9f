"""Classifiers of noisy data: what they learn, and where their gradient leads."""
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import linen as nn
from scipy import integrate, stats

from vdm_jax import guidance, inputs, oracles, schedules
from vdm_jax.processes import GaussianProcess, flow, ve, vp
from vdm_jax.samplers import ddim, sample
from vdm_jax.systems.guided import classifier, noisy_classifier
from vdm_jax.typing import Context

# Two classes of one width: their log odds are linear in z.
PRIOR, MEANS, STD = np.array([0.3, 0.7]), np.array([-0.8, 0.5]), 0.4
MIXTURE = oracles.Mixture(PRIOR, MEANS[:, None], np.array([STD, STD]))


def process_on(curve):
  return GaussianProcess(schedules.Linear(8.0, -8.0), curve)


def exact(z, level):
  """log p(z_t, label): [B, 2]."""
  each = [oracles.Gaussian(mean, STD).log_prob(z, level) for mean in MEANS]
  return jnp.stack(each, axis=-1) + jnp.log(PRIOR)


@pytest.mark.long
@pytest.mark.parametrize('curve', [vp, ve, flow])
def test_a_linear_classifier_learns_the_log_odds_of_two_gaussians(curve, x64):
  """They are 2 m alpha z / (alpha^2 s^2 + sigma^2) + ..., at each level; Newton on quadrature."""
  nodes, weights = np.polynomial.hermite_e.hermegauss(24)
  label, i, j = (u.ravel() for u in np.meshgrid([0, 1], range(24), range(24), indexing='ij'))
  x = jnp.asarray(MEANS[label] + STD * nodes[i])[:, None]
  eps, weight = jnp.asarray(nodes[j])[:, None], PRIOR[label] * weights[i] * weights[j]
  weight = jnp.asarray(weight / weight.sum())
  process = process_on(curve)

  @jax.jit
  def fit(t):
    def loss(w):
      logits = lambda z, level: jnp.stack([jnp.zeros(len(z)), w[0] + w[1] * z[:, 0]], axis=-1)
      nats, _ = noisy_classifier.cross_entropy(logits, process, x, jnp.full(len(x), t), None,
                                               jnp.asarray(label), eps=eps)
      return jnp.sum(weight * nats)
    newton = lambda _, w: w - jnp.linalg.solve(jax.hessian(loss)(w), jax.grad(loss)(w))
    return jax.lax.fori_loop(0, 12, newton, jnp.zeros(2)), process(t)

  for t in (0.45, 0.6, 0.8):  # log-SNR 0.8, -1.6, -4.8
    (offset, slope), level = fit(t)
    alpha, sigma = level.alpha, level.sigma
    variance = alpha**2 * STD**2 + sigma**2
    np.testing.assert_allclose(slope, alpha * (MEANS[1] - MEANS[0]) / variance, rtol=1e-4)
    np.testing.assert_allclose(
        offset, np.log(PRIOR[1] / PRIOR[0])
        - alpha**2 * (MEANS[1]**2 - MEANS[0]**2) / (2 * variance), rtol=1e-4)


def test_its_own_noise_leaves_the_error_and_the_entropy_of_bayes_rule():
  process, n, t = process_on(vp), 40_000, 0.45
  rng = np.random.default_rng(0)
  label = (rng.random(n) < PRIOR[1]).astype(np.int32)
  x = jnp.asarray(MEANS[label] + STD * rng.standard_normal(n), jnp.float32)[:, None]
  nats, terms = jax.jit(lambda: noisy_classifier.cross_entropy(
      exact, process, x, jnp.full(n, t), jax.random.split(jax.random.key(0), n), label))()
  snr = np.exp(8.0 - 16.0 * t)
  alpha, variance = np.sqrt(snr / (1 + snr)), (snr * STD**2 + 1) / (1 + snr)
  z = np.linspace(-6.0, 6.0, 20_001)
  joint = PRIOR * stats.norm.pdf(z[:, None], alpha * MEANS, variance**0.5)
  entropy = -np.sum(joint * np.log(joint / joint.sum(axis=1, keepdims=True)), axis=1)
  for draws, density in ((nats, entropy), (terms['accuracy'], joint.max(axis=1))):
    assert abs(np.mean(draws) - integrate.trapezoid(density, z)) < 4 * np.std(draws) / n**0.5


@pytest.mark.long
@pytest.mark.parametrize('curve', [vp, ve, flow])
def test_scale_one_with_the_exact_classifier_draws_from_the_class(curve, x64):
  """Guided, the probability flow takes quantiles of the prior to quantiles of each class."""
  process, n = process_on(curve), 40
  quantiles = jnp.asarray(stats.norm.ppf((np.arange(n) + 0.5) / n))
  label = jnp.arange(2 * n) % 2
  guided = guidance.classifier(MIXTURE, guidance.label_gradient(exact))
  last = process(jnp.array(1.0))
  # At t = 1 each class is a Gaussian of its own: alpha is not 0.
  mean = last.alpha * jnp.asarray(MEANS)[label]
  z = (mean + jnp.hypot(last.alpha * STD, last.sigma) * jnp.repeat(quantiles, 2))[:, None]

  @jax.jit
  def draw():
    denoise = lambda z, level, cond=None: guided(z, level, label)
    keys = jax.random.split(jax.random.key(0), 2 * n)
    return sample(ddim(denoise, process), keys, z, jnp.linspace(1.0, 0.0, 401))[:, 0]

  first = process(jnp.array(0.0))
  got, spread = draw(), np.hypot(first.alpha * STD, first.sigma)
  for which in (0, 1):
    mine = np.asarray(got[which::2])
    expected = first.alpha * MEANS[which] + spread * np.asarray(quantiles)
    np.testing.assert_allclose(mine, expected, atol=0.03 * spread)  # of steps of 0.04 in log-SNR


def test_a_larger_scale_draws_from_the_data_tilted_by_that_power_of_the_class(x64):
  """Near the data -eps / sigma is the slope of log p(x) + s log p(y | x): its integral over x."""
  level = jax.jit(lambda: GaussianProcess(schedules.Linear(30.0, -8.0))(jnp.array(0.0)))()
  scale, x = 3.0, np.linspace(-2.0, 2.0, 2001)
  guided = guidance.classifier(MIXTURE, guidance.label_gradient(exact), scale)
  slope = jax.jit(lambda x, level: -guided(x[:, None], level, jnp.ones(2001, int)).eps[:, 0]
                  / level.sigma)(x, level)
  joint = PRIOR * stats.norm.pdf(x[:, None], MEANS, STD)
  whole = joint.sum(axis=1)
  tilted = np.log(whole) + scale * np.log(joint[:, 1] / whole)
  np.testing.assert_allclose(integrate.cumulative_trapezoid(slope, x, initial=0.0),
                             tilted - tilted[0], atol=1e-4)


@pytest.mark.long
def test_the_gradient_is_that_of_the_label_of_each_example():
  """Of logits (0, a z, b z) it is (c_y - mean of c) with c = (0, a, b)."""
  c = jnp.array([0.0, 2.0, -1.0])
  z, label = jnp.array([[0.3], [-0.5], [1.2], [0.0]]), jnp.array([0, 1, 2, 1])
  got = guidance.label_gradient(lambda z, level: c * z)(z, None, label)
  share = np.exp(np.asarray(c * z))
  share /= share.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(got[:, 0], c[label] - share @ np.asarray(c), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------- as a system


class Linear(nn.Module):
  """Logits linear in z, and in the time that it is told."""
  classes: int

  @nn.compact
  def __call__(self, z, time, cond=None, keys=None):
    h = jnp.concatenate([z.reshape(len(z), -1), time[:, None]], axis=-1)
    return nn.Dense(self.classes, kernel_init=nn.initializers.normal(0.5))(h)


@pytest.mark.long
def test_the_accuracy_is_told_by_quarters_of_time():
  config = ml_collections.ConfigDict(classifier.default_config())
  config.data.update(name='made', shape=(2, 2, 1), levels=5, classes=3)
  process = process_on(vp)
  experiment = noisy_classifier.experiment(config, net=Linear(3), process=process,
                                           inputs=inputs.scaled(8.0, -8.0, 1.0))
  n = 400
  rng = np.random.default_rng(0)
  batch = {'image': jnp.asarray(rng.integers(0, 5, (n, 2, 2, 1)), jnp.uint8),
           'label': jnp.asarray(rng.integers(0, 3, n), jnp.int32)}
  t = (jnp.arange(n) + 0.5) / n

  @jax.jit
  def evaluate():
    params = experiment.init(jax.random.key(1))
    keys = jax.random.split(jax.random.key(0), n)
    m = experiment.model(params)
    level = process(t)
    return (experiment.loss(params, batch, Context(t, keys, jnp.int32(0))),
            m.logits(m.encode(batch['image']), level), params['net']['Dense_0'],
            m.encode(batch['image']))

  (nats, terms), logits, dense, x = evaluate()
  assert nats.shape == (n,)
  assert terms.keys() == {'accuracy', *(f'accuracy_{i}' for i in (1, 2, 3, 4))}
  right = np.asarray(terms['accuracy'])
  assert 0.2 < right.mean() < 0.5  # of labels that are chance
  for i in range(4):
    np.testing.assert_allclose(np.mean(terms[f'accuracy_{i + 1}']),
                               right[100 * i:100 * (i + 1)].mean(), rtol=1e-6)
  # The network is told the time as its inputs say.
  told = np.concatenate([np.asarray(x).reshape(n, -1), np.asarray(t)[:, None]], axis=1)
  np.testing.assert_allclose(logits, told @ np.asarray(dense['kernel']) + dense['bias'],
                             rtol=1e-4, atol=1e-4)
