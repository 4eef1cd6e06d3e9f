"""Two real processes of two devices each, or four of one, on this machine, against one.

What is bit for bit: a checkpoint, whoever wrote it and whoever reads it; the rows of a batch; a run
that is interrupted and goes on with the devices it had.  What agrees to rounding: the same steps
on other numbers of devices, where sums over the batch are taken in another order.
"""
import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from tests.support import commands, five_steps, sgd_config, sgd_students_config
from vdm_jax import runs
from vdm_jax.train import loop, metrics
from vdm_jax.train.checkpoint import Checkpoints

CONFIG = commands.ROOT / 'tests' / 'support' / 'sgd_config.py'
LAYOUTS = list(loop.LAYOUTS)


def assert_same_bits(one, other):
  for u, v in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    u, v = np.asarray(u), np.asarray(v)
    assert u.dtype == v.dtype and u.shape == v.shape and u.tobytes() == v.tobytes()


def assert_close(one, other):
  jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=2e-5, atol=2e-6), one, other)


def arrays(path, like):
  """(the state in the structure of `like`, what was saved by name)."""
  with np.load(path) as file:
    leaves, tree = jax.tree.flatten(like)
    state = jax.tree.unflatten(tree, [file[f'arr_{i}'] for i in range(len(leaves))])
    return state, {name: file[name] for name in file if not name.startswith('arr_')}


@pytest.fixture(scope='module')
def experiment():
  return sgd_config.build(sgd_config.get_config())


@pytest.fixture(scope='module')
def start(experiment):
  return five_steps.initial(experiment)


@pytest.fixture(scope='module', params=[2, 4])
def count(request):
  """The number of processes."""
  return request.param


@pytest.fixture(scope='module')
def by_several(experiment, start, count, tmp_path_factory):
  """What several processes make of `start`, and of a checkpoint that one device wrote of it."""
  directory = tmp_path_factory.mktemp('steps')
  np.savez(directory / 'start.npz', *jax.tree.leaves(start))
  checkpoints = Checkpoints(directory / 'run')
  checkpoints.save(jax.device_put(start.replace(step=np.int32(7)), jax.devices()[0]))
  checkpoints.close()
  commands.succeed('tests/support/five_steps.py', directory, count=count, devices=4 // count)
  return directory


@pytest.fixture(scope='module')
def by_one(experiment, start):
  layout = five_steps.make_layout(experiment, 'jit', jax.devices()[:1])
  return five_steps.trained(experiment, start, layout)


@pytest.mark.long
@pytest.mark.parametrize('name', LAYOUTS)
def test_several_processes_make_the_steps_of_one_device_to_rounding(
    by_several, by_one, start, count, name):
  expected, values, _ = by_one
  for process in range(count):
    state, found = arrays(by_several / f'{name}_{process}.npz', start)
    assert int(state.step) == five_steps.STEPS
    assert_close(state, expected)
    assert found.keys() == values.keys()
    for key, value in values.items():
      np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-6, err_msg=key)
  moved = jax.tree.map(lambda u, v: np.abs(u - v).max(), expected.params, start.params)
  assert moved['net']['dense_out']['kernel'] > 1e-4  # there is something to agree on


