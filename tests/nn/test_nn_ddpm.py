"""The U-Net of DDPM: parity with a recorded output, published sizes, and settings.

tests/data/diffusers_ddpm.npz holds an output of diffusers' UNet2DModel, with the settings of its
DDPM at a smaller size, for weights that `published.array` makes from their names.
"""
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import published
from tests.support.published import assert_close, shapes_of
from vdm_jax.errors import InputError
from vdm_jax.nn.unets.ddpm import UNet
from vdm_jax.published import ddpm

DATA = Path(__file__).parents[1] / 'data' / 'diffusers_ddpm.npz'
SMALL = UNet(features=32, multipliers=(1, 2), attention_resolutions=(4,), groups=16)
# On the way down a resampling alone.
TINY = {'features': 8, 'multipliers': (1, 2), 'blocks': 0, 'attention_resolutions': (2,),
        'groups': 2, 'dropout': 0.0, 'weight_gradient': 'xla'}


def size_of(net, shape):
  shapes = shapes_of(net, jnp.zeros((1, *shape)), jnp.zeros(1))
  return sum(u.size for u in jax.tree.leaves(shapes))


@pytest.fixture(scope='module')
def recorded():
  with np.load(DATA) as file:
    r = {name: file[name] for name in file.files}
  shapes = json.loads(str(r['shapes']))
  flat = {key: published.array(key, tuple(shape)) for key, shape in shapes.items()}
  return flat, (np.moveaxis(r['z'], 1, -1), r['time']), np.moveaxis(r['out'], 1, -1)


@pytest.mark.long
def test_the_output_of_the_public_code_repeats(recorded, differs):
  flat, args, want = recorded
  params = ddpm.from_flat(flat, shapes_of(SMALL, *args))
  got = jax.jit(SMALL.apply)({'params': params}, *args)
  assert_close(got, want)
  differs('parity', 'nn/unets/ddpm.py', got, want)


def test_parameters_go_back_to_their_published_names_and_both_generations_of_them_are_read(
    recorded):
  flat, args, _ = recorded
  like = shapes_of(SMALL, *args)
  back = ddpm.to_flat(ddpm.from_flat(flat, like))
  assert back.keys() == flat.keys()
  for key, array in flat.items():
    np.testing.assert_array_equal(back[key], array, err_msg=key)

  older = {}
  for key, array in flat.items():
    for new, old in (('.to_q.', '.query.'), ('.to_k.', '.key.'), ('.to_v.', '.value.'),
                     ('.to_out.0.', '.proj_attn.')):
      key = key.replace(new, old)
    older[key] = array
  assert older.keys() != flat.keys()
  jax.tree.map(np.testing.assert_array_equal, ddpm.from_flat(older, like),
               ddpm.from_flat(flat, like))

  with pytest.raises(InputError, match=r'missing: down_blocks.1.attentions.0'):
    ddpm.from_flat({key: u for key, u in flat.items() if 'attentions.0' not in key}, like)


@pytest.mark.long
def test_published_networks_have_their_published_sizes():
  """Ho et al. (2020), appendix B: 35.7 and 114 million; counted by instantiating public code."""
  for name, size in (('ddpm-cifar10-32', 35_746_307), ('ddpm-ema-church-256', 113_673_219)):
    assert size_of(ddpm.MODELS[name], ddpm.SHAPES[name]) == size
  assert size_of(UNet(attention_up='last'), (32, 32, 3)) == 35_218_947  # of Song et al. (2021)


# ------------------------------------------------------- settings


@pytest.mark.parametrize('settings, cond, message', [
    ({'groups': 3}, None, 'groups=3: .*choose a divisor'),
    ({'features': 7, 'groups': 1}, None, 'features=7: .* even'),
    ({'multipliers': (1, 1, 1, 1)}, None, '4 x 4 pixels cannot be halved 3 times'),
    ({}, np.zeros(2, np.int32), 'set `classes`'),
    ({'classes': 3}, np.zeros(2, np.float32), 'one integer per example'),
])
def test_what_does_not_fit_is_an_error_that_names_the_remedy(settings, cond, message):
  net = UNet(**{**TINY, **settings})
  with pytest.raises(InputError, match=message):
    jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((2, 4, 4, 1)), jnp.zeros(2), cond)
