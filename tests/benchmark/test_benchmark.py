"""The benchmark: its clock, its count of the work, the size of its programs, what it prints."""
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import rich.console

from tests.support import students_config
from vdm_jax.benchmark import coding, distillation, hardware, report, scaling, speed, timing
from vdm_jax.benchmark.measurements import MEASUREMENTS
from vdm_jax.errors import InputError
from vdm_jax.runs import workdir

ROOT = Path(__file__).parents[2]
TINY = ROOT / 'tests' / 'support' / 'tiny_config.py'
CIFAR10 = ROOT / 'configs' / 'cifar10' / 'vdm.py'


class Clock:
  """Time passes only in `work`, by the next of these durations."""

  def __init__(self, *durations):
    self.now, self.durations, self.calls = 0.0, list(durations), 0

  def __call__(self):
    return self.now

  def work(self):
    self.calls += 1
    self.now += self.durations.pop(0)


def subject(file, data_dir='', **overrides):
  config = workdir.import_config(file).get_config()
  config.data.data_dir = str(data_dir)
  fields = {name: overrides.pop(name) for name in list(overrides)
            if name in config.model and name not in ('blocks', 'features')}
  config.model.update(fields)
  return speed.of_config(file, config, **overrides)


# ------------------------------------------------------------------ timing


def test_the_median_and_the_quartiles_leave_the_warm_up_and_one_interruption_out():
  clock = Clock(50.0, 70.0, 3.0, 1.0, 90.0, 2.0, 4.0)
  timed = timing.measure(clock.work, repetitions=5, warm_up=2, clock=clock)
  assert timed.seconds == (3.0, 1.0, 90.0, 2.0, 4.0)
  assert timed.median == 3.0
  assert timed.spread == 4.0 - 2.0  # between the second and the fourth of five
  assert timing.Timing((7.0,)).spread == 0.0


def test_rivals_run_in_turn_and_each_has_its_own_times():
  clock = Clock(*[9.0] * 2, 1.0, 2.0, 3.0, 4.0)
  timed = timing.in_turn({'a': clock.work, 'b': clock.work}, repetitions=2, clock=clock)
  assert (timed['a'].seconds, timed['b'].seconds) == ((1.0, 3.0), (2.0, 4.0))


def test_a_step_of_several_is_its_share_of_a_dispatch():
  assert timing.Timing((1.0, 2.0)).per(4).seconds == (0.25, 0.5)


@pytest.mark.parametrize('seconds,repetitions', [(4.0, 5), (0.5, 40), (6.0, 3), (100.0, 3)])
def test_repetitions_fill_the_budget_and_are_three_at_least(seconds, repetitions):
  clock = Clock(*[seconds] * 50)
  timed = timing.measure(clock.work, warm_up=1, budget=20.0, clock=clock)
  assert timed.repetitions == repetitions
  assert clock.calls == 1 + repetitions


def test_a_program_made_beforehand_is_called_without_compiling_it_again():
  f, x = jax.jit(lambda x: jnp.sin(x) * 3.25 + jnp.cos(x) ** 7), jnp.ones(3)
  with timing.events() as seen:
    with timing.no_cache():
      assert not timing.compiled(f, x).cached
    before = timing.compilations(seen)
    f(x)
  assert (before, timing.compilations(seen)) == (1, 1)


def test_the_cache_is_used_again_after_a_measurement_without_it(tmp_path):
  make = lambda: timing.compiled(jax.jit(lambda x: jnp.tanh(x) @ x + 0.5), jnp.ones((3, 3)))
  directory = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  try:
    with timing.no_cache():
      make()
    assert not list(tmp_path.iterdir())
    assert not make().cached
    assert make().cached
  finally:
    jax.config.update('jax_compilation_cache_dir', directory)
    timing.compilation_cache.reset_cache()


def test_the_peak_of_memory_is_at_least_what_was_held():
  held = b'\1' * 200_000_000
  assert timing.peak_memory() > len(held)


# ------------------------------------------------------------------- work


