"""The check of an accelerator: its stages, its record, its model, and a rehearsal on the CPU."""
import importlib.util
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import random
from vdm_jax.benchmark import device as device_lib
from vdm_jax.benchmark.device import __main__ as program
from vdm_jax.benchmark.device import checks, images, model, stages
from vdm_jax.benchmark.device.stages import Record, Stage
from vdm_jax.errors import InputError
from vdm_jax.runs import workdir
from vdm_jax.typing import Context

ROOT = Path(__file__).parents[2]
NETWORK = model.Size(blocks=0, features=8, groups=4)
# Which a machine on loan lacks, beside others that no stage needs anywhere.
ABSENT = ('ml_collections', 'grain', 'tensorflow_datasets', 'array_record', 'tensorboardX',
          'importlib_resources', 'constriction')


class Clock:
  """A clock that only `start` moves: by the seconds that a stage takes, or by its limit."""

  def __init__(self, **takes):
    self.now, self.takes, self.limits = 0.0, takes, {}

  def __call__(self) -> float:
    return self.now

  def start(self, stage, limit):
    self.limits[stage.name] = limit
    took = self.takes.get(stage.name, 0.0)
    self.now += min(took, limit)
    return None if took > limit else ''


def run(record, clock, *those):
  stages.run(those, record, 100.0, clock.start, say=lambda line: None, clock=clock)
  return record.read()['stages']


def test_a_stage_may_take_its_share_and_the_last_one_takes_what_the_others_leave(tmp_path):
  clock = Clock(a=30.0, b=5.0, c=1000.0)
  found = run(Record(tmp_path / 'r.json'), clock, Stage('a', 0.2), Stage('b', 0.5), Stage('c', 0.0))
  assert clock.limits == {'a': 20.0, 'b': 50.0, 'c': 75.0}
  assert list(found) == ['a', 'b', 'c']
  assert [one['status'] for one in found.values()] == ['stopped', 'done', 'stopped']
  assert found['a']['error'] == 'it was not done after 20 s' and 'error' not in found['b']


def test_no_stage_gets_more_than_what_is_left_and_none_begins_with_too_little(tmp_path):
  clock = Clock(a=60.0, b=37.0)
  found = run(Record(tmp_path / 'r.json'), clock, Stage('a', 0.6), Stage('b', 0.6), Stage('c', 0.0))
  assert clock.limits == {'a': 60.0, 'b': 40.0}
  assert found['c']['status'] == 'left out' and found['c']['error'] == '3 s are left of 100 s'


def test_a_stage_whose_package_is_missing_is_left_out_in_one_line(tmp_path):
  said = []
  stages.run([Stage('a', 0.5, needs=('no_such_package', 'json'))], Record(tmp_path / 'r.json'),
             100.0, Clock().start, say=said.append)
  assert said == ['a: left out: no_such_package is not installed']


def test_the_record_has_every_point_at_once_and_keeps_the_stages_of_earlier_calls(tmp_path):
  record = Record(tmp_path / 'r.json')
  record.about(minutes=12)
  run(record, Clock(), Stage('a', 0.5))
  record.begin('b')
  for i in range(3):
    record.add('b', name=f'{i}')
    assert len(json.loads(record.path.read_text())['stages']['b']['points']) == i + 1
  record.begin('b')
  assert record.read()['stages']['b']['points'] == [] and record.read()['minutes'] == 12
  assert record.read()['stages']['a']['status'] == 'done'
  assert not [path for path in tmp_path.iterdir() if path != record.path]


