"""Bytes counted by hand, and the compiler's account of a step whose activations are known."""
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import wide_config
from vdm_jax.benchmark import hardware, memory, report, speed
from vdm_jax.errors import InputError
from vdm_jax.runs import workdir
from vdm_jax.train import check

ROOT = Path(__file__).parents[2]
WIDE = Path(wide_config.__file__)
# Counted from the published code, with the schedule's.
PARAMETERS = {'cifar10/vdm': 30_578_181, 'cifar10/augmented': 122_140_677,
              'cifar10/augmented:paper': 139_279_877, 'imagenet/vdm:32': 122_137_605,
              'imagenet/vdm:64': 237_603_845}

@pytest.fixture(scope='module')
def wide():
  return memory.account('wide', WIDE, wide_config.get_config(), (1, 4, 64, 128))


@pytest.mark.long
def test_the_state_is_the_parameters_four_times(wide):
  """Parameters, one average, two moments; 4 bytes each; and a few counters of the optimiser."""
  about, rows = wide
  assert about['parameters'] == 2**17
  assert 0 < about['state_bytes'] - 16 * 2**17 <= 64
  for row in rows:
    parts = row['devices']
    assert 0 < row['fsdp_state_bytes'] - 16 * 2**17 // parts <= 64


@pytest.mark.long
def test_temporary_arrays_grow_in_proportion_to_the_images(wide):
  """At least tanh(h) is kept of each, 2^17 bytes; what is counted at 4 and 8 holds at 32."""
  about, _ = wide
  assert 2**17 <= about['activation_bytes'] <= 4 * 2**17
  found = memory.temporary(speed.of_config(WIDE, wide_config.get_config()), 32)
  np.testing.assert_allclose(about['gradient_bytes'] + 32 * about['activation_bytes'], found,
                             rtol=0.01)


@pytest.mark.long
def test_a_device_holds_the_state_the_gradients_and_its_images(wide):
  about, rows = wide
  for row in rows[:3]:
    images = 64 // row['devices']
    assert row['images_at_once'] == images
    step = about['gradient_bytes'] + images * about['activation_bytes']
    assert row['replicated_bytes'] == about['state_bytes'] + step
    gathered = 0 if row['devices'] == 1 else 2**19
    assert row['fsdp_bytes'] == row['fsdp_state_bytes'] + gathered + step


def test_a_batch_that_the_devices_do_not_divide_has_no_numbers(wide):
  *_, last = wide[1]
  assert last['devices'] == 128 and last['fsdp_state_bytes'] > 0
  assert [last[name] for name in ('images_at_once', 'replicated_bytes', 'fsdp_bytes',
                                  'H200_seconds')] == [None] * 4


def test_the_time_is_that_of_the_work_at_the_assumed_share_of_the_peak(wide):
  about, rows = wide
  # Two products of 2 x 32,768 an image, forward, and twice that backward, but for that by z.
  least = 64 * 2 * 2 * 2**15 * (2 + 3)
  assert least <= about['flop_per_step'] <= 2 * least
  assert math.isclose(rows[1]['v4_seconds'] * 4 * 0.4 * 275e12, about['flop_per_step'])
  assert hardware.PEAKS['TPU v5p'].flop_per_second == 459e12


def test_a_batch_that_is_too_large_for_this_machine_is_counted_from_shapes(
    wide, monkeypatch):
  monkeypatch.setattr(check, 'MOST_NUMBERS', 2**9)
  config = wide_config.get_config()
  config.data.batch_size = 2**16
  with pytest.raises(InputError, match='config.data.batch_size=65536: this many examples of 2'):
    speed.of_config(WIDE, config)
  flop = speed.step_flop(speed.of_config(WIDE, config, runs=False))
  # But for the update of the parameters, which is the same for any batch.
  np.testing.assert_allclose(flop, wide[0]['flop_per_step'] * 2**10, rtol=0.05)


@pytest.mark.long
def test_the_autoencoder_of_a_diffusion_of_latents_has_no_moments():
  """DiT of two small blocks with a bfloat16 trunk: the net is there four times, the rest twice."""
  file = ROOT / 'configs' / 'imagenet' / 'dit.py'
  config = workdir.import_config(file).get_config('DiT-S/2')
  config.model.update(blocks=2, features=64, attention_heads=2, dtype='bfloat16')
  config.autoencoder.model.update(features=8, multipliers=(1, 1), blocks=1, groups=4)
  config.data.update(shape=(16, 16, 3), image_size=16, batch_size=64)
  about, rows = memory.account('dit', file, config, (1, 8))
  subject = speed.of_config(file, config)
  params = jax.eval_shape(lambda: speed.initial_params(subject))
  count = {name: sum(math.prod(u.shape) for u in jax.tree.leaves(tree))
           for name, tree in params.items()}
  assert about['parameters'] == sum(count.values())
  others = count['autoencoder'] + count['scale']
  assert 0 < about['state_bytes'] - 16 * count['net'] - 8 * others <= 64
  assert rows[1]['fsdp_bytes'] < rows[1]['replicated_bytes'] < rows[0]['replicated_bytes']


@pytest.mark.first(1)
@pytest.mark.parametrize('name', PARAMETERS)
def test_parameters_of_the_published_configs(name):
  file, config = memory.published(ROOT / 'configs')[name]
  subject = speed.of_config(file, config)
  params = jax.eval_shape(lambda: speed.initial_params(subject))
  assert sum(math.prod(u.shape) for u in jax.tree.leaves(params)) == PARAMETERS[name]


def test_a_summary_has_the_gib_of_each_number_of_devices_and_the_seconds_of_one():
  row = lambda n, replicated, fsdp: {
      'devices': n, 'replicated_bytes': replicated, 'fsdp_bytes': fsdp, 'H200_seconds': 0.5,
      'v4_seconds': 1.0, 'v5p_seconds': 2.0}
  about = {'config': 'a', 'batch': 1024, 'parameters': 12, 'flop_per_step': 2.5e12}
  assert memory.summary(about, [row(1, 2**31, 2**30), row(8, None, None)]) == {
      'config': '`a` (1,024)', 'parameters': 12, 'TFLOP a step': '2.5',
      'replicated: on 1, 8 devices': '2, -', 'fsdp: on 1, 8': '1, -',
      'seconds on one H200, v4, v5p': '0.5, 1, 2'}


def test_the_rows_are_tables_of_markdown():
  result = {'command': 'memory', 'configs': [{'config': 'a', 'state_bytes': 2048}],
            'rows': [{'devices': 8, 'fsdp_bytes': None}]}
  assert report.markdown(result) == (
      '| config | state bytes |\n|---|---|\n| a | 2 KiB |\n\n'
      '| devices | fsdp bytes |\n|---|---|\n| 8 | - |')


def test_only_what_is_split_is_gathered():
  params = {'kernel': jax.ShapeDtypeStruct((3, 3, 64, 64), jnp.float32),
            'bias': jax.ShapeDtypeStruct((64,), jnp.float32)}
  assert memory.gathered_bytes(params, 8) == 4 * 9 * 64 * 64
  assert memory.bytes_of(params, 8) == 4 * 9 * 64 * 8 + 4 * 64
  assert memory.bytes_of(params) == 4 * (9 * 64 * 64 + 64)
