"""What every network obeys, whatever it is: one program of each, small enough to compile soon.

y = net(z, time, cond, keys) is float32; an example's own key alone decides about its dropout; -1 is
no label; a trunk in bfloat16 is close; what is computed again has the same gradient.
"""
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.errors import InputError
from vdm_jax.nn.small.mlp import MLP
from vdm_jax.nn.transformers.dit import DiT
from vdm_jax.nn.transformers.uvit import UViT
from vdm_jax.nn.unets import adm, ddpm, edm
from vdm_jax.nn.unets.latent import LatentUNet
from vdm_jax.nn.unets.ncsnpp import NCSNpp
from vdm_jax.nn.unets.refinenet import RefineNet
from vdm_jax.nn.unets.vdm import UNet

BATCH, CLASSES = 4, 3
LABELS = np.arange(BATCH) - 1  # none, and every one
AGAIN = ({'remat': 'dots'}, {'remat': 'block'})
WRITTEN_OUT = ({'remat': 'dots'}, {'remat': 'block', 'scan': False})
SCALARS = ('vdm_unet', 'mlp')  # without classes, their cond is a number


class Case(NamedTuple):
  """A network with whatever it has of labels and dropout, and what is particular about it."""
  net: Any
  shape: tuple[int, ...] = (4, 4, 1)
  time: tuple[float, float] = (0.4, 2.5)  # of the first and the last example
  start: str = 'any'                      # what the untrained output is: z, zero, nearly zero
  labels: bool = True
  random: str = 'dropout'                 # the field that makes it random where keys are given
  scale: float = 0.3                      # of its parameters, in these tests
  bfloat16: float = 0.05                  # the largest error of a trunk in it
  again: tuple[dict, ...] = AGAIN         # settings that change how, not what it computes
  fixed: tuple[str, ...] = ()             # parameters that are not trained


BLOCK = {'features': 8, 'multipliers': (1,), 'blocks': 1, 'attention_resolutions': (),
         'weight_gradient': 'xla', 'dropout': 0.3}
SCORE = {'features': 4, 'multipliers': (1,), 'dilations': (1,), 'weight_gradient': 'xla'}
TOKENS = {'patch': 2, 'features': 16, 'attention_heads': 2, 'classes': CLASSES, 'heads': 1,
          'label_dropout': 0.5}
NETS = {
    'vdm_unet': Case(UNet(features=8, blocks=1, groups=2, fourier=(1,), classes=CLASSES, heads=1,
                          dropout=0.3, weight_gradient='xla'), time=(8.0, -4.0), start='z',
                     again=()),  # its blocks, as a loop or not, are in test_stack.py
    'mlp': Case(MLP(features=16, classes=CLASSES, dropout=0.3, fourier=(0,)), (2,), (8.0, -4.0),
                'z', again=()),
    'ddpm': Case(ddpm.UNet(**BLOCK, groups=2, classes=CLASSES, heads=1), time=(2.0, 500.0),
                 start='zero'),
    'wavelets': Case(ddpm.UNet(**BLOCK | {'multipliers': (1, 1)}, groups=2, classes=CLASSES,
                               resampling='wavelets'), time=(2.0, 500.0), start='zero', again=()),
    'adm': Case(adm.UNet(**BLOCK, groups=2, attention_heads=2, classes=CLASSES, heads=1),
                time=(2.0, 500.0), start='zero'),
    'latent': Case(LatentUNet(features=8, multipliers=(1,), blocks=1, attention_levels=(0,),
                              attention_heads=2, groups=2, dropout=0.3, weight_gradient='xla'),
                   time=(2.0, 500.0), start='zero', labels=False, again=AGAIN[1:]),
    'dit': Case(DiT(**TOKENS, depth=2), time=(3.0, 700.0), start='zero', random='label_dropout',
                scale=0.15, bfloat16=0.03, again=WRITTEN_OUT),
    'uvit': Case(UViT(**TOKENS, depth=4), time=(3.0, 700.0), random='label_dropout', scale=0.2,
                 bfloat16=0.03, again=WRITTEN_OUT),
    'song': Case(edm.SongUNet(**BLOCK, embedding='fourier', encoder='residual', fir=(1, 3, 3, 1),
                              classes=CLASSES), (4, 4, 3), (-0.7, 0.9),
                 fixed=('fourier/frequencies', 'augment/kernel')),
    'dhariwal': Case(edm.DhariwalUNet(**{**BLOCK, 'features': 64}, classes=CLASSES), (4, 4, 3),
                     (-0.7, 0.9), again=AGAIN[1:]),
    'ncsnpp': Case(NCSNpp(**BLOCK, scale_by_sigma=False), (4, 4, 3), labels=False,
                   start='nearly zero', fixed=('fourier/frequencies',)),
    'ncsn': Case(RefineNet(**SCORE, levels=3), time=(0.0, 2.0), labels=False, random='', again=()),
    'ncsnv2': Case(RefineNet(**SCORE), labels=False, random=''),
}
every = pytest.mark.parametrize('name', NETS)