@pytest.mark.long
def test_a_stage_that_fails_or_hangs_keeps_its_points_and_the_next_one_begins(tmp_path):
  record = Record(tmp_path / 'r.json')
  writes = ('import sys; sys.path.insert(0, {!r}); from vdm_jax.benchmark.device.stages import '
            'Record; record = Record({!r}); record.add({!r}, x=1)\n{}')
  ends = {'hangs': 'import time; time.sleep(60)', 'breaks': 'import os; os.kill(os.getpid(), 9)',
          'fails': 'record.note("fails", error="its reason"); sys.exit(1)', 'ends': ''}
  command = lambda stage, seconds: [
      sys.executable, '-c', writes.format(str(ROOT), str(record.path), stage.name,
                                          ends[stage.name])]
  begun = time.monotonic()
  stages.run([Stage('hangs', 0.08), Stage('breaks', 0.0), Stage('fails', 0.0), Stage('ends', 0.0)],
             record, 100.0, stages.in_process(command), say=lambda line: None)
  assert time.monotonic() - begun < 60.0
  found = record.read()['stages']
  assert all(one['points'] == [{'x': 1}] for one in found.values())
  assert [(one['status'], one.get('error')) for one in found.values()] == [
      ('stopped', 'it was not done after 8 s'),
      ('failed', 'its process ended with exit status -9'), ('failed', 'its reason'),
      ('done', None)]


def test_the_stages_leave_a_fifth_of_the_time_to_the_last_and_come_in_the_order_of_the_page():
  all_stages = [stage for stage, _ in checks.STAGES]
  assert sum(stage.share for stage in all_stages) <= 0.8
  assert [stage.name for stage in all_stages if not stage.share] == [all_stages[-1].name]
  page = (ROOT / 'docs' / 'performance.md').read_text()
  places = [page.index(f'| `{stage.name}` |') for stage in all_stages]
  assert places == sorted(places)


@pytest.mark.parametrize('arguments,message', [
    (['--minutes=0'], '--minutes=0.0: it must be more than 0.'),
    (['--stages=train,speed'], '--stages=speed: there is no such stage; choose among machine,')])
def test_a_wrong_flag_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert program.main(arguments) == 2
  said = capsys.readouterr().err
  assert said.startswith(f'error: {message}') and said.count('\n') == 1
  assert not list(tmp_path.iterdir())


def test_an_interpreter_without_jax_is_refused_in_one_line(capsys, monkeypatch):
  monkeypatch.setattr(program, 'REQUIRED', ('json', 'no_such_package'))
  assert program.main([]) == 2
  assert capsys.readouterr().err == (
      f'error: {sys.executable} has no no_such_package; name another interpreter: PYTHON=... '
      'scripts/device_check.sh\n')


# -------------------------------------------------------------------- model


@pytest.mark.long
def test_the_model_of_the_check_is_the_model_of_the_config():
  file = ROOT / 'configs' / 'cifar10' / 'vdm.py'
  config = workdir.open_config(str(file))
  defaults = model.Size._field_defaults, model.Computed('float32')._asdict()
  assert all(config.model[name] == value for of in defaults for name, value in of.items())
  config.model.update(NETWORK._asdict())
  want = workdir.import_config(file).build(config)
  got = model.experiment(NETWORK, model.Computed('float32'), ema=config.ema.ema)
  assert jax.eval_shape(got.init, random.key(0)) == jax.eval_shape(want.init, random.key(0))
  assert got.ema == want.ema
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda u: jnp.asarray(rng.normal(0.0, 0.1, u.shape), jnp.float32),
                        jax.eval_shape(got.init, random.key(0)))
  params['schedule'] = {'w': jnp.array([18.3]), 'b': jnp.array([-13.3])}
  batch = {'image': rng.integers(0, 256, (2, 32, 32, 3), np.uint8)}
  context = Context(jnp.array([0.2, 0.7]), random.each(random.key(1), 2), jnp.int32(0), {}, None)
  a, b = (jax.jit(lambda params, e=e: e.loss(params, batch, context))(params)
          for e in (got, want))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  a, b = got.tx.init(params), want.tx.init(params)
  for _ in range(3):
    grads = jax.tree.map(lambda u: jnp.asarray(rng.normal(size=u.shape), jnp.float32), params)
    (x, a), (y, b) = got.tx.update(grads, a, params), want.tx.update(grads, b, params)
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-6, atol=1e-12), x, y)


