"""The first diffusion models: bounds against closed forms and against all states of a few bits."""
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats
from scipy.special import binom, logit, xlogy

from tests.support import configs
from vdm_jax import oracles, random, samplers, schedules
from vdm_jax.data import formulas
from vdm_jax.errors import InputError
from vdm_jax.nn.blocks.rbf import RadialBasis
from vdm_jax.objectives import dpm2015, dpm2015_bits, vlb
from vdm_jax.processes import GaussianProcess, posterior
from vdm_jax.samplers import multiplied
from vdm_jax.systems.chains import dpm2015 as system
from vdm_jax.systems.chains.dpm2015 import Rates
from vdm_jax.typing import Context

ROOT = Path(__file__).parents[2]
T = 7
BETAS = np.array([0.02, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6])
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(5)  # exact for polynomials up to degree 9


def chain(betas=BETAS):
  """x^(1) ... x^(T) as a process."""
  return GaussianProcess(schedules.TableSchedule.from_betas(betas, clean=False))


def on_all_steps(objective, x, eps):
  """`objective` of (x, t, keys, eps) at every step of every pair: each term [T - 1, n]."""
  times = (np.arange(T - 1) + 0.5) / (T - 1)
  n = len(x)
  tile = lambda u: jnp.tile(u, (T - 1, 1))
  nats, terms = jax.jit(objective)(tile(x), jnp.repeat(times, n), jax.random.split(
      jax.random.key(0), (T - 1) * n), tile(eps))
  return {name: np.asarray(u).reshape(T - 1, n) for name, u in {'': nats, **terms}.items()}


def exact_variance(std):
  """That of q(x^(t-1) | x^(t)) for data N(0, std^2), from the marginals and the covariance."""
  def variance(estimate, at_t, at_s):
    of_s, of_t = (jnp.square(l.alpha * std) + jnp.square(l.sigma) for l in (at_s, at_t))
    kept = at_t.alpha / at_s.alpha
    return of_s - jnp.square(kept * of_s) / of_t
  return variance


def mean_bound(std, process=None, **options):
  """E[-K] over x ~ N(0, std^2), the noise and the steps, by quadrature: K is quadratic in both."""
  i, j = np.meshgrid(np.arange(5), np.arange(5), indexing='ij')
  weights = (WEIGHTS[i] * WEIGHTS[j]).ravel() / (2 * np.pi)
  x, eps = std * NODES[i].reshape(-1, 1), NODES[j].reshape(-1, 1)
  seen = on_all_steps(lambda x, t, keys, eps: dpm2015.bound(
      oracles.Gaussian(0.0, std), process or chain(), x, t, keys, steps=T - 1, eps=eps, **options),
      jnp.asarray(x), jnp.asarray(eps))['']
  return (seen @ weights).mean()