class Arguments(NamedTuple):
  z: np.ndarray
  time: np.ndarray
  cond: np.ndarray | None
  keys: jax.Array


@functools.cache
def arguments(name):
  """Labels of all kinds where the network has them: one is none."""
  case, rng = NETS[name], np.random.default_rng(1)
  cond = np.array([-1, 0, 2, 1]) if case.labels else None
  z = rng.normal(size=(BATCH, *case.shape)).astype(np.float32)
  return Arguments(z, np.linspace(*case.time, BATCH, dtype=np.float32), cond,
                   jax.random.split(jax.random.key(2), BATCH))


@functools.cache
def parameters(name):
  """Away from the initial values, which mute most of a network."""
  rng, z, time, cond, _ = np.random.default_rng(0), *arguments(name)
  shapes = jax.eval_shape(NETS[name].net.init, jax.random.key(0), z, time, cond)['params']
  scale = NETS[name].scale
  return jax.tree.map(lambda u: (scale * rng.normal(size=u.shape)).astype(np.float32), shapes)


@functools.cache
def program(name, **changed):
  """(params, *arguments) -> y, and the gradient of sum sin y by the parameters and z."""
  net = NETS[name].net.clone(**changed)

  def loss(params, z, time, cond, keys):
    y = net.apply({'params': params}, z, time, cond, keys)
    return jnp.sum(jnp.sin(y)), y

  run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

  def outputs(params, *args):
    (_, y), gradient = run(params, *args)
    return np.asarray(y), gradient
  return outputs


def kept(name):
  """The program in which nothing is computed again, which most tests share."""
  return program(name, **{'remat': 'none'} if NETS[name].again else {})


@functools.cache
def without_keys(name):
  """(y, y if no label is given, y of a trunk in bfloat16) of one z, with label i - 1 in example i.

  All labels are told the first z at one time, so they alone make a difference.
  """
  net, (z, time, cond, _) = NETS[name].net, arguments(name)
  if cond is not None:
    z, time, cond = np.repeat(z[:1], BATCH, axis=0), np.full_like(time, time[1]), LABELS
  half = net.clone(dtype=jnp.bfloat16) if hasattr(net, 'dtype') else net

  @jax.jit
  def run(params, z, time, cond):
    apply = lambda net, cond: net.apply({'params': params}, z, time, cond)
    return apply(net, cond), apply(net, None), apply(half, cond)
  return run(parameters(name), z, time, cond)


def off(u, v):
  """Largest difference of each example, in units of the largest number."""
  return np.abs(u - v).max(axis=tuple(range(1, u.ndim))) / np.abs(v).max()


@pytest.mark.long
@pytest.mark.parametrize('name, i', [(name, i) for name, case in NETS.items()
                                     for i in range(len(case.again))])
def test_what_is_computed_again_or_written_out_is_the_same_function_with_the_same_gradient(name, i):
  params, args = parameters(name), arguments(name)
  y, expected = kept(name)(params, *args)
  again, found = program(name, **NETS[name].again[i])(params, *args)
  assert off(again, y).max() < 3e-6
  jax.tree.map(lambda u, v: np.testing.assert_allclose(
      u, v, rtol=0, atol=1e-5 * max(1.0, np.abs(v).max())), found, expected)


@pytest.mark.long
@pytest.mark.parametrize('name', [name for name, case in NETS.items() if case.fixed])
def test_numbers_that_are_fixed_have_no_gradient_and_all_others_have(name):
  _, (gradient, _) = kept(name)(parameters(name), *arguments(name))
  at = {'/'.join(str(k.key) for k in path): bool(np.any(u))
        for path, u in jax.tree_util.tree_leaves_with_path(gradient)}
  assert not any(at.pop(name) for name in NETS[name].fixed)
  assert sum(at.values()) > 0.9 * len(at)


