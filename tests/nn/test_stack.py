"""Stacked blocks: as a loop or written out, computed again or kept, they are the same function."""
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.nn.blocks import stack
from vdm_jax.nn.unets.vdm import UNet

SMALL = {'features': 8, 'groups': 2, 'fourier': (1,), 'dropout': 0.3}
REMAT = ('none', 'dots', 'block')


def inputs(batch=2, size=4):
  z = jax.random.normal(jax.random.key(2), (batch, size, size, 1))
  return z, jnp.linspace(8.0, -4.0, batch), None, jax.random.split(jax.random.key(3), batch)


def parameters(net, args):
  """Away from the initial zeros, which would hide most of the network."""
  shapes = jax.eval_shape(net.init, jax.random.key(0), *args[:2])['params']
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda u: (0.3 * rng.normal(size=u.shape)).astype(np.float32), shapes)


def value_and_gradients(net):
  def loss(params, z, *rest):
    y = net.apply({'params': params}, z, *rest)
    return jnp.sum(jnp.sin(y)), y
  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def assert_same(results, others, tolerance=1e-6):
  """To `tolerance` of the largest number of each array."""
  jax.tree.map(lambda u, v: np.testing.assert_allclose(
      u, v, rtol=0, atol=tolerance * max(1.0, np.abs(v).max())), results, others)


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('remat', REMAT)
def test_blocks_run_in_order_each_with_its_own_and_the_outcomes_are_kept(scan, remat):
  """h <- 2 h + a_i + s_i from 1: 3, 5 + 10 + 1 ..., by hand."""
  apply = lambda params, h, each: 2.0 * h + params['a'] + each['s']
  params, s = {'a': jnp.array([1.0, 10.0, -30.0])}, jnp.array([0.0, 1.0, 2.0])
  h, outs = stack.run(apply, params, jnp.ones(()), {'s': s if scan else list(s)}, scan, remat)
  assert float(h) == 6.0
  np.testing.assert_array_equal(outs, [3.0, 17.0, 6.0])

  nothing = lambda params, h, each: params['a'] * h if each['s'] is None else jnp.nan
  h, _ = stack.run(nothing, params, jnp.ones(()), {'s': None}, scan, remat)
  assert float(h) == -300.0


@pytest.mark.long
@pytest.mark.parametrize('blocks', [0, 1, 3])
def test_a_loop_and_blocks_written_out_have_one_output_and_one_gradient(blocks):
  """With dropout, and attention after every block."""
  args = inputs()
  settings = {**SMALL, 'blocks': blocks, 'attention_everywhere': True, 'remat': 'none',
              'weight_gradient': 'xla'}
  nets = [UNet(**settings, scan=scan) for scan in (False, True)]
  params = parameters(nets[0], args)
  jax.tree.map(np.testing.assert_array_equal, params, parameters(nets[1], args))
  one, other = (value_and_gradients(net)(params, *args) for net in nets)
  assert_same(one, other)
  assert all(np.abs(g).max() > 1e-3 for name, part in one[1][0].items()
             for g in jax.tree.leaves(part) if 'attention' not in name)


@pytest.fixture(scope='module')
def kept():
  """What 'none' in a loop makes, of two blocks."""
  net = UNet(**SMALL, blocks=2, scan=True, remat='none', weight_gradient='xla')
  params = parameters(net, inputs())
  return params, value_and_gradients(net)(params, *inputs())


@pytest.mark.long
@pytest.mark.parametrize('scan, weight_gradient', [(False, 'xla'), (True, 'winograd')])
@pytest.mark.parametrize('remat', ['dots', 'block'])
def test_what_is_computed_again_has_the_same_gradient(kept, scan, remat, weight_gradient):
  params, expected = kept
  net = UNet(**SMALL, blocks=2, scan=scan, remat=remat, weight_gradient=weight_gradient)
  assert_same(value_and_gradients(net)(params, *inputs()), expected, 3e-6)