@pytest.mark.long
def test_the_bound_of_normal_data_under_their_own_reverse_kernel_is_minus_their_entropy(x64):
  # Of unit variance the chain is stationary, and q(x^(t-1) | x^(t)) has the variance beta_t.
  for betas in (BETAS, BETAS[::-1] / 3):  # so the rates do not matter
    bound = mean_bound(1.0, chain(betas), variance=vlb.fixed_large)
    np.testing.assert_allclose(bound, stats.norm.entropy(), rtol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize('std', [0.3, 1.6])
def test_under_the_exact_reverse_kernel_the_bound_is_made_of_three_entropies(x64, std):
  # K = -H(X^(1)) + H(X^(T)) - H_p(X^(T)): the divergences add up to an information.
  kept = np.cumprod(1 - BETAS)
  entropy = lambda t: stats.norm.entropy(scale=np.sqrt(1 + kept[t] * (std**2 - 1)))
  bound = mean_bound(std, variance=exact_variance(std))
  np.testing.assert_allclose(bound, entropy(0) - entropy(-1) + stats.norm.entropy(), rtol=1e-12)
  assert mean_bound(std, variance=vlb.fixed_small) > bound + 1e-3


@pytest.mark.long
def test_the_bound_is_that_of_the_discrete_chain_term_by_term_but_for_two_moments(x64):
  keys = jax.random.split(jax.random.key(1), 3)
  x, eps = (jax.random.normal(key, (4, 3)) for key in keys[:2])
  oracle = oracles.Gaussian(0.2, 0.7)
  ours = on_all_steps(lambda x, t, keys, eps: dpm2015.bound(
      oracle, chain(), x, t, keys, steps=T - 1, eps=eps, variance=vlb.fixed_large), x, eps)
  same = on_all_steps(lambda x, t, keys, eps: vlb.discrete(
      oracle, chain(), x, t, keys, steps=T - 1, eps=eps, variance=vlb.fixed_large, data=x,
      decoder=dpm2015.first_step), x, eps)
  np.testing.assert_array_equal(ours['diffusion'], same['diffusion'])
  # The other terms in the mean over the noise of x^(1), which each coordinate has twice: +-1.
  ends = jax.jit(lambda eps_0: vlb.end_terms(chain(), x, x, jnp.zeros(4), None, x,
                                             dpm2015.first_step, eps_0))
  end = {name: np.mean([ends(sign * jnp.ones_like(x))[name] for sign in (1, -1)], axis=0)
         for name in ('reconstruction', 'latent')}
  square, d = np.sum(np.square(x), axis=1), 3
  first, last = BETAS[0], np.prod(1 - BETAS)
  np.testing.assert_allclose(ours['latent'][0] - end['latent'], 0.5 * last * (d - square))
  np.testing.assert_allclose(ours['reconstruction'][0] - end['reconstruction'],
                             0.5 * first * (d - square))


@pytest.mark.long
def test_the_gradient_of_the_rates_holds_the_noise_fixed(x64):
  rates = Rates(T, 0.02)
  params = rates.init(jax.random.key(0))['params']
  params = {'log_odds': params['log_odds'] + 0.3 * jnp.sin(jnp.arange(T - 1.0))}
  x = jax.random.normal(jax.random.key(1), (16, 2)) * jnp.array([1.3, 0.5])
  keys, t = jax.random.split(jax.random.key(2), 16), (jnp.arange(16) + 0.5) / 16

  @jax.jit
  def loss(params):
    process = GaussianProcess(schedules.TableSchedule(rates.apply({'params': params})))
    return jnp.mean(dpm2015.bound(oracles.Gaussian(0.0, 0.8), process, x, t, keys, steps=T - 1,
                              variance=vlb.fixed_large)[0])

  slope = jax.jit(jax.grad(loss))(params)['log_odds']
  moved = jax.jit(lambda i, h: loss({'log_odds': params['log_odds'].at[i].add(h)}))
  finite = [(moved(i, 1e-5) - moved(i, -1e-5)) / 2e-5 for i in range(T - 1)]
  np.testing.assert_allclose(slope, finite, rtol=1e-6, atol=1e-9)
  assert np.abs(finite).min() > 1e-4
  first, slope = jax.jit(jax.value_and_grad(lambda params: rates.apply({'params': params})[0]))(
      params)
  np.testing.assert_allclose(first, logit(1 - 0.02), rtol=1e-12)
  np.testing.assert_array_equal(slope['log_odds'], np.zeros(T - 1))


def test_the_first_rates_leave_one_part_in_t_of_the_signal(x64):
  rates = Rates(40, 0.001)
  table = rates.apply(rates.init(jax.random.key(0)))
  assert (np.diff(table) < 0).all()
  np.testing.assert_allclose(jax.nn.sigmoid(table[-1]), 0.999 / 40, rtol=1e-12)


@pytest.mark.long
def test_the_untrained_roll_has_the_reverse_chain_of_normal_data_and_decodes_every_integer():
  module, config = configs.read('plane/dpm2015')
  experiment = module.build(config)
  z = jnp.array([[0.3, -1.1], [2.0, 0.0]])
  image = jnp.stack([jnp.full(256, 130), jnp.arange(256)], axis=-1)

  @jax.jit
  def look(key):
    model = experiment.model(experiment.init(key))
    at_t, at_s = (model.process(jnp.asarray(i / 39)) for i in (20, 19))
    mean, _ = posterior(z, model.denoise(z, at_t).x, at_t, at_s)
    log_p = model.decoder(image, jnp.tile(z[:1], (256, 1)), model.process(jnp.zeros(())))
    return mean, at_t.alpha / at_s.alpha, jax.nn.logsumexp(log_p), model.encode(image), log_p

  mean, kept, total, x, log_p = look(jax.random.key(0))
  np.testing.assert_allclose(mean, kept * z, rtol=1e-5, atol=1e-6)
  # Of the integers in one coordinate; the other's share is that of 130 alone.
  share = np.diff(stats.norm.cdf((np.array([129.5, 130.5]) - 143.6) / 54.3,
                                 0.3 * 0.999**0.5, 0.001**0.5))
  np.testing.assert_allclose(total, np.log(share[0]), rtol=1e-3)
  best = np.argmax(log_p)
  assert abs(x[best, 1] + 1.1 * 0.999**0.5) <= 0.5 / 54.3
  moments = np.mean(np.square(np.asarray(experiment.model(experiment.init(
      jax.random.key(0))).encode(formulas.draw('swiss_roll', 50_000, 0)))))
  np.testing.assert_allclose(moments, 1.0, atol=0.02)  # as K has it


# ------------------------------------------------------------------- bits


def all_bits(d):
  return np.array(list(itertools.product([-1.0, 1.0], repeat=d)))


def one_bit(keep, activity):
  """q(x^(t) = 1 | x^(t-1) = 0 and 1), or given x^(0): kept, or drawn anew."""
  return activity * (1.0 - keep) + np.array([0.0, keep])


def transition(states, keep, activity=0.5):
  """q(x^(t) | x^(t-1)) between all states [n, n], the product over bits."""
  up = one_bit(keep, activity)[(states > 0).astype(int)][:, None]
  return np.prod(np.where(states[None] > 0, up, 1.0 - up), axis=-1)


def enumerated(d, data, betas, activity=0.5):
  """All states, q(x^(t)) for t = 0 ... T, and the mean bits of q(x^(t-1) | x^(t)), t = 1 ... T."""
  states = all_bits(d)
  marginals, up = [data], []
  for beta in betas:
    kernel = transition(states, 1 - beta, activity)
    joint = marginals[-1][:, None] * kernel  # [x^(t-1), x^(t)]
    marginals.append(joint.sum(0))
    up.append(np.einsum('ij,ik->jk', joint / marginals[-1], states > 0))
  return states, marginals, up


def looked_up(states, up):
  """The best f_b: log odds of the exact means of bits, read from tables."""
  tables = jnp.asarray(np.stack([np.zeros_like(up[0])] + [logit(u) for u in up]))
  powers = 2.0**np.arange(states.shape[1])[::-1]

  def reverse(z, t, cond=None):
    return tables[t, ((z > 0) @ powers).astype(jnp.int32)]
  return reverse


@pytest.mark.parametrize('activity', [0.5, 0.2])
def test_the_chain_s_kernels_are_those_of_all_states_by_bayes_rule(activity, x64):
  betas = np.array([0.1, 0.3, 0.5, 1.0])
  made = dpm2015_bits.BinomialChain.from_betas(betas, activity)
  states = all_bits(1)
  sigmoid = lambda u: np.asarray(jax.nn.sigmoid(u))
  for t in range(2, 5):
    since = transition(states, np.prod(1 - betas[:t - 1]), activity)
    step = transition(states, 1 - betas[t - 1], activity)
    for (i, x), (j, z) in itertools.product(enumerate(states), enumerate(states)):
      joint = since[i] * step[:, j]
      np.testing.assert_allclose(
          jax.nn.sigmoid(made.posterior(jnp.asarray([z]), jnp.asarray([x]), jnp.asarray([t]))),
          [[joint[1] / joint.sum()]], rtol=1e-12)
    given = made.marginal(jnp.asarray(states), jnp.asarray(t - 1))
    np.testing.assert_allclose(sigmoid(given)[:, 0], since[:, 1], rtol=1e-12)
    # The kernel is its own reversal where a share `activity` is 1.
    rest = np.array([1 - activity, activity])
    joint = rest[:, None] * step
    np.testing.assert_allclose(sigmoid(made.kernel(jnp.asarray(states), jnp.asarray(t)))[:, 0],
                               joint[1] / joint.sum(axis=0), rtol=1e-12)
  np.testing.assert_allclose(sigmoid(made.final), activity, rtol=1e-12)
  erasing = dpm2015_bits.BinomialChain.erasing(5, activity)
  kept = np.diff(sigmoid(erasing.since), axis=1)[:, 0]
  np.testing.assert_allclose(kept, [1, 0.8, 0.6, 0.4, 0.2, 0], rtol=1e-12, atol=1e-15)
  assert np.all(np.diff(erasing.signal) < 0) and abs(erasing.signal[-1]) < 1e-15


def test_divergence_and_entropy_of_bits_are_those_of_scipy(x64):
  p, q = np.meshgrid([1e-6, 0.1, 0.5, 0.9], [1e-6, 0.3, 0.999])
  np.testing.assert_allclose(
      dpm2015_bits.divergence(jnp.asarray(logit(q)), jnp.asarray(logit(p))),
      stats.entropy(np.stack([q, 1 - q]), np.stack([p, 1 - p])), rtol=1e-9, atol=1e-15)
  np.testing.assert_allclose(dpm2015_bits.entropy(jnp.asarray(logit(p))),
                             stats.entropy(np.stack([p, 1 - p])), rtol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize('at_rest', [False, True])
def test_the_bound_of_four_bits_is_the_sum_over_all_states_and_above_their_entropy(at_rest, x64):
  betas = np.array([0.05, 0.2, 0.4, 0.7])
  data = np.random.default_rng(0).dirichlet(np.full(16, 0.4))
  # The chain ends at one half, for any data, or at the share of ones in these.
  activity = np.mean(data @ (all_bits(4) > 0)) if at_rest else 0.5
  assert abs(activity - 0.5) > 0.02 or not at_rest
  states, marginals, up = enumerated(4, data, betas, activity)
  # E log q(x^(1 ... T) | x^(0)) - log p(x^(0 ... T)) over all trajectories of the Markov chain.
  rest = np.where(states > 0, activity, 1 - activity).prod(axis=-1)
  bound = -marginals[-1] @ np.log(rest)  # -log p(x^(T))
  for t, beta in enumerate(betas):
    kernel = transition(states, 1 - beta, activity)
    joint = marginals[t][:, None] * kernel
    rate = up[t][None]  # of x^(t)
    log_p = np.log(np.where(states[:, None] > 0, rate, 1 - rate)).sum(-1)
    if t == 0:
      log_p = np.log(kernel.T)  # the first step is the forward kernel
    bound += (joint * (np.log(kernel) - log_p)).sum()

  made = dpm2015_bits.BinomialChain.from_betas(betas, activity)
  n = 40_000

  @jax.jit
  def draws(key):
    i = jax.random.choice(key, 16, (n,), p=jnp.asarray(data))
    return dpm2015_bits.bound(looked_up(states, up), made, jnp.asarray(states)[i],
                              (jnp.arange(n) + 0.5) / n,
                              random.per_example(key, jnp.arange(n)))

  nats, terms = draws(jax.random.key(3))
  np.testing.assert_allclose(sum(terms.values()), nats, rtol=1e-12)
  error = np.std(nats) / n**0.5
  assert abs(np.mean(nats) - bound) < 4 * error < 0.1
  assert bound > stats.entropy(data)


HEART = (np.arange(20) % 5)[:, None] == np.arange(5)  # [20, 5]: which bits are ones, by phase


def best_bound_of_the_heartbeat(steps, activity):
  """-K in bits of the best f_b, by enumeration of all 2^20 states of 20 bits at every step.

  What matters of a state is how many ones are at each phase: 5^5 classes of states.
  """
  h = lambda p: -(xlogy(p, p) + xlogy(1 - p, 1 - p)) / np.log(2)
  kept = 1.0 - np.arange(steps + 1) / steps
  counts = np.array(list(itertools.product(range(5), repeat=5)))  # ones at each phase
  many = binom(4, counts).prod(axis=1)
  ones = np.array([16, 4])  # bits of the data that are 0 and 1
  left = lambda t: ones @ h(one_bit(kept[t], activity))  # H(X^(t) | X^(0))
  total = left(1) + 20 * h(activity) - left(steps)
  for t in range(2, steps + 1):
    since, before = one_bit(kept[t], activity), one_bit(kept[t - 1], activity)
    step = one_bit(kept[t] / kept[t - 1], activity)
    # log q(x^(t) | phase) [classes, 5]: another phase, but for its own four bits.
    each = xlogy(counts, since[:, None, None]) + xlogy(4 - counts, 1 - since[:, None, None])
    log_q = each[0].sum(axis=1, keepdims=True) - each[0] + each[1]
    q = np.exp(log_q)
    marginal = q.mean(axis=1)
    phase = q / q.sum(axis=1, keepdims=True)
    now = np.stack([1 - step, step])  # [x^(t), x^(t-1)]
    up = before * now[:, 1:] / (before * now[:, 1:] + (1 - before) * now[:, :1])  # [x^(t), x^(0)]
    mean = up[:, 0, None, None] + (up[:, 1] - up[:, 0])[:, None, None] * phase  # [x^(t), class, 5]
    cross = (counts * h(mean[1]) + (4 - counts) * h(mean[0])).sum(axis=1)
    # H(X^(t-1) | X^(t), X^(0)) of all bits, from the three entropies of the chain.
    again = ones @ (before * h(step[1]) + (1 - before) * h(step[0]))
    total += many @ (marginal * cross) - (left(t - 1) + again - left(t))
  np.testing.assert_allclose(many @ marginal, 1.0, rtol=1e-9)
  return total


@pytest.mark.long
@pytest.mark.parametrize('activity', [0.5, 0.2])
def test_the_best_bits_have_the_enumerated_bound_of_the_heartbeat_and_reach_the_published(
    activity, x64):
  """f_b from the posterior over the five sequences, in 2,000 steps."""
  beats = 2.0 * np.unique(formulas.draw('heartbeat', 1000, 0), axis=0) - 1.0
  np.testing.assert_array_equal(np.unique(2.0 * HEART.T - 1.0, axis=0), beats)
  made = dpm2015_bits.BinomialChain.erasing(2000, activity)
  n, hearts = 40_000, jnp.asarray(beats)[None]

  def reverse(z, t, cond=None):
    log_odds = made.marginal(hearts, t[:, None])  # [B, 5, 20]
    log_q = jax.nn.log_sigmoid(z[:, None] * log_odds).sum(-1)
    rate = jnp.einsum('bk,bki->bi', jax.nn.softmax(log_q), jax.nn.sigmoid(
        made.posterior(z[:, None], hearts, t[:, None])))
    return jnp.log(rate) - jnp.log1p(-rate)

  @jax.jit
  def draws(key):
    return dpm2015_bits.bound(reverse, made, hearts[0, jnp.arange(n) % 5],
                              (jnp.arange(n) + 0.5) / n,
                              random.per_example(key, jnp.arange(n)))[0] / jnp.log(2.0)

  bits = np.asarray(draws(jax.random.key(0)))
  error = bits.std() / n**0.5
  exact = best_bound_of_the_heartbeat(2000, activity)
  assert abs(bits.mean() - exact) < 4 * error
  assert error < 0.03
  # Sohl-Dickstein et al. (2015), table 1: the entropy of the data, and what their network reached.
  assert np.log2(5) < exact < 2.414


class Silent(nn.Module):

  @nn.compact
  def __call__(self, z, time):
    return self.param('scale', nn.initializers.zeros_init(), ()) * z


@pytest.mark.long
def test_a_network_that_says_nothing_leaves_the_published_bound_of_independent_bits():
  """Divergences from a chain at rest telescope.  Table 1: K - L_null = 12.024 with K = -2.414."""
  _, config = configs.read('sequences/dpm2015')
  config.model.timesteps = 20
  experiment, n = system.binomial(config, net=lambda largest: Silent()), 20_000
  context = Context((jnp.arange(n) + 0.5) / n, jax.random.split(jax.random.key(0), n),
                    jnp.int32(0))
  loss, terms = jax.jit(experiment.loss)(experiment.init(jax.random.key(1)),
                                         {'image': formulas.draw('heartbeat', n, 0)}, context)
  error = 20 * np.std(loss) / n**0.5
  assert abs(np.mean(terms['K_bits']) - (-2.414 - 12.024)) < 4 * error + 5e-4
  assert error < 0.1
  np.testing.assert_allclose(terms['K_bits'], -20.0 * loss, rtol=1e-5)


@pytest.mark.long
def test_samples_of_bits_have_the_data_s_probabilities_and_keep_what_is_known():
  steps, n = 200, 4000
  made = dpm2015_bits.BinomialChain.erasing(steps)
  data = np.array([0.5, 0.0, 0.1, 0.4])  # of two bits: 00, 01, 10, 11
  states, _, up = enumerated(2, data, 1.0 / np.arange(steps, 0, -1))
  reverse = looked_up(states, np.clip(up, 1e-7, 1 - 1e-7))
  keys = jax.random.split(jax.random.key(0), n)
  sample = jax.jit(lambda log_ratio: dpm2015_bits.sample(reverse, made, keys, (2,),
                                                         log_ratio=log_ratio))

  share = lambda x: np.bincount(((np.asarray(x) > 0) @ [2, 1]), minlength=4) / n
  # Besides four standard errors, 1 / T: the first step is half a redraw of each bit.
  error = 4 * np.sqrt(np.maximum(data * (1 - data), 1.0 / steps) / n) + 1.0 / steps
  assert (np.abs(share(sample(jnp.zeros(2))) - data) < error).all()
  known = np.asarray(sample(jnp.array([jnp.inf, 0.0])))
  np.testing.assert_array_equal(known[:, 0], 1.0)
  known = np.asarray(sample(jnp.array([0.0, -jnp.inf])))
  np.testing.assert_array_equal(known[:, 1], -1.0)


@pytest.mark.first(1)
@pytest.mark.parametrize('activity', [0.5, 0.3])
def test_of_one_bit_the_best_chain_is_exact_in_any_number_of_steps(activity, x64):
  """The chance of a 1 is that of x^(1), once more through the first kernel."""
  betas, n, data = np.array([0.2, 0.3, 0.5, 1.0]), 40_000, np.array([0.2, 0.8])
  states, _, up = enumerated(1, data, betas, activity)
  x = jax.jit(lambda keys: dpm2015_bits.sample(
      looked_up(states, up), dpm2015_bits.BinomialChain.from_betas(betas, activity), keys, (1,)))(
          jax.random.split(jax.random.key(0), n))
  through = lambda p: activity * 0.2 + p * 0.8
  p = through(through(data[1]))
  assert abs(np.mean(x > 0) - p) < 4 * (p * (1 - p) / n)**0.5


@pytest.mark.long
def test_the_variance_is_learned_where_no_other_is_named(x64):
  oracle = oracles.Gaussian(0.2, 0.7)
  headed = lambda z, level, cond=None: oracle(z, level)._replace(
      extra={'variance': jnp.full_like(z, 0.4)})
  x = jnp.linspace(-1.0, 1.0, 6)[:, None]
  of = jax.jit(lambda variance=None: dpm2015.bound(
      headed, chain(), x, (jnp.arange(6) + 0.5) / 6, jax.random.split(jax.random.key(0), 6),
      steps=T - 1, **({} if variance is None else {'variance': variance}))[0],
               static_argnums=0)
  np.testing.assert_array_equal(of(), of(vlb.learned))
  assert np.abs(of() - of(vlb.fixed_large)).min() > 1e-6


@pytest.mark.long
def test_a_second_distribution_multiplies_the_odds_of_each_kernel(x64):
  c, d = 0.3, 0.85
  made = dpm2015_bits.BinomialChain.from_betas(np.array([1e-12, 0.5]))
  reverse = lambda z, t, cond=None: jnp.full_like(z, logit(c))
  n = 20_000
  x = dpm2015_bits.sample(reverse, made, jax.random.split(jax.random.key(0), n), (1,),
                          log_ratio=logit(d))
  # The last step all but keeps the bit: its odds of 1e12 drown those of r.
  p = c * d / (c * d + (1 - c) * (1 - d))
  assert abs(np.mean(x > 0) - p) < 4 * (p * (1 - p) / n)**0.5


@pytest.mark.parametrize('betas', [[0.5], [0.0, 0.5], [0.5, 1.5]])
def test_rates_that_make_no_chain_are_refused(betas):
  with pytest.raises(InputError, match='rates of a binomial chain'):
    dpm2015_bits.BinomialChain.from_betas(np.array(betas))
  with pytest.raises(InputError, match='activity=1.0: it must be a share of ones'):
    dpm2015_bits.BinomialChain.erasing(10, 1.0)


# ------------------------------------------------------------- posteriors

ORACLE = oracles.Gaussian(0.0, 1.0)
PROCESS = GaussianProcess(schedules.Linear(16.0, -6.0))
N = 20_000


def posterior_draws(multiply, steps, shape=(1,)):
  """Samples of p(z_0) r(z_0) of data N(0, 1), whose reverse kernels have the variance beta."""
  @jax.jit
  def run(key):
    keys = jax.random.split(key, N)
    z = multiplied.start(PROCESS, multiply, keys, jnp.zeros((N, *shape)))
    sampler = multiplied.multiplied(ORACLE, PROCESS, multiply, share=1.0)
    return samplers.sample(sampler, keys, z, jnp.linspace(1.0, 0.0, steps + 1))
  return np.asarray(run(jax.random.key(0)), np.float64)


Y, STD = 1.2, 0.5
PRODUCT = (Y / STD**2 / (1 + 1 / STD**2), 1 / (1 + 1 / STD**2))  # of N(0, 1) and N(Y, STD^2)


def carried(level):
  """E[r(x) | z] as a normal density of z: x given z is N(alpha z, sigma^2)."""
  return Y / level.alpha, jnp.sqrt(jnp.square(level.sigma) + STD**2) / level.alpha


@pytest.mark.first(1)
@pytest.mark.parametrize('steps', [1, 6])
def test_a_gaussian_times_a_gaussian_is_their_product_in_any_number_of_steps(steps):
  wide = lambda level: carried(level.expand(jnp.zeros((N, 1))) if level.t.ndim else level)
  z = posterior_draws(multiplied.gaussian(wide), steps)
  mean, variance = PRODUCT
  assert abs(z.mean() - mean) < 4 * (variance / N)**0.5
  assert abs(z.var() - variance) < 4 * variance * (2 / N)**0.5


def test_a_perturbed_mean_is_that_of_the_product_up_to_the_square_of_the_variance(x64):
  log_r = lambda z, level: jnp.sum(stats_normal(z), axis=-1)
  stats_normal = lambda z: -0.5 * jnp.square((z - Y) / STD)
  level = PROCESS(jnp.asarray(0.5))
  mean = jnp.array([[0.3, -0.7]])
  gap = []
  for variance in (1e-2, 1e-3):
    variance = jnp.full_like(mean, variance)
    moved, same = multiplied.perturbed(log_r)(mean, variance, level)
    product, _ = multiplied.gaussian(lambda _: (Y, STD))(mean, variance, level)
    np.testing.assert_array_equal(same, variance)
    gap.append(np.abs(moved - product) / np.abs(product - mean))
  np.testing.assert_allclose(gap[0], 1e-2 / STD**2, rtol=1e-6)
  np.testing.assert_allclose(gap[1], 1e-3 / STD**2, rtol=1e-6)


def test_a_constant_r_is_no_exact_posterior():
  z = posterior_draws(multiplied.gaussian(lambda _: (Y, STD)), 40)
  mean, variance = PRODUCT
  assert abs(z.mean() - mean) > 8 * (variance / N)**0.5


def test_known_coordinates_are_kept_exactly_and_the_others_are_as_without():
  y, s = jnp.array([0.7, 0.0]), jnp.array([0.0, jnp.inf])
  z = posterior_draws(multiplied.gaussian(lambda _: (y, s)), 8, (2,))
  np.testing.assert_array_equal(z[:, 0], np.float32(0.7))
  assert abs(z[:, 1].mean()) < 4 / N**0.5
  assert abs(z[:, 1].var() - 1.0) < 4 * (2 / N)**0.5


@pytest.mark.long
def test_without_a_second_distribution_it_is_the_ancestral_sampler():
  nothing = multiplied.gaussian(lambda _: (0.0, jnp.inf))
  keys = jax.random.split(jax.random.key(0), 5)
  z = jax.random.normal(jax.random.key(1), (5, 3))
  times = jnp.linspace(1.0, 0.0, 5)
  ours, same = (samplers.sample(sampler, keys, z, times) for sampler in (
      multiplied.multiplied(ORACLE, PROCESS, nothing, share=0.5),
      samplers.ancestral(ORACLE, PROCESS, share=0.5)))
  np.testing.assert_allclose(ours, same, rtol=1e-5, atol=1e-6)


def test_radial_functions_have_a_readout_for_each_step_and_are_linear_in_between():
  rng = np.random.default_rng(0)
  net = RadialBasis(steps=3, units=4, outputs=2)
  z, step = rng.standard_normal((5, 2)), np.array([0.0, 0.25, 1.0, 1.5, 2.0])
  shapes = jax.eval_shape(net.init, jax.random.key(0), z, step)['params']
  params = jax.tree.map(lambda u: rng.standard_normal(u.shape), shapes)
  distance = np.linalg.norm(z[:, None] - params['centres'], axis=-1)
  h = np.exp(-0.5 * (distance / np.exp(params['log_widths']))**2)
  h = np.concatenate([h, np.ones((5, 1))], axis=1)
  each = np.stack([h @ readout for readout in params['readout']])  # [steps, B, outputs D]
  exact = [np.stack([np.interp(s, [0, 1, 2], each[:, b, k]) for k in range(4)])
           for b, s in enumerate(step)]
  np.testing.assert_allclose(net.apply({'params': params}, z, step), exact, rtol=1e-5, atol=1e-6)