@pytest.mark.long
@every
def test_an_example_s_output_is_its_own_whatever_stands_beside_it(name):
  """Other images, noise levels, labels and keys; with its own key alone its dropout changes."""
  params, args, run = parameters(name), arguments(name), kept(name)
  together, _ = run(params, *args)
  order = np.array([2, 0, 0, 3])
  apart, _ = run(params, *[u if u is None else u[order] for u in args])
  assert off(apart, together[order]).max() < 1e-5
  changed = [bool(off(run(params, *args._replace(keys=args.keys.at[i].set(key)))[0], together)[i] >
                  1e-3) for i in range(BATCH) for key in jax.random.split(jax.random.key(3), 4)]
  other, _ = run(params, *args._replace(keys=args.keys.at[1].set(jax.random.key(4))))
  np.testing.assert_array_equal(np.delete(other, 1, 0), np.delete(together, 1, 0))
  assert any(changed) == bool(NETS[name].random)
  assert all(changed) == (NETS[name].random == 'dropout')


@pytest.mark.first(2)
@pytest.mark.parametrize('name', [name for name, case in NETS.items() if case.random])
def test_without_keys_nothing_is_drawn(name):
  net, (z, time, cond, keys) = NETS[name].net, arguments(name)
  drawn = ['random_bits' in str(jax.make_jaxpr(net.apply)({'params': parameters(name)}, z, time,
                                                          cond, keys)) for keys in (None, keys)]
  assert drawn == [False, True]


@pytest.mark.long
@pytest.mark.parametrize('name', [name for name, case in NETS.items() if case.labels])
def test_minus_one_is_no_label_and_every_label_is_its_own(name):
  y, none, _ = without_keys(name)
  assert off(y, none)[0] < 1e-6
  for i in range(BATCH):
    assert all(off(y[i:i + 1], y[j:j + 1])[0] > 1e-3 for j in range(i)), i


@every
def test_labels_that_do_not_fit_are_refused(name):
  case, (z, time, *_) = NETS[name], arguments(name)
  init = lambda net, cond: jax.eval_shape(net.init, jax.random.key(0), z, time, cond)
  if case.labels:
    for wrong in (np.zeros(BATCH, np.float32), np.zeros((BATCH, 1), np.int32)):
      with pytest.raises(InputError, match='cond|label'):
        init(case.net, wrong)
  if hasattr(case.net, 'classes') and name not in SCALARS:
    case = case._replace(net=case.net.clone(classes=0), labels=False)
  if not case.labels:
    with pytest.raises(InputError, match='label'):
      init(case.net, np.zeros(BATCH, np.int32))


@pytest.mark.long
@pytest.mark.parametrize('name', [name for name, case in NETS.items()
                                  if hasattr(case.net, 'dtype')])
def test_a_trunk_in_bfloat16_is_close_and_its_parameters_and_output_are_float32(name):
  """Its resolution is 4e-3: an error below 1e-5 would say that nothing was in bfloat16."""
  y, _, low = without_keys(name)
  assert low.dtype == jnp.float32
  assert 1e-5 < off(low, y).max() < NETS[name].bfloat16
  half = NETS[name].net.clone(dtype=jnp.bfloat16)
  initial = jax.eval_shape(half.init, jax.random.key(0), *arguments(name))
  assert {u.dtype for u in jax.tree.leaves(initial)} == {jnp.dtype('float32')}


@pytest.mark.long
@pytest.mark.parametrize('name', [name for name, case in NETS.items() if case.start != 'any'])
def test_an_untrained_network_says_nothing_or_z(name):
  """z where the target is x, or near it; zero otherwise, as it is of a network that adds no z."""
  (z, time, *_), net, start = arguments(name), NETS[name].net, NETS[name].start
  others = [net.clone(adds_z=False)] if start == 'z' else []

  @jax.jit
  def outputs(key):
    y, params = net.init_with_output(key, z, time)
    return [y, *(other.apply(params, z, time) for other in others)]
  y, *zero = map(np.asarray, outputs(jax.random.key(0)))
  channels = z.shape[-1]
  np.testing.assert_allclose(y[..., :channels], z if start == 'z' else 0.0 * z, rtol=0,
                             atol=1e-3 if start == 'nearly zero' else 0.0)
  for nothing in (y[..., channels:], *zero):
    np.testing.assert_array_equal(nothing, 0.0)
