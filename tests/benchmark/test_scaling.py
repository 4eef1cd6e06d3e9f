"""What is sent in a step: the parser on a program written by hand, the rest on compiled ones."""
import math

import jax
import jax.numpy as jnp
import pytest

from vdm_jax.benchmark import kernels, scaling, speed
from vdm_jax.benchmark.kernels import Collective
from vdm_jax.runs import workdir
from vdm_jax.train import loop

HLO = '''HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner_body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %permuted = f32[8]{0} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}
  ROOT %out = (s32[], f32[8]{0}) tuple(%x, %permuted)
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]{0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

%outer_body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %all-reduce.7 = (f32[2,3]{1,0}, bf16[4]{0}, /*index=2*/f32[]) all-reduce(%p, %p, %p), to_apply=%add
  ROOT %again = (s32[], f32[8]{0}) while(%p), condition=%condition, body=%inner_body, backend_config={"known_trip_count":{"n":"2"}}
}

%branch (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %swapped = f32[8]{0} all-to-all(%x), channel_id=5, dimensions={0}
}

ENTRY %main (p: (s32[], f32[8])) -> f32[8] {
  %p = (s32[], f32[8]{0}) parameter(0)
  %loop = (s32[], f32[8]{0}) while(%p), condition=%condition, body=%outer_body, backend_config={"known_trip_count":{"n":"3"}}
  %y = f32[8]{0} get-tuple-element(%loop), index=1
  %part = f32[2]{0} reduce-scatter(%y), channel_id=2, dimensions={0}, to_apply=%add
  %start = (f32[2]{0}, f32[8]{0}) all-gather-start(%part), channel_id=3, dimensions={0}
  %whole = f32[8]{0} all-gather-done(%start)
  ROOT %r = f32[8]{0} conditional(%p, %whole, %whole), branch_computations={%branch, %branch}
}
'''  # noqa: E501

CONFIG = '''
import jax
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax import schedules
from vdm_jax.systems.variational import vdm


class Net(nn.Module):
  """Layers of 128 numbers, one after another in a loop."""

  @nn.compact
  def __call__(self, z, logsnr, cond=None, keys=None):
    kernels = self.param('layers', nn.initializers.lecun_normal(), (3, 128, 128))
    h = nn.Dense(128)(jnp.concatenate([z, logsnr[:, None]], axis=-1))
    h, _ = jax.lax.scan(lambda h, kernel: (nn.tanh(h @ kernel), None), h, kernels)
    return z + nn.Dense(2)(h)


def get_config():
  config = vdm.default_config()
  config.data.update(name='swirl', shape=(2,), levels=256, validation=8)
  return config


def build(config):
  return vdm.experiment(config, net=Net(), schedule=schedules.LearnedLinear(8.0, -5.0))
'''


def test_collectives_are_counted_as_often_as_they_run():
  assert kernels.collectives(HLO) == [
      *[Collective('all-reduce', (24, 8, 4), 3), Collective('collective-permute', (32,), 6)],
      Collective('reduce-scatter', (32,), 1), Collective('all-gather', (32,), 1),
      Collective('all-to-all', (32,), 1), Collective('all-to-all', (32,), 1)]


def test_single_numbers_are_kept_apart():
  found = kernels.by_kind(kernels.collectives(HLO))
  assert found['all-reduce'] == {'operations': 3, 'bytes': 3 * (24 + 8), 'scalars': 3}
  assert found['collective-permute'] == {'operations': 6, 'bytes': 192, 'scalars': 0}


def test_a_collective_in_a_loop_of_unknown_length_is_not_counted_as_one():
  with pytest.raises(ValueError, match='all-reduce in a loop of unknown length: outer_body'):
    kernels.collectives(HLO.replace('{"known_trip_count":{"n":"3"}}', '{}'))


@pytest.fixture(scope='module')
def subject(tmp_path_factory):
  file = tmp_path_factory.mktemp('config') / 'config.py'
  file.write_text(CONFIG)
  return speed.of_config(file, workdir.import_config(file).get_config())


@pytest.fixture(scope='module')
def rows(subject):
  return {row['layout']: row for row in scaling.rehearse(subject, devices=[4])}


@pytest.mark.long
@pytest.mark.parametrize('layout', loop.LAYOUTS)
def test_the_compiled_step_sends_what_theory_says(rows, layout):
  """The gradients of all parameters but the schedule's; under fsdp the large one is gathered."""
  row, large, rest = rows[layout], 3 * 128 * 128, 3 * 128 + 128 + 128 * 2 + 2
  assert row['as_foretold']
  assert row['all_reduce_bytes'] == 4 * (large + rest)
  assert row['all_gather_bytes'] == (4 * large if layout == 'fsdp' else 0)
  assert row['reduce_scatter_bytes'] == row['other_bytes'] == 0
  # The metrics, the schedule's gradients, and a share of the gradient's norm for each tensor.
  assert 0 < row['scalars'] <= 6 + 2 + 7


def test_one_device_needs_nobody(subject):
  params = jax.eval_shape(lambda: speed.initial_params(subject))
  assert scaling.expected('jit', params, 1) == scaling.expected('fsdp', params, 1) == {}
  assert scaling.sent(scaling.expected('pmap', params, 1), 1) == 0


def test_a_ring_sends_twice_what_it_reduces_and_once_what_it_gathers():
  """Four devices: three quarters, once or twice.  Never more than the limit of many devices."""
  assert scaling.sent({'all-reduce': 400}, 4) == 600
  assert scaling.sent({'all-gather': 400, 'reduce-scatter': 800}, 4) == 900
  assert scaling.sent({'all-reduce': 400}, 1) == 0
  assert math.isclose(scaling.sent({'all-reduce': 10**9}, 512), 2e9, rel_tol=0.002)


def test_of_128_channels_on_512_devices_each_part_is_summed_once_more():
  kernel = jax.ShapeDtypeStruct((3, 3, 128, 128), jnp.float32)
  size = 4 * 9 * 128**2
  assert scaling.expected('fsdp', {'k': kernel}, 512, scatters=True) == {
      'all-gather': size, 'reduce-scatter': size, 'all-reduce': size // 128}
  assert scaling.expected('fsdp', {'k': kernel}, 64, scatters=True) == {
      'all-gather': size, 'reduce-scatter': size, 'all-reduce': 0}
