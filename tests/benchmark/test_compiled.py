"""The account of a compiled step of known work, and the search for the largest batch."""
import math
from pathlib import Path

import jax
import ml_collections
import pytest

from tests.support import wide_config
from vdm_jax import measured
from vdm_jax.benchmark import (
    compiled,
    hlo,
    kernels,
    machines,
    measurements,
    speed,
    target_table,
)
from vdm_jax.errors import InputError

GIB = 2**30
EMPTY = hlo.parse('ENTRY %main () -> f32[] {\n  ROOT %x = f32[] constant(0)\n}')


def test_the_figures_are_of_one_device_at_the_rates_of_the_machine():
  """On v5e: 1,970 TFLOP take 10 s, and 8,190 GB take 10 s; half of the FLOP is useful."""
  some = (kernels.Kernel('a', 'product', 10, 197e12, 0, 'dot'),
          kernels.Kernel('b', 'fusion', 5, 0.0, 1638 * 10**9, 'add'))
  sums = (kernels.Collective('all-reduce', (8 * 10**6,), 3, 4),
          kernels.Collective('all-gather', (8 * 10**6, 4), 1, 0))
  work = kernels.Work(some, sums, (), {})
  out = compiled.figures(work, machines.machine('v5e:2x4'), 8 * 985e12)
  assert (out['kernels'], out['flop_on_each_device'], out['moved_bytes']) == (
      15, 1970e12, 8190 * 10**9)
  assert math.isclose(out['arithmetic_seconds'], 10.0)
  assert math.isclose(out['memory_seconds'], 10.0)
  assert math.isclose(out['longest_seconds'], 20.0)
  assert math.isclose(out['share_of_peak_summed'], 5.0 / 20.0)
  assert out['collectives'] == '3 all-reduce, 1 all-gather'
  # In rings of 4 and of 8: 2 x 3/4 of 24 MB, and 7/8 of 8 MB.
  assert out['sent_by_each_bytes'] == pytest.approx(36e6 + 7e6, abs=10)
  assert [row['kind'] for row in out['by_kind']] == ['fusion', 'product']


def test_a_program_that_is_too_large_for_a_tpu_says_how_many_bytes_it_needs():
  assert compiled._needed('RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G '
                          'of 15.75G hbm. Exceeded') == {'total_bytes': round(20.5 * GIB)}
  assert compiled._needed('INTERNAL: no such thing') == {}


@pytest.mark.parametrize('message,compiles', [
    ("INTERNAL: Couldn't find output tile sizes that satisfy hlo: %dot.1", 2), ('INTERNAL', 1)])
def test_products_for_which_xla_finds_no_tiles_are_those_of_the_library(message, compiles):
  asked = []

  class Lowered:
    def compile(self, compiler_options):
      asked.append(compiler_options)
      if compiler_options.get('xla_gpu_enable_triton_gemm', True):
        raise jax.errors.JaxRuntimeError(message)
      return 'a program'
  if compiles == 2:
    assert compiled._executable(Lowered(), machines.machine('h200')) == 'a program'
  else:
    with pytest.raises(jax.errors.JaxRuntimeError):
      compiled._executable(Lowered(), machines.machine('h200'))
  assert len(asked) == compiles and all(one['xla_gpu_autotune_level'] == 0 for one in asked)


def test_the_work_of_a_step_is_that_of_its_products_computed_once():
  """Forwards a layer of 2 x 1,024 numbers and one of 1,024 x 2; backwards three products.

  An elementwise operation is no product, and what the backward pass computes again counts once.
  """
  config = wide_config.get_config('1024')
  config.model.remat = 'all'
  subject = speed.Subject(wide_config.build(config), config, Path(wide_config.__file__))
  batch = config.data.batch_size
  assert compiled.step_flop(subject) == 5 * 2 * batch * 2 * 1024


@pytest.mark.parametrize('fixed,each,images,most', [
    (1.0, 1.0, 64, 4), (1.0, 0.25, 256, 4), (10.0, 50.0, 2, 4), (1.0, 100.0, 1, 4),
    (100.0, 0.25, 64, 4)])
def test_the_largest_batch_is_found_in_few_compilations(fixed, each, images, most, monkeypatch):
  """Of 118.2 GiB, nine tenths of an H200: `fixed` + `each` GiB an image; images: what fits."""
  made = []

  def step(subject, machine, devices, count):
    made.append(count)
    total = round((fixed + each * count) * GIB)
    return compiled.Step(count, 0.0, {'total_bytes': total, 'temp_bytes': total}, EMPTY)
  monkeypatch.setattr(compiled, 'compile_step', step)
  found = compiled.largest(None, machines.machine('h200'), [])
  assert found.images == images and found.fits(machines.machine('h200'))
  assert len(made) == len(set(made)) <= most


def test_a_step_of_which_no_image_fits_is_returned_with_one_image(monkeypatch):
  monkeypatch.setattr(compiled, 'compile_step', lambda subject, machine, devices, images:
                      compiled.Step(images, 0.0, {}, None, 'too large'))
  found = compiled.largest(None, machines.machine('h200'), [])
  assert (found.images, found.program) == (1, None)