@pytest.mark.long
def test_each_block_has_initial_values_of_its_own():
  """Uncorrelated ones, each of the variance 1 / inputs that a single one has."""
  depth = 3
  net = UNet(**{**SMALL, 'features': 16}, blocks=depth)
  params = jax.jit(net.init)(jax.random.key(0), *inputs()[:2])['params']
  for name, copies in (('down', depth), ('up', depth + 1)):
    kernel = params[name]['conv1']['kernel']
    assert kernel.shape[0] == copies
    rows = np.asarray(kernel).reshape(copies, -1)
    products = rows @ rows.T * np.prod(kernel.shape[1:-1]) / rows.shape[1]
    # Errors of means of products of unit variance; that of a square is a normal's at most, 2.
    assert np.abs(products - np.eye(copies)).max() < 4.5 * np.sqrt(2.0 / rows.shape[1])
    assert not np.any(params[name]['conv2']['kernel'])
    np.testing.assert_array_equal(params[name]['norm1']['scale'], 1.0)


@pytest.mark.long
@pytest.mark.parametrize('scan', [False, True])
def test_each_block_drops_out_by_itself(scan):
  """Two equal blocks down, one of which is muted; nothing after them reads what is between them.

  Then whichever is muted, the output is the same without dropout, and another with it.
  """
  net = UNet(**SMALL, blocks=2, scan=scan)
  z, logsnr, _, keys = inputs()
  rng = np.random.default_rng(1)
  params = jax.jit(net.init)(jax.random.key(0), z, logsnr)['params']
  params['down'] = jax.tree.map(lambda u: jnp.stack([u[0], u[0]]), params['down'])
  shortcut = params['up']['shortcut']  # of h and, below, the skip connection
  shortcut['kernel'] = shortcut['kernel'].at[:, SMALL['features']:].set(0.0)
  conv_out = params['conv_out']
  conv_out['kernel'] = jnp.asarray(rng.normal(size=conv_out['kernel'].shape), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=params['down']['conv2']['kernel'].shape[1:]), jnp.float32)

  @jax.jit
  def output(active, keys=None):
    mine = jax.tree.map(lambda u: u, params)
    mine['down']['conv2']['kernel'] = jnp.zeros((2, *kernel.shape)).at[active].set(kernel)
    return net.apply({'params': mine}, z, logsnr, None, keys)

  np.testing.assert_allclose(output(0), output(1), rtol=1e-5, atol=1e-5)
  assert np.abs(output(0, keys) - output(1, keys)).max() > 0.1


def lowered(blocks, scan=True, remat='none', batch=2, size=4):
  net = UNet(**SMALL, blocks=blocks, scan=scan, remat=remat, weight_gradient='xla')
  args = inputs(batch, size)
  shapes = jax.eval_shape(net.init, jax.random.key(0), *args[:2])['params']
  return value_and_gradients(net).lower(shapes, *args)


@pytest.mark.long
def test_what_is_kept_of_a_block_takes_memory():
  """Less with products alone, and least with nothing but inputs.

  Of those there are four a pair of blocks, down and up: the two inputs, and the skip connection
  from one to the other, there and back.
  """
  batch, size = 4, 8

  def scratch(remat, blocks=8):  # beside arguments and results
    program = lowered(blocks, remat=remat, batch=batch, size=size).compile()
    return program.memory_analysis().temp_size_in_bytes

  everything, products, inputs_alone = map(scratch, REMAT)
  one = batch * size * size * SMALL['features'] * 4
  assert everything > 2 * products > 2 * inputs_alone
  assert inputs_alone - scratch('block', 2) < 4.5 * 6 * one


@pytest.mark.long
@pytest.mark.parametrize('remat', REMAT)
def test_the_program_of_a_loop_does_not_grow_with_the_depth(remat):
  count = lambda blocks, scan: len(re.findall(
      r'= "?stablehlo\.', lowered(blocks, scan, remat).as_text()))
  assert count(2, True) == count(5, True)
  if remat == 'none':
    assert count(5, False) > 1.5 * count(2, False)