@pytest.mark.long
def test_the_work_of_a_step_is_that_of_the_benchmark():
  from vdm_jax.benchmark import compiled, speed
  file = ROOT / 'configs' / 'cifar10' / 'vdm.py'
  config = workdir.open_config(str(file))
  config.model.groups = 4
  subject = speed.of_config(file, config, blocks=0, features=8, batch_size=4)
  assert model.step_flop_per_image(NETWORK) == pytest.approx(compiled.step_flop(subject) / 4,
                                                             rel=1e-6)


def test_a_prediction_is_that_of_the_same_step_in_the_tables():
  found = checks.predicted(128, model.Computed())
  assert found['predicted_in'] == 'docs/measured/compiled.json, cifar10/vdm, 128 images, h200'
  written = checks.predicted(128, model.Computed(scan=False, remat='none'))
  assert 0.01 < written['predicted_seconds'] < found['predicted_seconds'] < (
      found['predicted_summed_seconds']) < 0.2
  assert 0.2 < found['predicted_share_of_peak'] < 1.0
  assert checks.predicted(1024, model.Computed())['predicted_in'].endswith(
      'targets.json, cifar10/vdm on h200, jit')
  assert checks.predicted(128, model.Computed('float32')) == {}
  assert checks.predicted(96, model.Computed()) == {}


def test_the_outcomes_of_the_tests_are_read_from_the_report_of_pytest():
  report = ('<testsuites><testsuite><testcase name="a"/><testcase name="b"><failure message="x '
            '&#10;y"/></testcase><testcase name="c"><skipped message="none"/></testcase>'
            '<testcase name="d"><error message="z"/></testcase></testsuite></testsuites>')
  assert [tuple(case.values()) for case in checks.outcomes(report)] == [
      ('a', 'passed', ''), ('b', 'failed', 'x '), ('c', 'skipped', 'none'), ('d', 'failed', 'z')]


def test_states_that_differ_in_one_bit_differ():
  a = {'x': jnp.array([0.0, 1.0]), 'y': jnp.arange(3)}
  b = {**a, 'x': jnp.array([-0.0, 1.0])}
  assert checks.differing(checks.digests(a), checks.digests(dict(a)))['bit_for_bit']
  found = checks.differing(checks.digests(a), checks.digests(b))
  assert found['differ'] == ["['x']"] and found['arrays_that_differ'] == 1 and found['arrays'] == 2


# ------------------------------------------------------------------- images


def test_cifar_10_is_read_from_the_official_archive(tmp_path):
  rng, records = np.random.default_rng(0), {}
  (tmp_path / 'downloads').mkdir()
  with tarfile.open(tmp_path / 'downloads' / images.ARCHIVE, 'w:gz') as archive:
    for name in [*(f'data_batch_{i}.bin' for i in range(1, 6)), 'test_batch.bin']:
      records[name] = rng.integers(0, 256, (2, 3073), np.uint8)
      member = tarfile.TarInfo(f'cifar-10-batches-bin/{name}')
      member.size = records[name].nbytes
      archive.addfile(member, io.BytesIO(records[name].tobytes()))
  found = images.read(str(tmp_path))
  assert found.train.shape == (10, 32, 32, 3) and found.test.shape == (2, 32, 32, 3)
  # A record is a label and the planes red, green and blue, by rows.
  assert found.test[1, 3, 7, 2] == records['test_batch.bin'][1, 1 + 2 * 1024 + 3 * 32 + 7]
  assert found.train[2, 0, 1, 0] == records['data_batch_2.bin'][0, 1 + 1]
  assert found.source.startswith('CIFAR-10')


def test_a_folder_without_the_archive_is_refused(tmp_path):
  with pytest.raises(InputError, match='it has no cifar-10-binary.tar.gz') as error:
    images.read(str(tmp_path))
  assert error.value.field == 'data_dir'
  (tmp_path / images.ARCHIVE).write_bytes(b'no archive')
  with pytest.raises(InputError, match='cannot be read'):
    images.read(str(tmp_path))


