"""The 3x3 convolution against scipy, and its derivatives against those of a bilinear map.

y = h * k is linear in h and in k, so that its derivatives are convolutions and correlations again:
of y = (h, k), tangent (dh, dk): dh * k + h * dk; of <u, y>: by k the correlation of h with u, by h
the full convolution of u with k.
"""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from flax import linen as nn

from vdm_jax.nn.blocks.convolution import Conv, winograd

WAYS = ('xla', 'winograd')
SIZES = [(1, 1), (1, 6), (2, 2), (3, 5), (4, 3), (8, 8), (7, 7)]
C, F = 3, 2


def draws(height, width, seed=0, batch=2):
  """Twice (h, kernel) and a cotangent, in float64."""
  rng = np.random.default_rng(seed)
  h, dh = rng.normal(size=(2, batch, height, width, C))
  kernel, dkernel = rng.normal(size=(2, 3, 3, C, F))
  return (h, kernel), (dh, dkernel), rng.normal(size=(batch, height, width, F))


def correlated(h, kernel):
  """sum_ijc h[b, y + i - 1, x + j - 1, c] k[i, j, c, f], zero beyond the border."""
  padded = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return np.stack([np.stack([
      scipy.signal.correlate(image, kernel[..., f], 'valid', 'direct')[..., 0]
      for f in range(kernel.shape[-1])], -1) for image in padded])


def by_kernel(h, u):
  """d <u, h * k> / d k[i, j, c, f] = sum_byx h[b, y + i - 1, x + j - 1, c] u[b, y, x, f]."""
  padded = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return np.stack([np.stack([
      scipy.signal.correlate(padded[..., c], u[..., f], 'valid', 'direct')[0]
      for f in range(u.shape[-1])], -1) for c in range(h.shape[-1])], 2)


def by_input(kernel, u):
  """d <u, h * k> / d h: u[b, y - i + 1, x - j + 1, f] k[i, j, c, f], summed over i, j, f."""
  return np.stack([np.stack([
      sum(scipy.signal.convolve(image[..., f], kernel[:, :, c, f], 'full', 'direct')[1:-1, 1:-1]
          for f in range(u.shape[-1])) for c in range(kernel.shape[2])], -1) for image in u])


def convolution(way, dtype=jnp.float64):
  """(h, kernel) -> h * kernel by the module, without its bias."""
  conv = Conv(F, dtype, weight_gradient=way)
  return lambda h, kernel: conv.apply(
      {'params': {'kernel': kernel, 'bias': jnp.zeros(F, kernel.dtype)}}, h)


def assert_close(value, truth, tolerance):
  """To `tolerance` of the largest number there."""
  jax.tree.map(lambda u, v: np.testing.assert_allclose(
      np.asarray(u, np.float64), v, rtol=0, atol=tolerance * np.abs(v).max()), value, truth)


def to(dtype, tree):
  return jax.tree.map(lambda u: jnp.asarray(u, dtype), tree)