@pytest.mark.long
def test_each_process_reads_its_own_rows_alone_and_together_they_are_the_batch(
    by_several, by_one, count):
  rows = [np.load(by_several / f'rows_{process}.npz')['rows'] for process in range(count)]
  assert [u.shape for u in rows] == [(five_steps.STEPS, 8 // count, 2)] * count
  np.testing.assert_array_equal(np.concatenate(rows, axis=1), by_one[2])


@pytest.mark.long
@pytest.mark.parametrize('name', LAYOUTS)
def test_a_checkpoint_of_one_device_is_restored_bit_for_bit_by_several_processes(
    by_several, start, count, name):
  for process in range(count):
    state, about = arrays(by_several / f'restored_{name}_{process}.npz', start)
    assert_same_bits(state, start.replace(step=np.int32(7)))
    # kernel [3, 8192] and its transpose's; the parameters and two averages of each
    assert about['sharded'] >= (3 if name == 'fsdp' else 0)


# ---------------------------------------------------------------------- whole runs

EVERY = 10


def command(directory, steps, *more):
  return ('scripts/train.py', f'--config={CONFIG}', f'--workdir={directory}',
          f'--config.train.steps={steps}', f'--config.train.checkpoint_every={EVERY}',
          '--config.train.validate_every=20', *more)


def train_here(directory, steps):
  """By the four devices of this process."""
  config = sgd_config.get_config()
  config.train.update(steps=steps, checkpoint_every=EVERY, validate_every=20)
  runs.train(config, CONFIG, directory)


def records(directory, *kinds):
  return [r for r in metrics.read(directory) if r['kind'] in kinds]


@pytest.mark.long
def test_sigterm_to_one_of_two_saves_on_both_and_the_loss_of_one_ends_the_other_with_a_line(
    tmp_path, capfd):
  """And each time the run goes on, at last on four devices of one process."""
  directory, whole = tmp_path / 'run', tmp_path / 'whole'
  endless = command(directory, 10_000, '--config.train.layout=fsdp')
  running = commands.start(*endless)
  commands.wait_for(lambda: commands.newest(directory) >= EVERY, running)
  commands.interrupt(running, 1, signal.SIGTERM)
  begin = time.monotonic()
  (code, out, err), (code_1, out_1, err_1) = commands.finish(running)
  assert (code, code_1) == (143, 143), (err, err_1)
  assert time.monotonic() - begin < 60  # and not when its 10,000 steps are made
  stopped = commands.newest(directory)
  assert f'SIGTERM: saved step {stopped} and stopped;' in err
  assert not out_1 and not err_1.strip()  # process 0 alone speaks
  assert 'Gloo' not in out

  running = commands.start(*endless)
  goal = (stopped // EVERY + 2) * EVERY
  commands.wait_for(lambda: commands.newest(directory) >= goal, running)
  commands.interrupt(running, 0, signal.SIGKILL)
  begin = time.monotonic()
  (code, out, _), (code_1, out_1, err_1) = commands.finish(running)
  assert time.monotonic() - begin < 60
  assert f'Resuming at step {stopped}' in out
  assert code == -signal.SIGKILL and code_1 != 0 and not out_1
  assert err_1.strip().count('\n') == 0, err_1
  assert 'process 0 of this run was lost' in err_1 and 'same command' in err_1

  saved = commands.newest(directory)
  end = saved + 2 * EVERY
  train_here(directory, end)
  train_here(whole, end)
  assert f'Resuming at step {saved}' in capfd.readouterr().out
  assert_close(commands.final_state(directory), commands.final_state(whole))
  # Nothing is missing, and nothing is there twice.
  assert [r['step'] for r in records(directory, 'train') if r['step'] != stopped] == [
      step for step in range(5, end + 1, 5) if step != stopped]
  assert {r['step'] for r in records(directory, 'validation')} >= {*range(20, end + 1, 20)}


@pytest.mark.long
def test_sigterm_to_one_of_two_costs_no_bit(tmp_path):
  """On the same devices, the run that stopped and went on is the run that did not stop."""
  end, states = 60, []
  for layout in LAYOUTS:
    directory, whole = tmp_path / layout, tmp_path / f'{layout}_whole'
    more = f'--config.train.layout={layout}'
    running = commands.start(*command(directory, end, more))
    commands.wait_for(lambda at=directory: commands.newest(at) >= EVERY, running)
    commands.interrupt(running, 0 if layout == 'jit' else 1, signal.SIGTERM)
    assert [code for code, _, _ in commands.finish(running)] == [143, 143]
    stopped = commands.newest(directory)
    assert EVERY < stopped < end
    assert f'Resuming at step {stopped}' in commands.succeed(*command(directory, end, more))
    commands.succeed(*command(whole, end, more))
    states.append(commands.final_state(directory))
    assert_same_bits(states[-1], commands.final_state(whole))
    values = lambda directory: [{k: v for k, v in r.items() if k != 'steps_per_second'}
                                for r in records(directory, 'validation')]
    assert values(directory) == values(whole)
  for state in states[1:]:
    assert_close(state, states[0])


@pytest.mark.long
def test_a_run_goes_on_from_one_device_to_four_to_two_processes_and_all_of_them_measure_the_same(
    tmp_path):
  """Any layout takes up what any other has left; to rounding, the run of one device alone."""
  directory, alone, end = tmp_path / 'run', tmp_path / 'alone', 40
  one = commands.start(*command(alone, end), count=1, devices=1)
  commands.succeed(*command(directory, 10, '--config.train.layout=pmap'), count=1, devices=1)
  for to, layout, options in ((20, 'fsdp', {'count': 1, 'devices': 4}), (30, 'pmap', {}),
                              (end, 'fsdp', {'slurm': True})):
    out = commands.succeed(*command(directory, to, f'--config.train.layout={layout}'), **options)
    assert f'Resuming at step {to - 10} of {to}' in out
  assert commands.finish(one)[0][0] == 0
  assert_close(commands.final_state(directory), commands.final_state(alone))
  assert (directory / 'config.json').exists()
  assert len(list((directory / 'tensorboard').iterdir())) == 4  # one a start, not one a process

  # Of the same weights: what they measure, and what they draw.
  shutil.copytree(directory, tmp_path / 'by_two')
  found = {}
  for name, count in (('run', 1), ('by_two', 2)):
    place = tmp_path / name
    out = commands.succeed('scripts/evaluate.py', f'--workdir={place}', '--examples=100',
                            '--times=4', '--repeats=2', count=count)
    assert out.count('bits/dim') == 1  # printed once
    commands.succeed('scripts/sample.py', f'--workdir={place}', f'--out={place}/samples.npz',
                      '--count=11', '--steps=5', '--batch_size=4', f'--trace={place}/trace.png',
                      count=count)
    with np.load(place / 'samples.npz') as samples, np.load(
        place / 'bits_100_examples.npz') as bits:
      ledger = json.loads((place / 'ledger_100_examples.json').read_text())
      for row in ledger['rows']:
        del row['seconds'], row['images_per_second']
      bits = {key: value for key, value in bits.items() if value.dtype.kind == 'f'}
      found[name] = samples['images'], bits, ledger, (place / 'trace.png').read_bytes()
  images, bits, ledger, picture = found['run']
  images_2, bits_2, ledger_2, picture_2 = found['by_two']
  assert images.shape == (11, 2)
  np.testing.assert_array_equal(images_2, images)
  assert picture_2 == picture
  assert bits_2.keys() == bits.keys()
  jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-5, atol=1e-5), bits_2, bits)
  assert ledger_2['dataset'] == ledger['dataset'] and ledger_2['checkpoint']['step'] == end
  np.testing.assert_allclose(ledger_2['rows'][0]['bits_per_dim'], ledger['rows'][0]['bits_per_dim'],
                             rtol=1e-6)


@pytest.mark.long
def test_two_processes_distil_the_student_that_one_distils(tmp_path):
  """From a teacher that one process trained, over a change of the phase at step 10."""
  file, of = sgd_students_config.__file__, sgd_students_config.get_config
  teacher = tmp_path / 'teacher'
  runs.train(of('teacher'), file, teacher)
  commands.succeed('scripts/train.py', f'--config={file}:progressive', f'--init_from={teacher}',
                   f'--workdir={tmp_path}/two', '--config.train.steps=20')
  config = of('progressive')
  config.train.steps = 20
  runs.train(config, file, tmp_path / 'one', init_from=teacher)
  two, one = commands.final_state(tmp_path / 'two'), commands.final_state(tmp_path / 'one')
  assert int(two.step) == 20
  assert_close(two, one)
  begun = commands.final_state(teacher).params
  moved = jax.tree.map(lambda u, v: np.abs(u - v).max(), two.params, begun)
  assert max(jax.tree.leaves(moved)) > 1e-4  # there is something to agree on
