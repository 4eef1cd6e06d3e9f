"""A 3x3 convolution whose weight gradient can be chosen.

The derivative of a convolution by its kernel is again a convolution.  In it, the image has the role
of the kernel.  On the CPU, XLA has no fast program for this second convolution.  The program runs
at a quarter of the forward pass's rate.  Inside a loop (`lax.scan`) it is another 25 to 100 times
slower.  The same gradient, written as matrix products, is fast alone and in a loop.  So loops over
depth, microbatches and steps are useful on the CPU too.

Winograd's minimal filtering F(2x2, 3x3) is described by Lavin and Gray (2016), Fast Algorithms for
Convolutional Neural Networks, section 4.1.  It computes each 2x2 tile of the output from a 4x4 tile
d of the input and the kernel g,

    Y = A' [(G g G') * (B' d B)] A,

with 16 products instead of 36.  Each of the 16 is one matrix product over the channels.  Y is
linear in g: the transpose of this map is the weight gradient, with the same saving.
"""
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero

from vdm_jax.typing import Array

WeightGradient = Literal['auto', 'xla', 'winograd']

NAME = 'convolution'  # of the results, for the policies of `jax.checkpoint`
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


def _convolve(h: Array, kernel: Array) -> Array:
  return lax.conv_general_dilated(h, kernel, (1, 1), 'SAME',
                                  dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def winograd(h: Array, kernel: Array) -> Array:
  """The 3x3 convolution with zero padding, as 16 matrix products.

  h: [B, H, W, C]; kernel: [3, 3, C, C'] -> [B, H, W, C'].
  """
  b, height, width, c = h.shape
  rows, columns = -(-height // 2), -(-width // 2)  # of tiles
  p = jnp.pad(h, ((0, 0), (1, 2 * rows - height + 1), (1, 2 * columns - width + 1), (0, 0)))
  d = [[p[:, i:i + 2 * rows - 1:2, j:j + 2 * columns - 1:2] for j in range(4)] for i in range(4)]
  input_transform = lambda u: (u[0] - u[2], u[1] + u[2], u[2] - u[1], u[1] - u[3])     # B'
  output_transform = lambda u: (u[0] + u[1] + u[2], u[1] - u[2] - u[3])               # A'
  d = _both(input_transform, [[u.reshape(-1, c) for u in row] for row in d])
  g = jnp.einsum('ai,ijcf,bj->abcf', _G.astype(kernel.dtype), kernel, _G.astype(kernel.dtype))
  m = [[d[i][j] @ g[i, j] for j in range(4)] for i in range(4)]
  y = [[u.reshape(b, rows, columns, -1) for u in row] for row in _both(output_transform, m)]
  y = jnp.stack([jnp.stack(row, axis=3) for row in y], axis=2)  # [B, rows, 2, columns, 2, C']
  y = y.reshape(b, 2 * rows, 2 * columns, kernel.shape[-1])
  return y[:, :height, :width]


def _both(transform, tiles):
  """Applies `transform` along both sides of a list of lists: T x T'."""
  columns = [transform([row[j] for row in tiles]) for j in range(len(tiles[0]))]
  return [transform([column[i] for column in columns]) for i in range(len(columns[0]))]


@jax.custom_jvp
def _convolve_winograd(h, kernel):
  return _convolve(h, kernel)


def _jvp(primals, tangents):
  (h, kernel), (dh, dkernel) = primals, tangents
  y = _convolve_winograd(h, kernel)
  if isinstance(dkernel, SymbolicZero):  # by h alone: forwards or backwards, who knows
    return y, jnp.zeros_like(y) if isinstance(dh, SymbolicZero) else winograd(dh, kernel)
  # Its transpose needs the transformed tiles, four times h's size: made anew from h, not kept.
  dy = jax.checkpoint(winograd)(h, dkernel)
  if not isinstance(dh, SymbolicZero):
    # The same convolution as of the kernel itself.  The transpose of this one is of a kernel [3, 3,
    # in, out]; of one labelled [3, 3, out, in] XLA's convolution is seven times slower in a loop.
    dy += lax.conv_general_dilated(dh, kernel.swapaxes(2, 3), (1, 1), 'SAME',
                                   dimension_numbers=('NHWC', 'HWOI', 'NHWC'))
  return y, dy


_convolve_winograd.defjvp(_jvp, symbolic_zeros=True)


class Conv(nn.Module):
  """3x3 convolution with zero padding and a bias: [B, H, W, C] -> [B, H, W, features].

  weight_gradient: how the gradient of the kernel is computed.  'auto' is the fastest way measured
  in docs/performance.md: `winograd` in float32 on the CPU, and XLA's own gradient elsewhere.
  """
  features: int
  dtype: jnp.dtype = jnp.float32
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  weight_gradient: WeightGradient = 'auto'

  @nn.compact
  def __call__(self, h: Array, shift: Array | None = None) -> Array:
    how = self.weight_gradient
    if how == 'auto':
      on_cpu = jax.default_backend() == 'cpu'
      how = 'winograd' if on_cpu and self.dtype == jnp.float32 else 'xla'
    kernel = self.param('kernel', self.kernel_init, (3, 3, h.shape[-1], self.features))
    bias = self.param('bias', nn.initializers.zeros_init(), (self.features,))
    convolve = {'xla': _convolve, 'winograd': _convolve_winograd}[how]
    h, kernel, bias = (u.astype(self.dtype) for u in (h, kernel, bias))
    y = convolve(h, kernel)
    if shift is not None:
      # Without the barriers, XLA makes an image of the shift for the convolution to add, and sums
      # the gradient over the image twice: for the shift, and for the bias.
      y, bias = lax.optimization_barrier(y), lax.optimization_barrier(bias + shift)[:, None, None]
    return checkpoint_name(y + bias, NAME)