@pytest.mark.first(1)
@pytest.mark.parametrize('size', SIZES)
def test_winograd_s_products_are_the_convolution(x64, size):
  (h, kernel), _, _ = draws(*size)
  truth = correlated(h, kernel)
  assert_close(jax.jit(winograd)(h, kernel), truth, 1e-13)
  library = jax.lax.conv_general_dilated(to(float, h), to(float, kernel), (1, 1), 'SAME',
                                         dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  assert_close(library, truth, 1e-13)
  assert_close(jax.jit(winograd)(*to(jnp.float32, (h, kernel))), truth, 2e-6)


@pytest.mark.first(1)
@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('size', [(1, 1), (7, 4)])
def test_forward_and_backward_derivatives_are_convolutions_and_correlations(x64, way, size):
  (h, kernel), (dh, dkernel), u = draws(*size)
  for dtype, tolerance in ((jnp.float64, 1e-13), (jnp.float32, 2e-6)):
    def both(point, tangent, u, dtype=dtype):
      f = convolution(way, dtype)
      y, pull_back = jax.vjp(f, *point)
      return y, pull_back(u), jax.jvp(f, point, tangent)[1]
    assert_close(jax.jit(both)(*to(dtype, ((h, kernel), (dh, dkernel), u))), (
        correlated(h, kernel), (by_input(kernel, u), by_kernel(h, u)),
        correlated(dh, kernel) + correlated(h, dkernel)), tolerance)


@pytest.mark.first(1)
@pytest.mark.parametrize('way', WAYS)
def test_derivatives_by_one_of_the_two_are_those_with_the_other_held(x64, way):
  (h, kernel), (dh, dkernel), u = draws(4, 5)
  f = convolution(way)
  of_h, of_kernel = (lambda a: f(a, to(float, kernel))), (lambda a: f(to(float, h), a))
  for g, at, tangent, forward, backward in (
      (of_h, h, dh, correlated(dh, kernel), by_input(kernel, u)),
      (of_kernel, kernel, dkernel, correlated(h, dkernel), by_kernel(h, u))):
    def three(at, tangent, u, g=g):
      linear = jax.linearize(g, at)[1]
      return jax.jvp(g, (at,), (tangent,)), linear(tangent), jax.vjp(g, at)[1](u)[0]
    assert_close(jax.jit(three)(*to(float, (at, tangent, u))),
                 ((correlated(h, kernel), forward), forward, backward), 1e-13)


def second_derivatives(way, dtype, point, direction):
  """Of phi = sum sin(2 h * k): the Hessian times a direction by three orders of the modes.

  And the same by each argument alone.
  """
  f = convolution(way, dtype)
  phi = lambda pair: jnp.sum(jnp.sin(2.0 * f(*pair)))

  def three(phi, at, v):
    along = lambda a: jax.jvp(phi, (a,), (v,))[1]
    product = lambda a: sum(jax.tree.leaves(jax.tree.map(jnp.vdot, jax.grad(phi)(a), v)))
    return {'grad of a jvp': jax.grad(along)(at), 'grad of a grad': jax.grad(product)(at),
            'jvp of a grad': jax.jvp(jax.grad(phi), (at,), (v,))[1]}

  (h, kernel), (dh, dkernel) = point, direction
  return {'both': three(phi, point, direction),
          'h': three(lambda h: phi((h, kernel)), h, dh),
          'kernel': three(lambda kernel: phi((h, kernel)), kernel, dkernel)}


@pytest.fixture(scope='module')
def hessian():
  """Of phi at `draws(3, 4)` times the direction, by the formulae of the bilinear map.

  d phi/d y = 2 cos(2 y) and its tangent -4 sin(2 y) dy; by the product rule
  d(d phi/d h) = by_input(dk, 2 cos) + by_input(k, -4 sin dy), and so for k.
  """
  (h, kernel), (dh, dkernel), _ = draws(3, 4)
  y = correlated(h, kernel)
  slope, bend = 2.0 * np.cos(2.0 * y), -4.0 * np.sin(2.0 * y)
  by_h, by_k = correlated(dh, kernel), correlated(h, dkernel)
  return {'both': (by_input(dkernel, slope) + by_input(kernel, bend * (by_h + by_k)),
                   by_kernel(dh, slope) + by_kernel(h, bend * (by_h + by_k))),
          'h': by_input(kernel, bend * by_h), 'kernel': by_kernel(h, bend * by_k)}


@pytest.mark.long
@pytest.mark.parametrize('way', WAYS)
def test_second_derivatives_are_right_in_every_order_of_the_modes(x64, hessian, way):
  point, direction, _ = draws(3, 4)
  for dtype, tolerance in ((jnp.float64, 1e-10), (jnp.float32, 1e-5)):
    results = jax.jit(lambda *args, dtype=dtype: second_derivatives(way, dtype, *args))(
        *to(dtype, (point, direction)))
    for argument, orders in results.items():
      for value in orders.values():
        assert_close(value, hessian[argument], tolerance)


@pytest.mark.long
@pytest.mark.parametrize('way', WAYS)
def test_in_bfloat16_results_and_gradients_keep_its_resolution(way):
  """2^-8 of a number and some more for sums; parameters and their gradients stay float32."""
  (h, kernel), _, u = draws(6, 6)
  rounded = lambda tree: jax.tree.map(
      lambda v: np.asarray(jnp.asarray(v, jnp.bfloat16), np.float64), tree)
  y, pull_back = jax.vjp(convolution(way, jnp.bfloat16), *to(jnp.float32, (h, kernel)))
  assert y.dtype == jnp.bfloat16
  h, kernel, u = rounded((h, kernel, u))
  assert_close(y, correlated(h, kernel), 2.0**-7)
  grads = pull_back(to(jnp.bfloat16, u))
  assert {g.dtype for g in grads} == {jnp.dtype('float32')}
  assert_close(grads, (by_input(kernel, u), by_kernel(h, u)), 2.0**-6)


@pytest.mark.long
def test_it_has_the_parameters_the_initial_values_and_the_output_of_flax_s():
  h = jax.random.normal(jax.random.key(0), (2, 5, 4, C))
  mine, theirs = Conv(F), nn.Conv(F, (3, 3))
  params = mine.init(jax.random.key(1), h)
  jax.tree.map(np.testing.assert_array_equal, params, theirs.init(jax.random.key(1), h))
  params = jax.tree.map(lambda u: u + 0.5, params)
  np.testing.assert_allclose(mine.apply(params, h), theirs.apply(params, h), rtol=1e-6, atol=1e-6)


def convolutions(way, argnums):
  """How many convolutions a loss and its gradient by (h, kernel)[argnums] take."""
  f = convolution(way, jnp.float32)
  grad = jax.value_and_grad(lambda h, kernel: jnp.sum(f(h, kernel)**2), argnums)
  (h, kernel), _, _ = draws(4, 4)
  text = jax.jit(grad).lower(*to(jnp.float32, (h, kernel))).as_text()
  return text.count('stablehlo.convolution')


def test_only_xla_s_own_weight_gradient_is_one_more_convolution():
  assert [convolutions('xla', i) for i in (0, 1, (0, 1))] == [2, 2, 3]
  assert [convolutions('winograd', i) for i in (1, (0, 1))] == [1, 2]


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='of the CPU')
def test_on_the_cpu_the_weight_gradient_is_winograd_s_unless_told():
  assert convolutions('auto', 1) == convolutions('winograd', 1)


