"""A transformer of voices: pitches of several voices over time, as scalars of many levels.

A token is a step of time with all its voices.  The network knows the levels of the data.  It
estimates log-probabilities l of every level, and its estimate of x is the mean of

    p(k | z) = softmax_k(l_k + b_k + log q(z | level k)).

The last term is the exact likelihood of the noisy number itself, and b is a table for each voice.
So the network learns what the other numbers tell about a number.  At high log-SNR, where the
number itself is enough, the estimate is exact without any training.  Dieleman et al. (2022) and
Gulrajani and Hashimoto (2023, "output prior") do likewise for vectors of words.

Each voice is also a Markov chain, with learned probabilities of the next level given a level.  The
chain takes the softmax above as the likelihoods of its states, and x_hat is the mean of their
posterior (`smoothed`).  Another chain smooths what the transformer reads.  Untrained chains have
equal probabilities and change nothing.
"""
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vdm_jax.nn.blocks import stack
from vdm_jax.nn.blocks.layers import Dropout, require_heads, require_sizes, zeros
from vdm_jax.nn.blocks.transformer import MLP, SelfAttention
from vdm_jax.nn.transformers.dit import Time, positions
from vdm_jax.typing import Array

_xavier = nn.initializers.xavier_uniform()
_TIME = 50.0  # log-SNR to the scale that the sines of `Time` expect


class Block(nn.Module):
  """A block of DiT with a convolution over three steps before the attention, and dropout.

  [B, T, C], c [B, C] -> [B, T, C].  It starts as the identity.
  """
  attention_heads: int
  dropout: float = 0.0

  @nn.compact
  def __call__(self, h: Array, c: Array, keys: Array | None = None) -> Array:
    width = h.shape[-1]
    modulation = nn.Dense(6 * width, kernel_init=zeros, name='modulation')(nn.swish(c))
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation[:, None], 6, axis=-1)
    norm = lambda: nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False,
                                use_fast_variance=False)
    drop = lambda name: Dropout(self.dropout, name=name)
    x = norm()(h) * (1.0 + scale1) + shift1
    # Neighbours matter most, and whoever reads them need not learn the positions first.
    near = self.param('near', nn.initializers.normal(0.1), (3, width))
    x = x + sum(near[i] * jnp.pad(x, ((0, 0), (2 - i, i), (0, 0)))[:, 1:-1] for i in range(3))
    x = SelfAttention(self.attention_heads, kernel_init=_xavier, attention='xla',
                      name='attention')(x)
    h = h + gate1 * drop('drop1')(x, keys)
    x = MLP('tanh', kernel_init=_xavier, name='mlp')(norm()(h) * (1.0 + scale2) + shift2)
    return h + gate2 * drop('drop2')(x, keys)


def smoothed(odds: Array, after: Array) -> Array:
  """The posterior of the states of Markov chains: the forward-backward algorithm.

  odds: [B, T, voices, levels], p(what is seen of step t | state), up to a factor for each step.
  after: [voices, levels, levels], p(next state | state), with rows that sum to 1.  All first states
    are equally probable.

  Returns p(state of step t | all that is seen), as odds; see Rabiner (1989, "A tutorial on hidden
  Markov models").
  """
  normed = lambda p: p / jnp.maximum(jnp.sum(p, axis=-1, keepdims=True), 1e-30)

  def step(along: str):
    def pass_on(p: Array, odds: Array) -> tuple[Array, Array]:
      return normed(jnp.einsum(along, p * odds, after)), p
    return pass_on
  odds = jnp.moveaxis(odds, 1, 0)
  uniform = jnp.full_like(odds[0], 1.0 / odds.shape[-1])
  _, before = jax.lax.scan(step('bvk,vkl->bvl'), uniform, odds)
  _, behind = jax.lax.scan(step('bvl,vkl->bvk'), uniform, odds, reverse=True)
  return jnp.moveaxis(normed(before * odds * behind), 0, 1)


class Voices(nn.Module):
  """The network of the module's text, on x of integers 0 .. levels - 1 as `decoders.Pixels` codes.

  levels                 of a number
  features, depth        of the transformer; `features` is a multiple of 4
  attention_heads        of each block
  dropout                of each block, and of the tokens before the first block
  scan, remat            see `blocks.stack`
  """
  levels: int = 128
  features: int = 128
  depth: int = 4
  attention_heads: int = 4
  dropout: float = 0.0
  scan: bool = True
  remat: stack.Remat = 'none'

  @nn.compact
  def __call__(self, z: Array, logsnr: Array, cond: Array | None = None,
               keys: Array | None = None) -> Array:
    """The estimate of x, [B, T, voices, 1].  z: [B, T, voices, 1], on the `vp` curve; logsnr,
    keys: [B].  Raises InputError for settings that do not fit each other.
    """
    require_sizes(self, features=4, depth=1, levels=2)
    require_heads('attention_heads', self.attention_heads, self.features)
    _, steps, voices, _ = z.shape
    width = self.features
    centres = jnp.asarray((2.0 * np.arange(self.levels) + 1.0) / self.levels - 1.0, jnp.float32)
    level = logsnr[:, None, None, None]
    y = z * jax.lax.rsqrt(nn.sigmoid(level))  # x + noise of variance exp(-logsnr)
    table = self.param('odds', zeros, (voices, self.levels))
    own = table - 0.5 * jnp.exp(level) * jnp.square(y - centres)

    chain = lambda name: nn.softmax(
        self.param(name, zeros, (voices, self.levels, self.levels)))
    seen = self.param('seen', nn.initializers.normal(1.0), (voices, self.levels, width))
    h = jnp.einsum('btvk,vkc->btc', smoothed(nn.softmax(own), chain('near')), seen) * voices**-0.5
    h += nn.Dense(width, name='raw')(z[..., 0])
    h = Dropout(self.dropout, name='drop')(h, keys)
    h += positions(1, steps, width)
    c = Time(width, name='time')(_TIME * logsnr)
    block = Block(self.attention_heads, self.dropout, parent=None)
    params = stack.parameters(self, 'blocks', block, self.depth, h, c)
    apply = lambda params, h, each: cast(
        Array, block.apply({'params': params}, h, c, each['keys']))
    # Every block has keys of its own: their masks differ.
    own_keys = None if keys is None else jax.vmap(
        lambda i: jax.vmap(lambda key: jax.random.fold_in(key, i))(keys))(jnp.arange(self.depth))
    h, _ = stack.run(apply, params, h, {'keys': own_keys}, self.scan, self.remat)
    h = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name='norm')(h)
    logits = nn.Dense(voices * self.levels, kernel_init=zeros, name='out')(h)
    odds = nn.softmax(own + logits.reshape(-1, steps, voices, self.levels))
    odds = smoothed(odds, chain('after'))
    return jnp.sum(odds * centres, axis=-1, keepdims=True)
