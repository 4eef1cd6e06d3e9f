"""Bits-back coding: the rate is the bound of the chain, and every image comes back."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import codec, decoders, model, processes, random, schedules
from vdm_jax.codec import bits_back
from vdm_jax.errors import InputError
from vdm_jax.objectives import vlb
from vdm_jax.typing import Estimate

LEVELS, SHAPE = 17, (4, 4, 1)
PIXELS = decoders.Pixels(LEVELS)
PROCESS = processes.GaussianProcess(schedules.Linear(7.4, -5.2))
DIMENSIONS = int(np.prod(SHAPE))


def of(denoise, cond=lambda batch: None, **fields):
  return model.Model(denoise, PROCESS, PIXELS.log_prob, PIXELS.encode, PIXELS.decode, cond, SHAPE,
                     **fields)


def estimate(x, z, level):
  level = level.expand(z)
  return Estimate(x, (z - level.alpha * x) / level.sigma)


def uniform(z, level, cond=None):
  """The posterior mean of pixels that have each level with equal probability."""
  at = level.expand(z)
  centres = PIXELS.encode(jnp.arange(LEVELS))
  logits = -0.5 * jnp.exp(at.logsnr)[..., None] * jnp.square((z / at.alpha)[..., None] - centres)
  return estimate(jax.nn.softmax(logits) @ centres, z, level)


def images(count, seed=0):
  return np.random.default_rng(seed).integers(0, LEVELS, (count, *SHAPE))


def back(chain, coded, count, **options):
  out = np.full((count, *SHAPE), -1)
  for rows, decoded in codec.decode(chain, coded.lanes, count, progress=False, **options):
    out[rows] = decoded
  return out


@pytest.mark.long
@pytest.mark.parametrize('steps, lanes', [(20, 4), (50, 16)])
def test_where_the_data_are_known_the_net_is_what_the_ends_cost(steps, lanes):
  """With x_hat = x the kernels p and q are equal: reconstruction + latent, whatever T."""
  data = images(202)
  chain = codec.chain(of(lambda z, level, x: estimate(x, z, level),
                         lambda batch: PIXELS.encode(batch['image'])), LEVELS, steps, lanes=lanes)
  conditions = lambda rows: {'image': jnp.asarray(data[rows])}
  coded = codec.encode(chain, lambda rows: data[rows], 202, conditions=conditions, progress=False)
  np.testing.assert_array_equal(back(chain, coded, 202, conditions=conditions), data)
  x, keys = PIXELS.encode(jnp.asarray(data)), random.per_example(random.key(0), jnp.arange(202))
  draws = [sum(vlb.end_terms(PROCESS, x, x, jnp.zeros(202),
                             jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys),
                             jnp.asarray(data), PIXELS.log_prob, None).values())
           for i in range(20)]
  exact = np.mean(draws, axis=0) / np.log(2.0)
  difference = (coded.net - exact) / DIMENSIONS
  assert abs(difference.mean()) < 4.0 * difference.std() / 202**0.5


@pytest.mark.long
def test_the_net_rate_is_the_bound_of_the_chain_image_by_image():
  """Within one percent and two standard errors; of analytic variances, too, which cost less."""
  data = images(300)
  exact = of(uniform)
  rates = {}
  for variance in ('small', 'analytic'):
    kernel = None
    if variance == 'analytic':
      kernel = exact_variance
    chain = codec.chain(exact, LEVELS, 20, lanes=100, variance=variance, kernel=kernel)
    coded = codec.encode(chain, lambda rows: data[rows], 300, progress=False)
    keywords = {'variance': kernel} if kernel else {}
    total = []
    for i in range(60):
      keys = random.per_example(random.key(i), jnp.arange(300))
      t = (jax.vmap(random.unit)(keys) + i) / 60.0
      total.append(one_draw(t, keys, jnp.asarray(data), **keywords))
    bound = np.mean(total, axis=0) / np.log(2.0) / DIMENSIONS
    difference = coded.net / DIMENSIONS - bound
    error = difference.std() / 300**0.5
    assert abs(difference.mean()) < 0.01 * bound.mean() + 2.0 * error, variance
    assert error < 0.01 * bound.mean()
    rates[variance] = coded.net.mean() / DIMENSIONS
    assert rates[variance] > np.log2(LEVELS)  # what such pixels have in them
  assert rates['analytic'] < rates['small'] - 0.25


@pytest.mark.long
def test_the_variance_of_the_network_is_the_variance_of_the_chain():
  """At the ends of its head it is beta_tilde = sigma_s^2 tau and beta = sigma_t^2 tau."""
  def with_head(share):
    head = lambda z: {'variance': jnp.full(z.shape, share)}
    return of(lambda z, level, cond=None: uniform(z, level)._replace(extra=head(z)))

  z, tau = np.zeros((2, *SHAPE), np.float32), 1.0 - np.exp(-(7.4 + 5.2) / 5)
  for share, late in ((-1.0, 0), (1.0, 1)):
    chain = codec.chain(with_head(share), LEVELS, 5, lanes=2, variance='learned')
    for step in (1, 3, 5):
      exact = float(PROCESS(jnp.asarray((step - 1 + late) / 5)).sigma) * tau**0.5
      _, std = chain.reverse(z, step, {})
      np.testing.assert_allclose(std * chain.bins[step - 1], exact, rtol=1e-4)
  chain, data = codec.chain(with_head(0.3), LEVELS, 5, lanes=2, variance='learned'), images(6)
  coded = codec.encode(chain, lambda rows: data[rows], 6, progress=False)
  np.testing.assert_array_equal(back(chain, coded, 6), data)


@pytest.mark.long
@pytest.mark.parametrize('steps', [20, 100])
def test_the_bits_that_are_borrowed_at_first_are_two_latents_less_the_reconstruction(steps):
  """Entropies of Gaussians in bins; and the two words of the state, which no image has touched."""
  shape, lanes = (32, 32, 1), 4
  size = int(np.prod(shape))
  wide = of(uniform)._replace(shape=shape)
  data = np.random.default_rng(3).integers(0, LEVELS, (lanes, *shape))
  chain = codec.chain(wide, LEVELS, steps, lanes=lanes)
  coded = codec.encode(chain, lambda rows: data[rows], lanes, progress=False)
  level = PROCESS(jnp.zeros(lanes))
  noise = np.random.default_rng(4).standard_normal(data.shape)
  x = PIXELS.encode(jnp.asarray(data))
  z = float(level.alpha[0]) * x + float(level.sigma[0]) * noise
  nats = -np.asarray(PIXELS.log_prob(jnp.asarray(data), jnp.asarray(z, jnp.float32), level))
  reconstruction = nats.sum() / data.size / np.log(2.0)
  latent = np.log2(2.0 * np.sqrt(2.0 * np.pi * np.e))  # two bins to a standard deviation
  tau = 1.0 - np.exp(-(7.4 + 5.2) / steps)
  exact = 2.0 * latent - 0.5 * np.log2(tau) - reconstruction
  borrowed = coded.initial / lanes / size
  assert borrowed - 64.0 / size == pytest.approx(exact, rel=0.02)


def exact_variance(estimate, at_t, at_s):
  """beta_tilde and what the mean of the posterior leaves open, E Var(x | z_t), by quadrature."""
  centres = PIXELS.encode(jnp.arange(LEVELS))
  nodes, weights = np.polynomial.hermite_e.hermegauss(64)
  snr = jnp.exp(at_t.logsnr).reshape(-1)
  z = centres[:, None, None] + nodes[:, None] / jnp.sqrt(snr)  # [levels, nodes, B], in units of x
  p = jax.nn.softmax(-0.5 * snr[:, None] * jnp.square(z[..., None] - centres))
  variance = p @ jnp.square(centres) - jnp.square(p @ centres)
  mean = jnp.tensordot(weights / weights.sum(), variance.mean(0), 1).reshape(at_t.logsnr.shape)
  share = processes.tau(at_t, at_s)
  return jnp.square(at_s.sigma) * share + jnp.square(at_s.alpha * share) * mean


@jax.jit
def _small(t, keys, data):
  return vlb.discrete(uniform, PROCESS, PIXELS.encode(data), t, keys, steps=20, data=data,
                      decoder=PIXELS.log_prob)[0]


@jax.jit
def _analytic(t, keys, data):
  return vlb.discrete(uniform, PROCESS, PIXELS.encode(data), t, keys, steps=20, data=data,
                      decoder=PIXELS.log_prob, variance=exact_variance)[0]


def one_draw(t, keys, data, variance=None):
  return (_analytic if variance else _small)(t, keys, data)


@pytest.mark.long
@pytest.mark.parametrize('white', [True, False], ids=['whitened', 'plain'])
def test_popped_latents_are_fresh_noise_only_if_the_stack_is_whitened(white, monkeypatch):
  """E noise^2 = 1 + 1 / (12 c^2) in standard deviations of q, for c = 2 bins each."""
  if not white:
    monkeypatch.setattr(bits_back._Coder, 'whiten', lambda self, group, i: None)
  noise = []
  pop = bits_back._Coder.pop_latent

  def spied(self, i, before):
    k = pop(self, i, before)
    if i:
      c = self._chain
      mean = before * c.bins[i - 1] * c.alpha[i] / c.alpha[i - 1]
      noise.append((k * c.bins[i] - mean) / c.forward_std[i])
    return k

  monkeypatch.setattr(bits_back._Coder, 'pop_latent', spied)
  chain = codec.chain(of(uniform), LEVELS, 20, lanes=100)
  data = images(100)
  codec.encode(chain, lambda rows: data[rows], 100, progress=False)
  noise = np.stack(noise)  # [T n, D]
  square = np.square(noise)
  # The grid of z_i is at most a half of the standard deviation of q, and finer where p is narrower.
  width = (chain.bins[1:] / chain.forward_std[1:])**2 / 12.0
  error = square.std() / square.size**0.5
  far = abs(square.mean() - 1.0 - width.mean()) / error
  assert far < 4.0 if white else far > 8.0


@pytest.mark.parametrize('problem, fields', [
    ('has a bound of its own', {'bound': lambda *_: None}),
    ('has latents of its own', {'latent': lambda keys: None}),
    ('draws latents', {'is_latent': True})])
def test_a_model_without_a_chain_is_refused(problem, fields):
  with pytest.raises(InputError, match=problem):
    codec.chain(of(uniform, **fields), LEVELS, 20)


@pytest.mark.long
def test_a_log_snr_that_stands_still_is_refused():
  flat = lambda t: jnp.where(t < 0.5, 7.4 - 20.0 * t, -2.6)
  still = of(uniform)._replace(process=processes.GaussianProcess(flat))
  with pytest.raises(InputError, match='T=4: the log-SNR of this model does not fall in every'):
    codec.chain(still, LEVELS, 4)


def test_images_of_another_shape_or_with_other_levels_are_refused():
  chain = codec.chain(of(uniform), LEVELS, 2)
  for bad, message in ((np.zeros((2, 4, 5, 1), int), r'their shape is \[4, 5, 1\]'),
                       (np.full((2, *SHAPE), 17), 'from 17 to 17; give integers from 0 to 16'),
                       (np.zeros((2, *SHAPE)), 'values of float64')):
    with pytest.raises(InputError, match=message):
      codec.encode(chain, lambda rows, bad=bad: bad[rows], 2, progress=False)


def test_a_network_that_is_not_finite_is_refused():
  broken = of(lambda z, level, cond: estimate(z * jnp.nan, z, level))
  with pytest.raises(InputError, match='no finite kernel at step 1'):
    codec.encode(codec.chain(broken, LEVELS, 2), lambda rows: images(1)[rows], 1, progress=False)


def test_words_that_do_not_come_back_are_an_error():
  chain, data = codec.chain(of(uniform), LEVELS, 3), images(3)
  coded = codec.encode(chain, lambda rows: data[rows], 3, progress=False)
  words = coded.lanes[0].words.copy()
  words[len(words) // 2] ^= 1 << 9
  with pytest.raises(InputError):
    list(codec.decode(chain, [coded.lanes[0]._replace(words=words)], 3, progress=False))
