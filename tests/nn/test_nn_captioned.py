"""A network that is told texts: the oracle is its inner network, told the vector by NumPy."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.errors import InputError
from vdm_jax.nn.small.captioned import Captioned
from vdm_jax.nn.small.mlp import MLP

INNER = MLP(features=8, blocks=1, classes=3)
NET = Captioned(INNER, levels=20, features=5)
TOKENS = np.array([[3, 7, 0, 0], [3, 0, 0, 0], [3, 7, 19, 1], [0, 0, 0, 0]])
Z = np.tile(np.array([[0.3, -0.8]], np.float32), (4, 1))  # told alone makes a difference
TIME = np.full(4, 2.0, np.float32)


@pytest.fixture(scope='module')
def params():
  """Away from the initial values, which mute most of a network."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(NET.init, jax.random.key(0), Z, TIME, TOKENS)['params']
  return jax.tree.map(lambda u: 0.5 * rng.normal(size=u.shape).astype(np.float32), shapes)


def apply(params, tokens):
  return np.asarray(NET.apply({'params': params}, Z, TIME, tokens))


@pytest.mark.long
def test_the_inner_network_is_told_the_mean_of_the_tokens_that_are_there(params):
  mean = np.zeros((4, 5), np.float32)
  for row, tokens in zip(mean[:3], ([3, 7], [3], [3, 7, 19, 1]), strict=True):
    row[:] = np.mean([params['token']['embedding'][token] for token in tokens], axis=0)
  h = mean @ params['dense']['kernel'] + params['dense']['bias']
  expected = INNER.apply({'params': params['net']}, Z, TIME, jnp.asarray(h / (1.0 + np.exp(-h))))
  y = apply(params, TOKENS)
  np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
  apart = np.abs(y[:, None] - y[None]).max(-1) + np.eye(4)
  assert apart.min() > 1e-2


@pytest.mark.long
def test_padding_says_nothing_and_none_is_the_empty_text(params):
  y = apply(params, TOKENS)
  for more in (np.pad(TOKENS, ((0, 0), (0, 6))), np.pad(TOKENS, ((0, 0), (2, 0)))):
    np.testing.assert_allclose(apply(params, more), y, rtol=0, atol=1e-6)
  np.testing.assert_allclose(apply(params, None), y[[3, 3, 3, 3]], rtol=0, atol=1e-6)


@pytest.mark.parametrize('wrong', [np.zeros((4, 2), np.float32), np.zeros(4, np.int32),
                                   np.zeros((3, 2), np.int32)])
def test_a_condition_that_is_no_tokens_is_refused(params, wrong):
  with pytest.raises(InputError, match=r'give integer tokens \[4, L\]'):
    apply(params, wrong)
