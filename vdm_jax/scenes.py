"""Scenes: parameters theta that render to pictures, differentiably.

  image    theta is x itself, the same from every side
  mlp      a network of the coordinates of a pixel, the same from every side
  voxels   a density and a colour in each of N^3 cells, seen from any angle around the vertical axis

A picture of `voxels` is orthographic: all rays are parallel.  A ray passes cells of densities d_i
and colours c_i, front to back, each of length h.  It shows

    sum_i T_i (1 - exp(-h d_i)) c_i + T_N background,    T_i = exp(-h sum_(j < i) d_j)

which is the volume rendering of Mildenhall et al. (2020), NeRF, eq. 3.  Here the cube of cells has
the side 1 (h = 1 / N), and colours are x, in (-1, 1).
"""
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.errors import require, require_choice
from vdm_jax.typing import Array, PyTree
from vdm_jax.values import Bound

__all__ = ['Coordinates', 'SCENES', 'Scene', 'composite', 'image', 'mlp', 'named', 'quarters',
           'turned', 'voxels']


class Scene(NamedTuple):
  """Parameters that render to pictures."""
  init: Callable[[Array], PyTree]           # a key -> theta
  render: Callable[[PyTree, Array], Array]  # theta, degrees [B] -> x [B, H, W, C]
  turns: bool                               # whether pictures depend on the degrees
  rate: float                               # a learning rate of Adam that suits theta


# ------------------------------------------------------------------------ pictures


def image(shape: tuple[int, ...]) -> Scene:
  """theta is x, of any shape, and begins at 0.  Nothing keeps it in the range of the data."""
  render = lambda theta, angles: jnp.broadcast_to(theta, (*angles.shape, *shape))
  return Scene(lambda key: jnp.zeros(shape), render, False, 0.05)


class Coordinates(nn.Module):
  """Coordinates [..., D] in [-1, 1] -> numbers [..., outputs], through sines and cosines of them.

  The frequencies are pi, 2 pi, ..., 2^(octaves - 1) pi, as in NeRF (Mildenhall et al. 2020, eq. 4).
  """
  outputs: int
  features: int = 64
  layers: int = 2
  octaves: int = 4

  @nn.compact
  def __call__(self, places: Array) -> Array:
    waves = math.pi * places[..., None] * 2.0 ** jnp.arange(self.octaves)
    waves = waves.reshape(*places.shape[:-1], -1)
    h = jnp.concatenate([places, jnp.sin(waves), jnp.cos(waves)], axis=-1)
    for i in range(self.layers):
      h = nn.swish(nn.Dense(self.features, name=f'dense_{i}')(h))
    return nn.Dense(self.outputs, kernel_init=nn.initializers.zeros, name='out')(h)


def mlp(shape: tuple[int, ...], net: Coordinates | None = None) -> Scene:
  """x = tanh(net(row, column)): a picture [H, W, C] whose theta are the parameters of a network."""
  height, width, channels = shape
  net = Coordinates(channels) if net is None else net
  side = lambda n: (2.0 * jnp.arange(n) + 1.0) / n - 1.0
  places = lambda: jnp.stack(jnp.meshgrid(side(height), side(width), indexing='ij'), axis=-1)

  def render(theta, angles):
    x = jnp.tanh(Bound(theta, net)(places()))
    return jnp.broadcast_to(x, (*angles.shape, *shape))
  return Scene(lambda key: net.init(key, places())['params'], render, False, 0.005)


# ------------------------------------------------------------------------ voxels


def quarters(degrees: Array) -> tuple[Array, Array]:
  """(cos, sin), exactly 0 or +-1 at multiples of 90 degrees."""
  k = jnp.round(degrees / 90.0)
  rest = jnp.deg2rad(degrees - 90.0 * k)
  c, s = jnp.cos(rest), jnp.sin(rest)
  k = jnp.mod(k, 4.0)
  return (jnp.select([k == 0, k == 1, k == 2], [c, -s, -c], s),
          jnp.select([k == 0, k == 1, k == 2], [s, c, -s], -c))


def turned(cells: Array, degrees: Array) -> Array:
  """Cells [Y, X, Z, ...] as the camera sees them: [Y, column, depth, ...], bilinear, X = Z = N.

  At 0 degrees columns run along X and depth along Z.  The camera goes round to the right: at 90
  degrees columns run along Z, and depth against X.  Outside of the cube cells are 0.  Multiples of
  90 degrees move whole cells, without rounding.
  """
  n = cells.shape[1]
  c, s = quarters(degrees)
  middle = 0.5 * (n - 1)
  column, depth = jnp.meshgrid(jnp.arange(n) - middle, jnp.arange(n) - middle, indexing='ij')
  hat = lambda at: jnp.maximum(0.0, 1.0 - jnp.abs(at[..., None] - jnp.arange(n)))
  along_x, along_z = hat(c * column - s * depth + middle), hat(s * column + c * depth + middle)
  return jnp.einsum('cdx,cdz,yxz...->ycd...', along_x, along_z, cells)


def composite(density: Array, colour: Array, background: Array, length: float) -> Array:
  """What rays show: density [..., N] and colour [..., N, C], front to back -> [..., C].

  length: of a cell.  background: [C].  Mildenhall et al. (2020), eq. 3.
  """
  depth = length * density
  before = jnp.cumsum(depth, axis=-1) - depth
  shares = jnp.exp(-before) * -jnp.expm1(-depth)
  behind = jnp.exp(-jnp.sum(depth, axis=-1, keepdims=True))
  return jnp.einsum('...n,...nc->...c', shares, colour) + behind * background


def voxels(shape: tuple[int, ...], density: float = 1.0) -> Scene:
  """N^3 cells for pictures [N, N, C]: theta has 'density', 'colour' and 'background', unbounded.

  The density of a cell is softplus(theta), and begins near `density`; colours are tanh(theta), and
  begin at 0.  Between cells, the density and the light (density times colour) are interpolated.

  Raises InputError for pictures that are not square.
  """
  n, width, channels = shape
  require(n == width, 'scene', 'voxels', f'the pictures have {n} x {width} pixels', 'name a run of '
          'square pictures, or choose image or mlp')

  def init(key):
    start = math.log(math.expm1(density))
    return {'density': start + 0.1 * jax.random.normal(key, (n, n, n)),
            'colour': jnp.zeros((n, n, n, channels)), 'background': jnp.zeros(channels)}

  def render(theta, angles):
    dense = jax.nn.softplus(theta['density'])[..., None]
    light = jnp.concatenate([dense, dense * jnp.tanh(theta['colour'])], axis=-1)

    def one(degrees):
      seen = turned(light, degrees)
      there = seen[..., :1] > 0.0
      colour = jnp.where(there, seen[..., 1:] / jnp.where(there, seen[..., :1], 1.0), 0.0)
      return composite(seen[..., 0], colour, jnp.tanh(theta['background']), 1.0 / n)
    return jax.vmap(one)(angles)
  return Scene(init, render, True, 0.05)


SCENES = {'image': image, 'mlp': mlp, 'voxels': voxels}


def named(name: str, shape: tuple[int, ...]) -> Scene:
  """The scene of this name, for pictures [H, W, C].  Raises InputError."""
  require_choice('scene', name, SCENES)
  return SCENES[name](shape)
