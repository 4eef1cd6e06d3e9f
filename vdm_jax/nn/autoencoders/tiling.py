"""Decoding of large latents in tiles, so that memory depends on the tile and not on the image.

The decoder sees overlapping squares of the latent, one after another.  Each square becomes a tile
of the images, and neighbouring tiles are blended where they overlap:

    images[p] = sum_k w_k(p) tile_k[p],   sum_k w_k(p) = 1

w_k is 0 within `margin` of an edge at which the square was cut, rises linearly over the rest of the
overlap, and is 1 further in.  An edge of the latent itself is no cut.

A convolution is wrong only near a cut, where it sees zeros in place of the neighbours.  So a
decoder of convolutions alone gives the same images, up to rounding, if it looks no further than
`margin` positions.  The autoencoders of `compvis` also have normalisations and an attention that
see the whole image, and in tiles these see one square.  Their tiles differ a little in brightness
and colour, and blending only makes this change gradual.  Take large squares there.  The networks of
`taesd` are convolutions alone; with three doublings a pixel sees up to 19 positions far (margin
19).
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.errors import require, require_at_least
from vdm_jax.nn.blocks.layers import require_images
from vdm_jax.typing import Array


def decode_tiled(decode: Callable[[Array], Array], y: Array, tile: int, overlap: int,
                 margin: int | None = None) -> Array:
  """decode(y), computed in tiles: [B, f h, f w, C].

  The program of one tile is compiled once and runs in a loop.  At any time it holds the images and
  the activations of one tile for all B examples.

  Args:
    decode: latents [B, tile, tile, c] -> images [B, f tile, f tile, C].
    y: [B, h, w, c].  Where a side is no longer than `tile`, it is not cut.
    tile: the side of a square, in positions of the latent.
    overlap: positions that neighbouring squares share at least.
    margin: positions at a cut that are not used, at most half the overlap.  Default: a quarter of
      the overlap.

  Raises InputError: no images; sizes that do not fit each other; a decoder whose images are not f
  times as large as its latents.
  """
  require_images(y)
  require_at_least('tile', tile)
  require(0 <= overlap < tile, 'overlap', overlap, f'it must be in 0 .. {tile - 1}')
  margin = overlap // 4 if margin is None else margin
  require(0 <= 2 * margin <= overlap, 'margin', margin,
          f'it must be in 0 .. {overlap // 2}, half the overlap')
  sides = y.shape[1:3]
  cut = tuple(min(tile, side) for side in sides)
  part = jax.ShapeDtypeStruct((len(y), *cut, y.shape[-1]), y.dtype)
  out = jax.eval_shape(decode, part)
  factor = out.shape[1] // cut[0]
  require(out.ndim == 4 and out.shape[1:3] == tuple(factor * side for side in cut), 'decode', None,
          f'it maps latents of {cut[0]} x {cut[1]} positions to {out.shape[1:]}',
          'give a decoder whose images are f times as large')
  if cut == sides:
    return decode(y)

  (rows, row_weights), (columns, column_weights) = (
      _tiles(side, length, overlap, margin, factor)
      for side, length in zip(sides, cut, strict=True))
  i, j = (index.ravel() for index in np.meshgrid(np.arange(len(rows)), np.arange(len(columns)),
                                                 indexing='ij'))

  def add(images, each):
    row, column, of_rows, of_columns = each
    square = jax.lax.dynamic_slice(y, (0, row, column, 0), part.shape)
    weight = (of_rows[:, None] * of_columns)[..., None].astype(out.dtype)
    at = (0, factor * row, factor * column, 0)
    there = jax.lax.dynamic_slice(images, at, out.shape)
    return jax.lax.dynamic_update_slice(images, there + weight * decode(square), at), None

  images = jnp.zeros((len(y), *(factor * side for side in sides), out.shape[-1]), out.dtype)
  each = rows[i], columns[j], row_weights[i], column_weights[j]
  return jax.lax.scan(add, images, jax.tree.map(jnp.asarray, each))[0]


def _tiles(side: int, tile: int, overlap: int, margin: int,
           factor: int) -> tuple[np.ndarray, np.ndarray]:
  """Where the squares begin along one side, and the weights of their pixels [squares, f tile]."""
  count = 1 if side == tile else -(-(side - overlap) // (tile - overlap))
  starts = np.arange(count) * (side - tile) // max(count - 1, 1)
  middle = (np.arange(factor * tile) + 0.5) / factor  # of each pixel, in positions of the latent
  ramp = max(overlap - 2 * margin, 1e-9)  # nearly 0: a step
  rise = lambda distance: np.clip((distance - margin) / ramp, 0.0, 1.0)
  weights = np.ones((count, factor * tile))
  weights[1:] *= rise(middle)
  weights[:-1] *= rise(tile - middle)
  total = np.zeros(factor * side)
  pixels = factor * starts[:, None] + np.arange(factor * tile)
  np.add.at(total, pixels, weights)
  return starts.astype(np.int32), (weights / total[pixels]).astype(np.float32)