@pytest.mark.parametrize('group,field,value,expected', [
    ('train', 'layout', 'pmap', r'^config\.train\.layout=.pmap.: a program cannot be compiled'),
    ('model', 'attention', 'cudnn', r'^config\.model\.attention=.cudnn.: it cannot be compiled'),
    ('data', 'batch_size', 12, '^batch_size=12: it cannot be divided over the 8 devices of v5e'),
    ('train', 'accumulate', 3, '^batch_size=16: .* and 3 microbatches; choose a multiple of 24')])
def test_what_cannot_be_compiled_for_absent_devices_is_refused(group, field, value, expected):
  config = ml_collections.ConfigDict({
      'train': {'layout': 'jit', 'accumulate': 1}, 'model': {'attention': 'auto'},
      'data': {'batch_size': 16}})
  subject, machine = speed.Subject(None, config, None), machines.machine('v5e:2x4')
  compiled.check(subject, machine)
  config[group][field] = value
  with pytest.raises(InputError, match=expected):
    compiled.check(subject, machine)


def test_the_search_for_the_largest_batch_needs_no_batch_that_the_devices_divide():
  config = ml_collections.ConfigDict({'train': {'layout': 'fsdp'}, 'model': {},
                                      'data': {'batch_size': 128}})
  compiled.check(speed.Subject(None, config, None), machines.machine('v6e:16x16'), most=True)


# ----------------------------------------------------------------- the table


def table(path, filled=()):
  header, *rows = target_table.cells()
  rows = [['x'] * len(row) if row[0] in filled else row for row in rows]
  rows = [[name[0], *row[1:]] for name, row in zip(target_table.cells()[1:], rows, strict=True)]
  measured.write(path, measured.Measurement('t', 'c', '2026-12-02', 'm', {}, header, rows))
  return path


def test_the_table_has_each_published_config_on_each_machine_under_both_layouts():
  names = list(target_table.rows())
  # On one GPU both layouts are one program.
  assert len(names) == len(target_table.CONFIGS) * (1 + 4 * 2) == len(set(names))
  assert 'cifar10/vdm on h200, jit' in names and 'cifar10/vdm on h200, fsdp' not in names
  assert 'imagenet/vdm:64 on v6e:16x16, fsdp' in names


def test_a_second_call_fills_only_the_rows_that_are_open(tmp_path):
  done = 'cifar10/vdm on h200, jit'
  file = table(tmp_path / 'targets.json', [done])
  called = []

  def run(words):
    called.append(words)
    return int('imagenet/vdm.py:64' in words[3])  # which fails
  out = target_table.fill(file, tmp_path / 'benchmark.py', tmp_path, 'h200', run)
  assert len(called) == len(target_table.CONFIGS) - 1 and not any(done in w[-1] for w in called)
  assert called[0][2:] == [
      'compile', f'--config={tmp_path}/cifar10/augmented.py', '--config.model.dtype=bfloat16',
      '--config.train.layout=jit', '--target=h200', '--largest', f'--measured={file}',
      '--row=cifar10/augmented on h200, jit']
  assert out['failed'] == 1 and out['rows_filled'] == len(called) - 1


def test_a_machine_that_the_table_has_not_is_refused():
  with pytest.raises(InputError, match='^target=.*the table has no such machine'):
    target_table.check_target('v4:2x2x2')


def test_another_table_is_not_filled(tmp_path):
  other = tmp_path / 'other.json'
  measured.write(other, measured.Measurement('t', 'c', '2026-12-02', 'm', {}, ['a'], [['1']]))
  with pytest.raises(InputError, match='^measured=.*it is another table'):
    target_table.fill(other, tmp_path, tmp_path)


@pytest.mark.parametrize('field', ['target', 'largest'])
def test_a_setting_that_a_measurement_does_not_read_is_refused(field):
  with pytest.raises(InputError, match=f'^{field}=.*train does not read it'):
    measurements.measure('train', measurements.Settings(**{field: 'h200'}))


# -------------------------------------------------------- what a compiler says


class Refusing:
  """A lowered step that its compiler does not compile."""

  def __init__(self, message):
    self.message = message

  def compile(self, compiler_options):
    raise jax.errors.JaxRuntimeError(self.message)


def refused(message, monkeypatch):
  monkeypatch.setattr(compiled.scaling, 'lowered', lambda *args: Refusing(message))
  config = ml_collections.ConfigDict({'train': {'layout': 'jit'}})
  return compiled.compile_step(speed.Subject(None, config, None), machines.machine('v5e:2x4'), [],
                               4)


def test_a_step_that_is_too_large_does_not_fit(monkeypatch):
  step = refused('RESOURCE_EXHAUSTED: Used 20.50G of 15.75G hbm.', monkeypatch)
  assert step.program is None and step.memory == {'total_bytes': round(20.5 * GIB)}


def test_any_other_failure_of_the_compiler_is_an_error(monkeypatch):
  with pytest.raises(jax.errors.JaxRuntimeError, match='no such operation'):
    refused('INTERNAL: no such operation', monkeypatch)
