"""Weights for parity tests, made by a rule from their names, so that no recording holds them.

The public code was given the same arrays under the same names when its outputs were recorded.
"""
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.nn.autoencoders.patchgan import PatchDiscriminator
from vdm_jax.published import lpips, patchgan
from vdm_jax.typing import PyTree


def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Matrices and kernels, [out, in, ...] as in PyTorch: normal with variance 1 / inputs.  Vectors:
  normal / 10, about 1 where they are a `weight`.  float32."""
  noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
  if len(shape) > 1:
    noise /= np.sqrt(np.prod(shape[1:]))
  else:
    noise = 0.1 * noise + name.endswith('weight')
  return noise.astype(np.float32)


def state_dict(recorded, name: str, prefix: str = '') -> dict[str, np.ndarray]:
  """The weights of one recorded network, whose names and shapes are `name`/shapes, JSON.

  prefix: of the names from which the rule makes them.
  """
  shapes = json.loads(str(recorded[f'{name}/shapes']))
  return {k: array(prefix + k, tuple(shape)) for k, shape in shapes.items()}


def lpips_of_losses(recorded) -> PyTree:
  """The parameters of LPIPS in the recording of losses of autoencoders."""
  flat = state_dict(recorded, 'lpips', 'lpips/')
  return lpips.from_flat({name: np.abs(array) if name.startswith('lin') else array
                          for name, array in flat.items()})


def discriminator_of_losses(recorded) -> tuple[PatchDiscriminator, PyTree]:
  """The discriminator in the same recording, for images of 32x32 pixels: network, parameters."""
  net = PatchDiscriminator(features=8, layers=2, norm='batch')
  return net, patchgan.from_flat(state_dict(recorded, 'discriminator', 'discriminator/'),
                                 shapes_of(net, jnp.zeros((1, 32, 32, 3))))


def last(images):
  """[B, C, H, W], as PyTorch has it -> [B, H, W, C]."""
  return np.moveaxis(images, 1, -1)


def assert_close(got, want, tolerance=1e-5):
  """To a share of the largest number: recordings are float32 of another library."""
  np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


def shapes_of(net, *args):
  """The shapes of the parameters of `net`, called with `args`."""
  return jax.eval_shape(net.init, jax.random.key(0), *args)['params']


def some(cases, *usual):
  """Cases for `parametrize`: those of the names `usual`, and the others in the long tests.

  cases: names, or tuples that begin with one.  To trace a network of full size takes seconds.
  """
  cases = [case if isinstance(case, tuple) else (case,) for case in cases]
  assert set(usual) <= {case[0] for case in cases}
  return [pytest.param(*case, marks=() if case[0] in usual else pytest.mark.long, id=case[0])
          for case in cases]


def value_and_gradients(net):
  """Of the sum of output x cotangent: the output, and the gradients by the parameters and z."""
  def loss(params, z, time, cond, cotangent):
    y = net.apply({'params': params}, z, time, cond)
    return jnp.sum(y * cotangent), y
  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
