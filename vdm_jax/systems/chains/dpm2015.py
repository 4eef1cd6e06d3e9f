"""Diffusion probabilistic models (Sohl-Dickstein, Weiss, Maheswaranathan and Ganguli 2015).

The Gaussian chain is a `Model`.  Its process is a table of levels that are learned with the
network.  Its decoder is the forward kernel of the first step, integrated over bins.  The loss is
the paper's bound, which takes the data as real numbers.  The same evaluation of the network also
gives the bound for the integers, which is `Model.bound`.

The chain of bits is a type of its own.  A run of it gives a `Binomial`, which draws its own
samples.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn

from vdm_jax import data, denoisers, random, targets
from vdm_jax.decoders import DiscretisedNormal
from vdm_jax.errors import InputError
from vdm_jax.model import Model
from vdm_jax.objectives import dpm2015, dpm2015_bits, vlb
from vdm_jax.processes import GaussianProcess
from vdm_jax.schedules import TableSchedule
from vdm_jax.systems import compose
from vdm_jax.typing import Array, Experiment, PyTree, brief
from vdm_jax.units import bits_per_dim


class Rates(nn.Module):
  """The log-SNR of x^(1), ..., x^(T), for a fixed beta_1 = `first` and learned beta_2, ..., beta_T.

  At first beta_t = 1 / (T - t + 2), so that 1 / T of the signal's variance is left at the end.
  """
  steps: int             # T
  first: float = 0.001

  @nn.compact
  def __call__(self) -> Array:
    """[T], decreasing."""
    at_first = -np.log(np.arange(self.steps - 1.0, 0.0, -1.0))  # log odds of 1 / (T - t + 2)
    log_odds = at_first + self.param('log_odds', nn.initializers.zeros, (self.steps - 1,))
    log_unchanged = jnp.concatenate([jnp.log1p(-jnp.full(1, self.first)),
                                     jax.nn.log_sigmoid(-log_odds)])
    log_alpha2 = jnp.cumsum(log_unchanged)
    return log_alpha2 - jnp.log(-jnp.expm1(log_alpha2))


class Binomial(NamedTuple):
  """A trained chain of bits, which draws its own samples."""
  reverse: dpm2015_bits.Reverse
  chain: dpm2015_bits.BinomialChain
  sample: Callable[..., Array]  # keys [B], or key, n; log_ratio=0 -> integers 0 and 1, [B, ...]
  shape: tuple[int, ...]        # of one example

  def __repr__(self) -> str:
    return brief(self)


def default_config(**model) -> ml_collections.ConfigDict:
  return compose.default_config(**{'timesteps': 40} | model)


def gaussian(config: ml_collections.ConfigDict, *, net: Callable[[int], nn.Module]) -> Experiment:
  """The Gaussian chain of config.model.timesteps = T - 1 steps and their learned rates.

  net: T -> a network of (z, step 0 ... T - 1), with two outputs for each coordinate.  The first is
  the target v, whose value 0 gives the mean of the chain for standard normal data.  The second is
  the variance's share.

  config.model has `first_beta`, and the `mean` and `std` of the data in levels.  They give x unit
  second moments.  With larger second moments, keeping signal would lower the loss, and -K would be
  no bound.

  The loss is -K in bits/dim plus log2 std, the loss for densities in levels.  K_bits is K itself,
  of a whole point x, in bits.  'bits_per_dim' and its terms are the bound for the integers.

  Raises InputError for fewer than two steps, or for data of another shape than the mean.
  """
  m, spec = config.model, data.resolve(config.data)
  compose.require(config, 'timesteps', m.timesteps >= 2, 'a chain has two steps or more',
                  'give more')
  if spec.shape != (len(m.mean),):
    raise InputError('config.data.name', spec.name, f'its examples are {spec.shape}, which '
                     f'config.model.mean={tuple(m.mean)} does not fit',
                     'choose points, and give their moments as config.model.mean and std')
  rates, net = Rates(m.timesteps + 1, m.first_beta), net(m.timesteps + 1)
  mean = jnp.asarray(m.mean, jnp.float32)
  in_bins = DiscretisedNormal(spec.levels).log_prob

  def encode(images):
    return (images.astype(jnp.float32) - mean) / m.std

  def decoder(images, z, level):
    """log p(data | x^(1)): the forward kernel, integrated over the bin of each integer."""
    level = level.expand(z)
    centre = 2.0 * (level.alpha * z * m.std + mean + 0.5) / spec.levels - 1.0
    return in_bins(images, centre, 2.0 * level.sigma * m.std / spec.levels)

  def init(key):
    key_net, key_rates = jax.random.split(key)
    return {'net': net.init(key_net, jnp.zeros((1, *spec.shape)), jnp.zeros(1))['params'],
            'schedule': rates.init(key_rates)['params']}

  def model(params, keys=None):
    table = TableSchedule(rates.apply({'params': params['schedule']}))
    read = lambda z, level: (z, jnp.broadcast_to(table.index(level.logsnr), z.shape[:1]))
    apply = lambda z, step, cond: net.apply({'params': params['net']}, z, step, cond)
    denoise = denoisers.denoiser(apply, targets.v, read, heads=('variance',))
    process = GaussianProcess(table)

    def bound(batch, t, keys, steps):
      """The bound of the chain, with the chain's own number of steps."""
      return vlb.discrete(denoise, process, encode(batch[spec.x.name]), t, keys, steps=m.timesteps,
                          data=batch[spec.x.name], decoder=decoder, variance=vlb.learned)

    return Model(
        denoise=denoise, process=process, decoder=decoder, encode=encode, bound=bound,
        bound_variance='learned',
        decode=lambda x: jnp.clip(jnp.round(x * m.std + mean), 0, spec.levels - 1).astype(
            jnp.int32),
        cond=lambda batch: None, shape=spec.shape, steps=m.timesteps, field=spec.x.name)

  def loss(params, batch, context):
    chain = model(params)
    x = chain.encode(batch[chain.field])
    nats, terms = dpm2015.bound(chain.denoise, chain.process, x, context.t, context.keys,
                                steps=m.timesteps)
    ends = vlb.end_terms(chain.process, x, x, context.t, context.keys, batch[chain.field], decoder,
                         None)
    terms = {**ends, 'diffusion': terms['diffusion']}
    bits = jax.tree.map(lambda u: bits_per_dim(u, spec.shape),
                        {'bits_per_dim': sum(terms.values()), **terms})
    return bits_per_dim(nats, spec.shape) + np.log2(m.std), {**bits, 'K_bits': -nats / np.log(2.0)}

  return compose.assemble(config, init=init, loss=loss, model=model)