def repeated(way, wrap, scan):
  """Gradient of a sum of squares after h <- tanh(h * k_i + h), three times."""
  conv = Conv(C, weight_gradient=way)

  def block(h, kernel):
    return h + jnp.tanh(conv.apply({'params': {'kernel': kernel, 'bias': jnp.ones(C)}}, h))

  def loss(h, kernels):
    step = wrap(block)
    if scan:
      h, _ = jax.lax.scan(lambda h, kernel: (step(h, kernel), None), h, kernels)
    else:
      for kernel in kernels:
        h = step(h, kernel)
    return jnp.sum(h**2)
  return jax.value_and_grad(loss, argnums=(0, 1))


WRAPS = {
    'all kept': lambda f: f,
    'nothing kept': jax.checkpoint,
    'products kept': lambda f: jax.checkpoint(f, policy=jax.checkpoint_policies.dots_saveable)}


@pytest.mark.long
@pytest.mark.parametrize('wrap', WRAPS)
def test_in_a_loop_and_computed_again_it_has_the_gradients_written_out(x64, wrap):
  rng = np.random.default_rng(5)
  h, kernels = rng.normal(size=(2, 3, 5, C)), 0.3 * rng.normal(size=(3, 3, 3, C, C))
  args = to(jnp.float32, (h, kernels))
  truth = jax.jit(repeated('xla', WRAPS['all kept'], scan=False))(*args)
  value = jax.jit(repeated('winograd', WRAPS[wrap], scan=True))(*args)
  assert_close(value, jax.tree.map(np.asarray, truth), 1e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize('way', WAYS)
def test_gradients_of_many_at_once_are_those_of_each(x64, way):
  """vmap over the images, over the kernels, and over both."""
  pairs = [draws(3, 4, seed) for seed in range(3)]
  stacked = jax.tree.map(lambda *v: np.stack(v), *[(h, k, u) for (h, k), _, u in pairs])
  pull = lambda h, kernel, u: jax.vjp(convolution(way), h, kernel)[1](u)
  for mapped in ((True, True, True), (True, False, True), (False, True, False)):
    args = [v if own else v[0] for v, own in zip(stacked, mapped, strict=True)]
    axes = [0 if own else None for own in mapped]
    cases = [[v[i] if own else v[0] for v, own in zip(stacked, mapped, strict=True)]
             for i in range(3)]
    truth = (np.stack([by_input(kernel, u) for _, kernel, u in cases]),
             np.stack([by_kernel(h, u) for h, _, u in cases]))
    assert_close(jax.jit(jax.vmap(pull, axes))(*to(float, args)), truth, 1e-13)
