"""The temporal U-Net of plans: convolutions along the rows of a sequence, [B, H, C] -> [B, H, C].

Janner et al. (2022), Diffuser, and Ajay et al. (2023), with the layers of the public code of the
latter.  Halving the rows lets the last level see the whole plan.  The highest level is not passed
across to the way up, as published.
"""
import jax
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.errors import require
from vdm_jax.nn.blocks.layers import require_groups, require_sizes, sinusoidal_embedding
from vdm_jax.nn.blocks.told import Vectors
from vdm_jax.typing import Array, PyTree


class _Convolution(nn.Module):
  """A convolution along the rows, a group norm and mish."""
  features: int
  kernel: int
  groups: int

  @nn.compact
  def __call__(self, h: Array) -> Array:
    side = self.kernel // 2
    h = nn.Conv(self.features, (self.kernel,), padding=((side, side),), name='conv')(h)
    norm = nn.GroupNorm(self.groups, epsilon=1e-5, use_fast_variance=False, name='norm')
    return jax.nn.mish(norm(h))


class _Block(nn.Module):
  """Two convolutions, between which the embedding is added, beside a residual path."""
  features: int
  kernel: int
  groups: int

  @nn.compact
  def __call__(self, h: Array, embedded: Array) -> Array:
    y = _Convolution(self.features, self.kernel, self.groups, name='first')(h)
    y += nn.Dense(self.features, name='embedding')(jax.nn.mish(embedded))[:, None]
    y = _Convolution(self.features, self.kernel, self.groups, name='second')(y)
    if h.shape[-1] != self.features:
      h = nn.Dense(self.features, name='residual')(h)
    return y + h


class TemporalUNet(nn.Module):
  """The U-Net of a plan whose rows are a multiple of 2^(len(multipliers) - 1).

  features      of the first level
  multipliers   of each level; 1, 4, 8 are published, with 128 features
  kernel        rows that a convolution reads, odd
  groups        of the group norms; divides the features of each level
  conditions    the number of vectors that it is told, see `told.Told`
  """
  features: int = 128
  multipliers: tuple[int, ...] = (1, 4, 8)
  kernel: int = 5
  groups: int = 8
  conditions: int = 0

  @nn.compact
  def __call__(self, z: Array, time: Array, cond: PyTree = None, keys: Array | None = None
               ) -> Array:
    """y: [B, H, C].  z: [B, H, C]; time: [B], the step of a chain; cond: a `Told`, if there are
    conditions; keys: not used.

    Raises InputError: data of another shape; rows that cannot be halved so often; impossible sizes;
    a condition of another kind.
    """
    require_sequence(z)
    require_sizes(self, features=4, groups=1, conditions=0)
    widths = [self.features * m for m in self.multipliers]
    require_groups(self.groups, *widths)
    require(self.kernel % 2 == 1, 'kernel', self.kernel, 'a row is at its middle',
            'give an odd number')
    halved = 2**(len(widths) - 1)
    require(z.shape[1] % halved == 0, 'horizon', z.shape[1], f'this network halves the rows '
            f'{len(widths) - 1} times', f'choose a multiple of {halved}')
    block = lambda width, name: _Block(width, self.kernel, self.groups, name=name)

    h = sinusoidal_embedding(time, self.features)
    h = jax.nn.mish(nn.Dense(4 * self.features, name='time_0')(h))
    embedded = [nn.Dense(self.features, name='time_1')(h)]
    embedded += Vectors(self.features, self.conditions, name='told')(cond)
    embedded = jnp.concatenate(embedded, axis=-1)

    h, across = z, []
    for i, width in enumerate(widths):
      for k in range(2):
        h = block(width, f'down_{i}_{k}')(h, embedded)
      across.append(h)
      if i < len(widths) - 1:
        h = nn.Conv(width, (3,), (2,), padding=((1, 1),), name=f'down_{i}_half')(h)
    for k in range(2):
      h = block(widths[-1], f'middle_{k}')(h, embedded)
    for i, width in reversed(list(enumerate(widths[:-1]))):
      h = jnp.concatenate([h, across[i + 1]], axis=-1)
      for k in range(2):
        h = block(width, f'up_{i}_{k}')(h, embedded)
      h = nn.ConvTranspose(width, (4,), (2,), padding=((2, 2),), name=f'up_{i}_double')(h)
    h = _Convolution(widths[0], self.kernel, self.groups, name='out_conv')(h)
    return nn.Dense(z.shape[-1], name='out')(h)


def require_sequence(z: Array) -> None:
  """Raises InputError unless z is [B, H, C]."""
  require(jnp.ndim(z) == 3, 'z', jnp.shape(z), 'this network reads sequences [B, H, C]',
          'give it three axes')
