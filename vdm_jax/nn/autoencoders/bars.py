"""An autoencoder of bars: some steps of several voices become one vector, and notes again.

Each bar is encoded and decoded alone, as in MusicVAE (Roberts et al. 2018), whose network for two
bars is recurrent.  Here both ways are perceptrons.  A bar has few notes, and the decoder gives all
of them at once, as log-odds of every level.  So the notes of a bar are independent, given y.
"""
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vdm_jax.errors import require
from vdm_jax.nn.blocks.layers import require_sizes, zeros
from vdm_jax.nn.blocks.transformer import MLP
from vdm_jax.typing import Array

_FIRST_LOG_VARIANCE = -4.0  # else the decoder would first learn to do without y


class BarAutoencoder(nn.Module):
  """Windows [B, T, voices, 1] <-> latents y [B, T / steps, 1, latent_channels].

  levels, voices   of the data: integers 0 .. levels - 1, of which x has the outermost at -1 and 1
  steps            of a bar
  latent_channels  the numbers of its latent
  features, depth  of the perceptrons, and their number before and after the latent; a step of a
                   bar has half of these features
  """
  levels: int = 128
  voices: int = 4
  steps: int = 8
  latent_channels: int = 32
  features: int = 128
  depth: int = 2

  def setup(self):
    require_sizes(self, levels=2, voices=1, steps=1, latent_channels=1, features=2, depth=1)
    blocks = lambda: [_Block() for _ in range(self.depth)]
    self.seen = self.param('seen', nn.initializers.normal(1.0),
                           (self.voices, self.levels, self.features // 2))
    self.encode_in, self.encode_blocks = nn.Dense(self.features), blocks()
    self.mean = nn.Dense(self.latent_channels)
    self.log_variance = nn.Dense(self.latent_channels,
                                 bias_init=nn.initializers.constant(_FIRST_LOG_VARIANCE))
    self.decode_in, self.decode_blocks = nn.Dense(self.features), blocks()
    self.decode_steps = nn.Dense(self.steps * (self.features // 2))
    self.norm = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False)
    self.out = nn.Dense(self.voices * self.levels, kernel_init=zeros)

  def encode(self, x: Array) -> tuple[Array, Array]:
    """m and log v of q(y | x), [B, T / steps, 1, latent_channels] each.

    x: [B, T, voices, 1].  Raises InputError if T is no multiple of `steps`.
    """
    batch, length = x.shape[:2]
    require(length % self.steps == 0, 'steps', self.steps, f'a window of {length} steps is no '
            'whole number of bars', 'choose a divisor of the window')
    level = jnp.round(0.5 * (x[..., 0] + 1.0) * (self.levels - 1)).astype(jnp.int32)
    h = jnp.einsum('btvk,vkc->btc', jax.nn.one_hot(level, self.levels), self.seen)
    h = nn.gelu(h * self.voices**-0.5).reshape(batch, length // self.steps, 1, -1)
    h = self.encode_in(h)
    for block in self.encode_blocks:
      h = block(h)
    return self.mean(h), self.log_variance(h)

  def logits(self, y: Array) -> Array:
    """The log-odds of every level: [B, T, voices, 1, levels]; all equal at first."""
    h = self.decode_in(y)
    for block in self.decode_blocks:
      h = block(h)
    h = self.norm(self.decode_steps(h).reshape(len(y), -1, self.features // 2))
    return self.out(nn.gelu(h)).reshape(*h.shape[:2], self.voices, 1, self.levels)

  def decode(self, y: Array) -> Array:
    """x', the mean of x under these odds: [B, T, voices, 1]."""
    centres = jnp.asarray(np.linspace(-1.0, 1.0, self.levels), jnp.float32)
    return jnp.sum(nn.softmax(self.logits(y)) * centres, axis=-1)

  def __call__(self, x: Array) -> Array:
    """x' at the mean of q(y | x)."""
    return self.decode(self.encode(x)[0])


class _Block(nn.Module):
  """h + mlp(norm(h)): [..., C] -> the same shape."""

  @nn.compact
  def __call__(self, h: Array) -> Array:
    norm = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name='norm')
    return h + MLP('tanh', name='mlp')(norm(h))