def step_flop_by_hand(blocks, features, batch, inside):
  """Three passes of 2 FLOP a product: of the VDM U-Net on 32 x 32 x 3, without elementwise work.

  inside: the share of a 3x3 kernel's products that fall inside the image.
  """
  pixels, c = 32 * 32, features
  conv = lambda i, o: 9 * i * o * pixels * inside
  linear = lambda i, o: i * o * pixels
  products = conv(15, c) + conv(c, 3)                                  # z and 2 sines, 2 cosines
  products += (blocks + 2) * 2 * conv(c, c)                            # down and middle
  products += (blocks + 1) * (conv(2 * c, c) + conv(c, c) + linear(2 * c, c))
  products += 4 * linear(c, c) + 2 * pixels ** 2 * c                   # attention
  products += 4 * c * c + 16 * c * c + (2 * blocks + 3) * 4 * c * c    # the embedding of logsnr
  return 3 * 2 * products * batch


INSIDE = ((3 * 32 - 2) / (3 * 32)) ** 2  # at the border a third of the kernel's side is outside


@pytest.mark.long
@pytest.mark.parametrize('blocks,features,batch', [
    (2, 256, 4), (32, 128, 128)])
def test_the_work_of_a_step_is_that_of_its_matrix_products(blocks, features, batch, tmp_path):
  counted = speed.step_flop(subject(CIFAR10, tmp_path, blocks=blocks, features=features,
                                    batch_size=batch))
  by_hand = step_flop_by_hand(blocks, features, batch, INSIDE)
  assert by_hand < counted < 1.015 * by_hand  # the rest is elementwise


def test_the_recipe_of_cifar10_takes_what_the_table_of_performance_says():
  table = json.loads((ROOT / 'docs' / 'measured' / 'memory_summary.json').read_text())
  column = table['columns'].index('TFLOP a step')
  said, = (float(row[column]) for row in table['rows'] if row[0] == '`cifar10/vdm` (128)')
  by_hand = step_flop_by_hand(32, 128, 128, INSIDE) / 1e12
  assert by_hand < said < 1.015 * by_hand


@pytest.mark.long
def test_one_evaluation_is_a_third_of_a_step(tmp_path):
  one = subject(CIFAR10, tmp_path, blocks=1, features=256, batch_size=4)
  by_hand = step_flop_by_hand(1, 256, 4, INSIDE) / 3
  assert by_hand < speed.evaluation_flop(one, 4) < 1.015 * by_hand


@pytest.mark.long
def test_the_program_grows_with_the_depth_only_where_it_is_written_out(tmp_path):
  def size(blocks, scan):
    config = ROOT / 'configs' / 'systems.py'
    return speed.program_size(speed.lowered_step(
        subject(config, tmp_path, blocks=blocks, scan=scan, features=8, groups=2,
                weight_gradient='xla')))

  (text, operations), (text_6, operations_6) = size(2, True), size(6, True)
  assert operations_6 == operations
  assert text_6 < 1.001 * text  # of longer numbers
  assert size(2, False)[1] > 1.1 * size(1, False)[1]


# --------------------------------------------------------------- hardware


@pytest.mark.parametrize('kind,tera', [
    ('NVIDIA H200', 790), ('TPU v4', 275), ('TPU v5', 459), ('TPU v5p', 459), ('TPU v5 lite', 197)])
def test_a_device_is_known_by_the_name_that_jax_gives_it(kind, tera):
  assert hardware.peak(kind).flop_per_second == tera * 1e12


def test_a_peak_is_of_all_devices_and_of_nobody_where_none_is_stated():
  assert hardware.peak('cpu') is None
  assert speed.rates(6e12, 2.0)['share_of_peak'] is None
  of_four = speed.rates(6e12, 2.0, peak_tflops=3.0)  # the tests have four devices
  assert of_four == {'flop_per_second': 3e12, 'peak_flop_per_second': 12e12, 'share_of_peak': 0.25}


# ------------------------------------------------------------ measurements

COMMON = {'command', 'config', 'blocks', 'features', 'batch_size', 'layout', 'device', 'devices',
          'jax', 'date', 'peak_memory_bytes', 'compile_seconds'}