def binomial(config: ml_collections.ConfigDict,
             *, net: Callable[[float], nn.Module]) -> Experiment:
  """The chain of T = config.model.timesteps steps on bits; each step erases 1 / T of the bits.

  net: the largest time -> a network of (spins, time).  The time is `signal` of
  `dpm2015_bits.BinomialChain`, which is 0 at t = T.  The network's output is added to the log odds
  of the reversed forward kernel.

  config.model.activity: the share of ones in the data, at which the chain ends.  For data with
  another share, -K is no bound.

  The loss is -K in bits/dim, and K_bits is K itself.  `Experiment.model` gives a `Binomial`.

  Raises InputError for data that are not bits, for fewer than two steps, or for a share of ones
  outside of (0, 1).
  """
  m, spec = config.model, data.resolve(config.data)
  compose.require(config, 'timesteps', m.timesteps >= 2, 'a chain has two steps or more',
                  'give more')
  if spec.levels != 2:
    raise InputError('config.data.name', spec.name,
                     f'it has {spec.levels} levels, and the binomial chain needs bits (2 levels)',
                     'choose heartbeat')
  compose.require(config, 'activity', 0.0 < m.activity < 1.0, 'it must be a share of ones',
                  'give a number between 0 and 1')
  chain = dpm2015_bits.BinomialChain.erasing(m.timesteps, m.activity)
  net = net(float(chain.signal[1]))
  encode = lambda bits: 2.0 * bits.astype(jnp.float32) - 1.0

  def init(key):
    return {'net': net.init(key, jnp.zeros((1, *spec.shape)), jnp.zeros(1))['params']}

  def reverse_of(params):
    def reverse(z: Array, t: Array, cond: PyTree = None) -> Array:
      time = jnp.broadcast_to(jnp.asarray(chain.signal, z.dtype)[t], z.shape[:1])
      return chain.kernel(z, t) + net.apply({'params': params['net']}, z, time)
    return reverse

  def loss(params, batch, context):
    x = encode(batch[spec.x.name])
    nats, terms = dpm2015_bits.bound(reverse_of(params), chain, x, context.t, context.keys)
    bits = jax.tree.map(lambda u: bits_per_dim(u, spec.shape), {'bits_per_dim': nats, **terms})
    return bits['bits_per_dim'], {**bits, 'K_bits': -nats / np.log(2.0)}

  def model(params, keys=None):
    reverse = reverse_of(params)

    def sample(key, n=None, log_ratio=0.0):
      x = dpm2015_bits.sample(reverse, chain, random.each(key, n), spec.shape, log_ratio=log_ratio)
      return (x > 0.0).astype(jnp.int32)
    return Binomial(reverse, chain, sample, spec.shape)

  return compose.assemble(config, init=init, loss=loss, model=model)
