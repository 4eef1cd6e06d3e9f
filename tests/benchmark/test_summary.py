"""What `scripts/summarize.py` says of a network, against published counts and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import configs
from vdm_jax.benchmark import speed, summary
from vdm_jax.published.dit import MODELS


def of(name: str, **model) -> list[summary.Row]:
  _, config = configs.read(name)
  config.model.update(model)
  return summary.summary(speed.of_config(configs.file(name), config))


@pytest.mark.first(2)
@pytest.mark.parametrize('size,gflop', [
    # Peebles and Xie (2023), table 4; their Gflops count a multiplication with an addition as one.
    ('S/2', 6.06), ('B/4', 5.56), ('L/8', 5.01), ('XL/2', 118.64), ('XL/8', 7.39)])
def test_a_dit_takes_the_published_gflops(size, gflop):
  net = MODELS[f'DiT-{size}']
  z, one = jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32), jax.ShapeDtypeStruct((1,), float)
  label = jax.ShapeDtypeStruct((1,), jnp.int32)
  params = jax.eval_shape(net.init, jax.random.key(0), z, one, label)
  program = jax.make_jaxpr(net.apply)(params, z, one, label)
  flop = sum(flop for _, flop, _ in summary.operations(program.jaxpr))
  np.testing.assert_allclose(flop / 2e9, gflop, rtol=0.006)


@pytest.mark.long
def test_the_blocks_of_a_network_add_up_to_the_published_count():
  rows = of('cifar10/augmented:paper')
  assert sum(row.parameters for row in rows) == 139_279_877  # its schedule of 3,074 included
  assert summary.figures(rows)['parameters'] == '139,279,877'
  named = {row.block: row for row in rows}
  down, each = named['net/down'], 3 * 3 * 256 * 256  # weights of a convolution
  # Two convolutions on every pixel, and the conditioning once.
  assert down.flop == 32 * 2 * (2 * 32 * 32 * each + 1024 * 256)
  assert down.activations == 32 * 4 * (2 * 32 * 32 * 256 + 256)
  attention = 4 * 32 * 32 * 256 * 256 + 2 * 1024 * 1024 * 256  # four maps, scores and their use
  assert named['net/down_attention'].flop == 32 * 2 * attention
  assert named['net/norm_out'] == ('net/norm_out', 512, 0.0, 0)


@pytest.mark.long
def test_loops_count_as_often_as_they_run():
  scanned, written_out = (of('cifar10/vdm', scan=scan, blocks=3, features=32)
                          for scan in (True, False))
  assert scanned == written_out


@pytest.mark.long
def test_parts_are_told_apart_by_their_modules():
  named = {row.block: row for row in of('systems:mulan')}
  assert named['net/conv_in'].flop and named['schedule/dense0'].flop
  # The encoder is of the bound alone, though its children have the names of the network's.
  assert named['encoder/conv_in'].flop == 0.0 and named['encoder/conv_in'].parameters == 736