@pytest.mark.long
@pytest.mark.parametrize('layout,together', [('jit', 1), ('fsdp', 1), ('pmap', 1), ('jit', 5)])
def test_a_training_is_measured_with_one_compilation_of_its_step(layout, together):
  config = workdir.import_config(TINY).get_config()
  config.train.update(layout=layout, steps_per_dispatch=together)
  out = speed.train(speed.of_config(TINY, config, batch_size=16), repetitions=4)
  assert out.keys() >= COMMON | {'seconds_per_step', 'spread', 'repetitions', 'images_per_second',
                                 'flop_per_step', 'flop_per_second', 'share_of_peak'}
  assert out['compilations'] == 1
  assert (out['batch_size'], out['repetitions']) == (16, 4)
  assert (out['devices'], out['layout']) == (4, layout)
  assert out['images_per_second'] * out['seconds_per_step'] == pytest.approx(16)
  assert out['flop_per_second'] * out['seconds_per_step'] == pytest.approx(out['flop_per_step'])
  # Two matrices, [3, 8] and [8, 2], are its least; the rest of so small a step is elementwise.
  assert out['flop_per_step'] > 16 * 3 * 2 * (3 * 8 + 8 * 2)


@pytest.mark.long
def test_the_bound_and_samples_are_measured_by_their_evaluations():
  of = subject(TINY, batch_size=16)
  out = speed.evaluate(of, times=4, repetitions=3)
  assert out.keys() >= COMMON
  assert (out['images_per_batch'], out['evaluations_per_image']) == (4, 4)
  assert out['images_per_second'] * out['seconds_per_batch'] == pytest.approx(4)
  out = speed.sample(of, sampler_steps=5, repetitions=3)
  assert out.keys() >= COMMON
  assert (out['images_per_batch'], out['evaluations_per_image']) == (16, 5)
  assert out['seconds_per_evaluation'] == pytest.approx(out['seconds_per_image'] * 16 / 5)


@pytest.mark.long
def test_the_codec_is_measured_with_the_shares_of_the_network_and_of_the_coder():
  out = coding.codec(subject(TINY, batch_size=4), steps=3, repetitions=2)
  assert out.keys() >= COMMON
  assert (out['lanes'], out['T']) == (4, 3)
  for way in ('encoding', 'decoding'):
    network, coder = (out[f'{way}_{part}_share'] for part in ('network', 'coder'))
    assert 0.0 < network < 1.0 and network + coder == pytest.approx(1.0)
    assert out[f'{way}_images_per_second'] > 0.0


@pytest.mark.long
def test_a_step_of_a_student_is_compared_with_a_step_without_a_teacher():
  config = students_config.get_config('progressive')
  config.data.batch_size = 16
  out = distillation.step(speed.of_config(students_config.__file__, config), repetitions=3)
  assert out.keys() >= COMMON
  above = out['evaluations_above_plain_step'] * out['seconds_per_evaluation']
  assert above == pytest.approx(out['seconds_per_step'] - out['seconds_per_plain_step'])
  with pytest.raises(InputError, match='tiny_config.py.*: it has no teacher; name a config of stu'):
    distillation.step(subject(TINY))


@pytest.mark.long
def test_pairs_are_compared_with_samples_of_the_same_sampler():
  out = distillation.pairs(subject(TINY, batch_size=16), sampler_steps=5, repetitions=3)
  assert out.keys() >= COMMON - {'compile_seconds'}
  assert (out['pairs_per_batch'], out['evaluations_per_pair']) == (16, 5)
  assert out['time_of_pairs_to_samples'] * out['seconds_per_batch_of_samples'] == pytest.approx(
      out['seconds_per_batch'])


@pytest.mark.long
def test_input_is_compared_with_training():
  out = speed.data(subject(TINY), repetitions=3)
  assert out['input_images_per_second'] * out['input_seconds_per_batch'] == pytest.approx(8)
  assert out['input_share_of_step'] == pytest.approx(
      out['input_seconds_per_batch'] / out['seconds_per_step'])
  assert 0 <= out['waiting_share_of_step'] < 1


def test_a_report_gives_units_by_name_and_valid_json():
  result = {'command': 'compile', 'peak_memory_bytes': 3 * 2**30, 'flop_per_second': 3.16e14,
            'share_of_peak': 0.4, 'seconds_per_step': 0.065, 'peak_flop_per_second': None,
            'model': {'fourier': (-1, 0)}, 'depths': [{'blocks': 2, 'hlo_bytes': 2048}]}
  console = rich.console.Console(width=80)
  with console.capture() as capture:
    for table in report.tables('train', result):
      console.print(table)
  printed = capture.get()
  for text in ('3 GiB', '316 TFLOP/s', '40.00 %', '0.065 s', '2 KiB'):
    assert text in printed
  assert json.loads(report.as_json(result))['model'] == {'fourier': [-1, 0]}


