"""Group normalisation with its own derivative, beside Flax's; layers of parts beside joined ones.
"""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vdm_jax.nn.blocks.convolution import Conv
from vdm_jax.nn.blocks.layers import DenseOfParts, GroupNorm, group_norm

CHANNELS, GROUPS = 8, 4


def arrays(dtype):
  """Images with a mean, and parameters that are not the initial ones."""
  h, w = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, CHANNELS), dtype)
  return 2.0 * h + 0.7, w, {'scale': jnp.linspace(0.5, 2.0, CHANNELS, dtype=dtype),
                            'bias': jnp.linspace(-1.0, 1.0, CHANNELS, dtype=dtype)}


def flax_norm(params, h, swish):
  y = nn.GroupNorm(GROUPS, dtype=h.dtype).apply({'params': params}, h)
  return nn.swish(y) if swish else y


def own_norm(params, h, swish):
  return group_norm(h, params['scale'], params['bias'], GROUPS, swish=swish)


@pytest.mark.long
@pytest.mark.parametrize('swish', [False, True])
def test_its_values_and_derivatives_of_each_order_are_those_of_flax(swish, x64):
  h, w, params = arrays(jnp.float64)

  def of(norm):
    f = lambda params, h: jnp.vdot(norm(params, h, swish), w)
    _, forwards = jax.jvp(lambda h: norm(params, h, swish), (h,), (w,))
    _, second = jax.jvp(lambda p, h: jax.grad(f, (0, 1))(p, h), (params, h), (params, w))
    return norm(params, h, swish), jax.grad(f, (0, 1))(params, h), forwards, second
  jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-11, atol=1e-11),
               of(own_norm), of(flax_norm))


@pytest.mark.long
def test_scale_and_bias_of_each_example_have_flaxs_derivatives(x64):
  h, w, params = arrays(jnp.float64)
  u, v = jax.random.normal(jax.random.key(3), (2, len(h), CHANNELS), jnp.float64)
  plain = {'scale': params['scale'], 'bias': jnp.zeros(CHANNELS)}

  def own(h, u, v):
    return group_norm(h, params['scale'] * (1.0 + u), v, GROUPS, swish=True)

  def flax(h, u, v):
    return nn.swish(flax_norm(plain, h, False) * (1.0 + u[:, None, None]) + v[:, None, None])

  def of(norm):
    gradient = jax.grad(lambda h, u, v: jnp.vdot(norm(h, u, v), w), (0, 1, 2))
    return norm(h, u, v), gradient(h, u, v)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11),
               of(own), of(flax))


def test_modulation_scales_and_shifts_before_swish_in_bfloat16():
  h, _, params = arrays(jnp.float32)
  u, v = jax.random.normal(jax.random.key(3), (2, len(h), CHANNELS))
  y = GroupNorm(GROUPS, jnp.bfloat16, swish=True).apply({'params': params}, h, modulation=(u, v))
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(y, nn.swish(
      flax_norm(params, h, False) * (1.0 + u[:, None, None]) + v[:, None, None]), atol=0.06)


@pytest.mark.long
def test_each_example_has_a_derivative_of_its_own(x64):
  h, _, params = arrays(jnp.float64)
  one = lambda h: jnp.sum(jnp.sin(own_norm(params, h[None], True)))
  whole = jax.grad(lambda h: jnp.sum(jnp.sin(flax_norm(params, h, True))))(h)
  np.testing.assert_allclose(jax.vmap(jax.grad(one))(h), whole, atol=1e-12)


@pytest.mark.long
def test_its_gradient_in_bfloat16_is_as_near_to_the_exact_one_as_that_of_flax(x64):
  h, w, params = arrays(jnp.float64)
  rounded = h.astype(jnp.bfloat16)

  def gradient(norm, h):
    return jax.grad(lambda h: jnp.vdot(norm(params, h, True).astype(jnp.float64), w))(h)
  exact = gradient(flax_norm, rounded.astype(jnp.float64))
  errors = [jnp.linalg.norm(gradient(norm, rounded).astype(jnp.float64) - exact)
            for norm in (own_norm, flax_norm)]
  assert errors[0] <= 1.1 * errors[1]


@pytest.mark.long
@pytest.mark.parametrize('dtype, tolerance', [(jnp.float32, 1e-5), (jnp.bfloat16, 0.03)])
@pytest.mark.parametrize('first', [4, 3])  # with 3 channels, a group has channels of both parts
def test_parts_are_normalised_as_their_concatenation(first, dtype, tolerance):
  h, _, params = arrays(jnp.float32)
  norm = GroupNorm(GROUPS, dtype, swish=True)
  parts = h[..., :first], h[..., first:]
  assert jax.tree.map(jnp.shape, norm.init(jax.random.key(0), *parts)['params']) == {
      'scale': (CHANNELS,), 'bias': (CHANNELS,)}
  y = norm.apply({'params': params}, *parts)
  assert y.dtype == dtype
  np.testing.assert_allclose(y, flax_norm(params, h, True), atol=tolerance)


@pytest.mark.long
def test_a_linear_map_of_parts_is_that_of_their_concatenation(x64):
  h, _, _ = arrays(jnp.float64)
  params = nn.Dense(6).init(jax.random.key(1), h)
  got = DenseOfParts(6, jnp.float64).apply(params, h[..., :3], h[..., 3:])
  np.testing.assert_allclose(got, nn.Dense(6).apply(params, h), atol=1e-12)


@pytest.mark.long
def test_a_shift_of_a_convolution_is_added_to_each_pixel_of_its_example(x64):
  h, _, _ = arrays(jnp.float64)
  conv = Conv(6, jnp.float64)
  params, shift = conv.init(jax.random.key(1), h), jnp.arange(18.0).reshape(3, 6)
  got = conv.apply(params, h, shift)
  np.testing.assert_allclose(got - conv.apply(params, h), jnp.broadcast_to(
      shift[:, None, None], got.shape), atol=1e-12)


def test_the_backward_pass_keeps_the_input_and_two_numbers_for_each_channel():
  """What a checkpoint would keep as float32: the normalised numbers, and swish's slope."""
  h, _, params = arrays(jnp.bfloat16)
  _, kept = jax.eval_shape(lambda h: jax.vjp(lambda h: own_norm(params, h, True), h), h)
  sizes = sorted((leaf.size, leaf.dtype) for leaf in jax.tree.leaves(kept) if leaf.size > CHANNELS)
  assert sizes == [(3 * CHANNELS, jnp.float32)] * 2 + [(h.size, jnp.bfloat16)]