@pytest.mark.first(1)
@pytest.mark.parametrize('without,source', [((), 'photographs'), (('sklearn',), 'random waves')])
def test_without_a_folder_the_images_are_others_and_their_source_says_so(
    without, source, monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, 'find_spec', lambda n: None if n in without else find(n))
  found = images.read()
  assert source in found.source and 'not CIFAR-10' in found.source
  for part in (found.train, found.test):
    assert part.shape[1:] == model.SHAPE and part.dtype == np.uint8 and len(part) >= 256
    assert len(np.unique(part[:16])) > 100
  epoch = len(found.train) // 100
  rows = list(itertools.islice(found.batches(100), epoch + 1))
  assert len(np.unique(np.concatenate([b['image'] for b in rows[:epoch]]), axis=0)) <= 100 * epoch
  again = next(found.batches(100))
  np.testing.assert_array_equal(again['image'], rows[0]['image'])
  assert not np.array_equal(rows[0]['image'], rows[epoch]['image'])


# ---------------------------------------------------------------- rehearsal


@pytest.mark.long
def test_nothing_of_the_check_needs_a_package_that_a_machine_on_loan_lacks(tmp_path):
  code = 'import vdm_jax.benchmark.device.checks, vdm_jax.train.checkpoint'
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=without(tmp_path),
                        capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def without(folder: Path) -> dict[str, str]:
  """The environment of a process in which the packages `ABSENT` cannot be imported."""
  for name in ABSENT:
    (folder / f'{name}.py').write_text(
        f'raise ModuleNotFoundError("No module named {name!r}", name={name!r})\n')
  return {**os.environ, 'PYTHONPATH': f'{folder}', 'JAX_PLATFORMS': 'cpu',
          'PYTHON': sys.executable}


@pytest.mark.long
def test_the_check_is_rehearsed_on_the_cpu_and_every_stage_is_done(tmp_path):
  (tmp_path / 'absent').mkdir()
  done = subprocess.run(
      [ROOT / 'scripts' / 'device_check.sh', '--tiny', '--minutes=60', '--out=check.json'],
      cwd=tmp_path, env=without(tmp_path / 'absent'), capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  record = json.loads((tmp_path / 'check.json').read_text())
  found = record['stages']
  assert list(found) == [stage.name for stage, _ in checks.STAGES]
  assert record['tiny'] and record['minutes'] == 60 and record['versions']['jax']
  assert all(one['status'] == 'done' and one['points'] for one in found.values())
  assert found['tests']['skipped'] == len(found['tests']['points']) > 0
  tiny = checks.TINY
  assert [(u['batch_size'], u['dtype']) for u in found['train']['points']] == [
      (size, how.dtype) for size, how in tiny.sweep]
  assert all(u['flop_per_second'] > 0 and u['seconds_per_step'] > 0
             for u in found['train']['points'])
  assert [u['precision'] for u in found['precision']['points']][:3] == [
      'float32', 'float32, products by default', 'bfloat16 trunk']
  for name in ('resume', 'deterministic'):
    assert found[f'{name}_begin']['points'][0]['bit_for_bit']
    assert found[f'{name}_end']['points'][0]['bit_for_bit']
    assert found[f'{name}_end']['points'][0]['resumed_at'] == tiny.resumed // 2
  assert found['training']['points'][-1].get('precision')
  steps = [u['step'] for u in found['training']['points'] if 'step' in u]
  assert steps == list(range(1, tiny.steps + 1))


def test_the_package_of_the_check_says_what_each_of_its_modules_is_for():
  folder = Path(device_lib.__file__).parent
  modules = {path.stem for path in folder.glob('*.py') if not path.stem.startswith('_')}
  assert all(f'  {name} ' in device_lib.__doc__ for name in modules)