def test_the_figures_for_a_row_are_single_values_without_those_of_several_numbers():
  result = {'share_of_peak': 0.4, 'model': {'fourier': (-1, 0), 'blocks': 32},
            'depths': [{'blocks': 2}]}
  assert report.figures(result) == {'share of peak': '40.00 %', 'model blocks': '32'}


def test_every_value_of_a_wide_table_can_be_read_in_80_columns():
  rows = [{'config': f'configs/a_long_name_{i}.py', **{f'some_long_name_{j}_bytes': 2.0**30 * i + j
          for j in range(8)}} for i in range(1, 6)]
  console = rich.console.Console(width=80)
  with console.capture() as capture:
    for table in report.tables('memory', {'rows': rows}, 80):
      console.print(table)
  lines = capture.get().splitlines()
  assert max(map(len, lines)) <= 80
  words = ' '.join(lines)
  for i in range(1, 6):
    assert f'configs/a_long_name_{i}.py' in words and words.count(f'{i} GiB') == 8
  narrow = report.tables('memory', {'rows': [{'a': 1, 'b': 2}]}, 80)[1]
  assert [column.header for column in narrow.columns] == ['a', 'b']


# ----------------------------------------------------------------- mistakes


@pytest.mark.parametrize('given,expected', [
    ({'features': 40}, r'^features=40: config\.model\.groups=32: it does not divide'),
    ({'batch_size': 6}, r'^batch_size=6: it cannot be divided over 4 devices'),
    ({'blocks': -1}, r'^blocks=-1: it must be at least 0')])
def test_a_flag_that_cannot_be_is_refused_by_its_name(given, expected, tmp_path):
  with pytest.raises(InputError, match=expected):
    subject(CIFAR10, tmp_path, **given)


def test_no_repetitions_are_refused():
  with pytest.raises(InputError, match='^repetitions=0: '):
    timing.measure(lambda: None, repetitions=0)


def command(*arguments):
  return subprocess.run([sys.executable, 'scripts/benchmark.py', *arguments], cwd=ROOT,
                        capture_output=True, text=True)


@pytest.mark.long
def test_the_command_prints_json_and_nothing_else_on_stdout():
  done = command('train', f'--config={TINY}', '--json', '--repetitions=2', '--batch_size=8')
  assert json.loads(done.stdout)['config'] == str(TINY), done.stderr
  assert 'training steps' in done.stderr


@pytest.mark.long
@pytest.mark.parametrize('arguments,expected', [
    (['run'], f"'run' is not a measurement; name one of {', '.join(MEASUREMENTS)}"),
    ([], f"name one of {', '.join(MEASUREMENTS)}"),
    (['train'], '--config: it is missing; name a config file'),
    (['train', '--workdir=runs/a'], 'this command takes no workdir'),
    (['compile', f'--config={TINY}', '--depths=1,b', '--nostart'], '--depths=1,b'),
    (['compile', '--config=configs/digits/vdm.py', '--features=50'],
     'config.model.groups=12: it does not divide config.model.features=50')])
def test_a_mistake_is_one_line_and_code_2(arguments, expected):
  done = command(*arguments)
  assert done.returncode == 2
  assert expected in done.stderr
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
  assert done.stdout == ''


@pytest.mark.long
def test_compilation_is_measured_by_depth_beside_the_start_to_the_first_step():
  done = command('compile', '--config=tests/support/tiny_config.py', '--depths=1,2', '--json')
  out = json.loads(done.stdout)
  assert [row['blocks'] for row in out['depths']] == [1, 2]
  for row in out['depths']:
    parts = row['trace_seconds'] + row['lower_seconds'] + row['xla_seconds']
    assert row['compile_seconds'] == pytest.approx(parts)
  # A process cannot start and train in less than a program takes that is there already.
  assert out['start_to_first_step_warm_seconds'] > 0.5


def test_the_depth_of_a_published_network_is_not_to_be_chosen():
  file = ROOT / 'configs' / 'published' / 'ddpm.py'
  config = workdir.import_config(file).get_config()
  with pytest.raises(InputError, match='^blocks=3: the network of .* is a published one'):
    speed.of_config(file, config, blocks=3)
  with pytest.raises(InputError, match='^config=.* cannot be made smaller'):
    scaling.scaling(file, config)
