"""The networks of TimeGrad: a recurrent state of the past, and a denoiser of one step of C series.

Rasul, Seward, Schuster and Vollgraf (2021), with the sizes of their public code.  The denoiser is a
stack of gated convolutions over the series, as in WaveNet and DiffWave.  Neighbouring series are
taken to be on a circle.
"""
import math

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vdm_jax.errors import require
from vdm_jax.nn.blocks.layers import (
    require_points,
    require_sizes,
    sinusoidal_embedding,
    zeros,
)
from vdm_jax.typing import Array, PyTree


class Past(nn.Module):
  """Gated recurrent units that read a series row by row: their state is the condition of a row.

  A row is given the lagged values of all series, one learned number or more for each series, and
  the features of the row.

  cells         of each layer
  layers        of units
  conditioning  the length of the condition
  embedding     learned numbers for each series, the same in all rows
  """
  cells: int = 40
  layers: int = 2
  conditioning: int = 100
  embedding: int = 1

  @nn.compact
  def __call__(self, lagged: Array, features: Array, carry: PyTree = None) -> tuple[Array, PyTree]:
    """(conditions [B, L, conditioning], the state after the last row).

    lagged: [B, L, C, lags], the scaled values that row l may know; features: [B, L, F]; carry: the
    state before the first row, None at the start.
    """
    require_sizes(self, cells=1, layers=1, conditioning=1, embedding=0)
    batch, length, series, _ = lagged.shape
    h = [lagged.reshape(batch, length, -1)]
    if self.embedding:
      own = self.param('embedding', nn.initializers.normal(1.0), (series, self.embedding))
      h.append(jnp.broadcast_to(own.reshape(-1), (batch, length, own.size)))
    h = jnp.concatenate([*h, features], axis=-1)
    states = []
    for i in range(self.layers):
      units = nn.RNN(nn.GRUCell(self.cells, name=f'layer_{i}'), return_carry=True)
      state, h = units(h, initial_carry=None if carry is None else carry[i])
      states.append(state)
    return nn.Dense(self.conditioning, name='dense')(h), tuple(states)


def _leaky(h: Array) -> Array:
  return nn.leaky_relu(h, 0.4)


def _circular(h: Array, by: int) -> Array:
  """[B, C, H] -> [B, C + 2 by, H], continued on both sides as on a circle."""
  return jnp.pad(h, ((0, 0), (by, by), (0, 0)), mode='wrap')


class StepDenoiser(nn.Module):
  """The denoiser of one row of C series, given the condition of the row: [B, C] -> [B, C].

  layers, channels  of the residual blocks
  cycle             the dilations of the blocks are 2^(i mod cycle)
  features          half the length of the embedding of the step
  hidden            the length of what is made of this embedding
  smooth            False: the sines of n 10^(k / 4), k < features = 16, as published.  Most of them
                    are faster than the step n, so the network knows whole steps only.  True:
                    `sinusoidal_embedding`, for real times
  """
  layers: int = 8
  channels: int = 8
  cycle: int = 2
  features: int = 16
  hidden: int = 64
  smooth: bool = False

  @nn.compact
  def __call__(self, z: Array, step: Array, cond: PyTree = None, keys: Array | None = None
               ) -> Array:
    """y: [B, C], zero at first.  z: [B, C]; step: [B]; cond: [B, K]; keys: not used.

    Raises InputError: data of another shape; impossible sizes; no condition.
    """
    require_points(z)
    require_sizes(self, layers=1, channels=1, cycle=1, features=2, hidden=1)
    require(jnp.ndim(cond) == 2, 'cond', None, 'this network needs the condition of a row',
            'give an array [B, K]')
    series = z.shape[-1]
    if self.smooth:
      embedded = sinusoidal_embedding(step, 2 * self.features)
    else:
      frequencies = np.float32(10.0)**(4.0 * np.arange(self.features) / self.features)
      phases = step[:, None] * frequencies.astype(np.float32)
      embedded = jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=-1)
    for i in range(2):
      embedded = nn.silu(nn.Dense(self.hidden, name=f'step_{i}')(embedded))
    for i, width in enumerate((max(series // 2, 1), series)):
      cond = _leaky(nn.Dense(width, name=f'cond_{i}')(cond))
    told = _circular(cond[..., None], 2)
    h = _leaky(nn.Dense(self.channels, name='dense_in')(_circular(z[..., None], 2)))
    skipped = 0.0
    for i in range(self.layers):
      dilation = 2**(i % self.cycle)
      y = h + nn.Dense(self.channels, name=f'block_{i}_step')(embedded)[:, None]
      y = nn.Conv(2 * self.channels, (3,), kernel_dilation=(dilation,), padding='VALID',
                  name=f'block_{i}_conv')(_circular(y, dilation))
      y += nn.Dense(2 * self.channels, name=f'block_{i}_cond')(told)
      gate, filtered = jnp.split(y, 2, axis=-1)
      y = nn.sigmoid(gate) * jnp.tanh(filtered)
      y = _leaky(nn.Dense(2 * self.channels, name=f'block_{i}_out')(y))
      residual, skip = jnp.split(y, 2, axis=-1)
      h, skipped = (h + residual) / math.sqrt(2.0), skipped + skip
    y = skipped / math.sqrt(self.layers)
    y = _leaky(nn.Conv(self.channels, (3,), padding='VALID', name='conv_skip')(y))
    return nn.Conv(1, (3,), padding='VALID', kernel_init=zeros, name='conv_out')(y)[..., 0]
