"""Several processes load a run from a disk that shows some of them new files late.

The processes are threads.  Process 1 sees the run in a folder of its own.
"""
import itertools
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.support import threads, tiny_config
from vdm_jax.errors import InputError
from vdm_jax.machine import config_files, sharing
from vdm_jax.runs import workdir
from vdm_jax.train import step as step_lib
from vdm_jax.train.checkpoint import Checkpoints


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A run with the checkpoints 1, 2 and 3."""
  directory, config = tmp_path_factory.mktemp('made'), tiny_config.get_config()
  config.data.update(shape=(2,), levels=256)
  workdir.prepare(directory, config, Path(tiny_config.__file__))
  experiment = tiny_config.build(config)
  state = step_lib.init(experiment.init(jax.random.key(0)), experiment.tx, experiment.ema)
  checkpoints = Checkpoints(directory)
  for step in (1, 2, 3):
    params = jax.tree.map(lambda u, step=step: np.asarray(u) + step, state.params)
    checkpoints.save(jax.device_get(state.replace(step=np.int32(step), params=params)), 1.0)
  checkpoints.close()
  return directory


@pytest.fixture
def views(made, tmp_path, monkeypatch):
  """What process 0 sees of the run, and what process 1 sees: the checkpoints 1 and 2."""
  monkeypatch.setattr(sharing, '_PAUSE', 0.001)
  folders = [tmp_path / name for name in ('here', 'there')]
  for folder in folders:
    shutil.copytree(made, folder)
    shutil.rmtree(folder / 'checkpoints' / '3')
  return folders


def show(made, folder):
  """The checkpoint 3 appears in a folder."""
  shutil.copytree(made / 'checkpoints' / '3', folder / 'checkpoints' / '3')


def load(monkeypatch, views, **options):
  """What `load_trained` gives each process."""
  return threads.run(monkeypatch, *(
      lambda view=view: workdir.load_trained(view, average='raw', **options) for view in views))


def assert_refused(got, text):
  """All processes ended with this error."""
  assert [type(each) for each in got] == [InputError] * len(got), got
  assert [str(each) for each in got] == [text] * len(got)


def alone(function, process, error):
  """`function`, which fails in one process."""
  def call(*arguments, **named):
    if jax.process_index() == process:
      raise error
    return function(*arguments, **named)
  return call


@pytest.mark.parametrize('step', ['latest', 3])
def test_a_checkpoint_that_is_saved_meanwhile_is_waited_for(made, views, monkeypatch, step):
  expected = workdir.load_trained(made, average='raw').params
  choose, summary, looks = workdir._choose, sharing._summary, itertools.count(1)

  def save_and_choose(*arguments):
    show(made, views[0])
    return choose(*arguments)

  def look(where, *arguments):  # once at the run, once in vain, and then it is there
    if where == views[1] and next(looks) == 3:
      show(made, views[1])
    return summary(where, *arguments)
  monkeypatch.setattr(workdir, '_choose', save_and_choose)
  monkeypatch.setattr(sharing, '_summary', look)
  one, other = load(monkeypatch, views, step=step)
  assert one.step == other.step == 3 and next(looks) == 4
  jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
  jax.tree.map(np.testing.assert_array_equal, other.params, expected)


def test_a_step_that_process_0_does_not_see_is_refused_by_all(made, views, monkeypatch):
  choose = workdir._choose

  def save_and_choose(*arguments):
    show(made, views[1])
    return choose(*arguments)
  monkeypatch.setattr(workdir, '_choose', save_and_choose)
  assert_refused(load(monkeypatch, views, step=3),
                 'step=3: there is no such checkpoint; choose one of 1, 2, latest or best.')


@pytest.mark.parametrize('process', [0, 1])
def test_what_one_process_cannot_build_ends_all_with_its_error(views, monkeypatch, process):
  error = InputError('config.data.name', './photos', 'there is no such folder', 'mount it')
  monkeypatch.setattr(config_files, 'build', alone(config_files.build, process, error))
  assert_refused(load(monkeypatch, views), str(error))


@pytest.mark.parametrize('process', [0, 1])
def test_what_one_process_cannot_read_ends_all_with_what_process_0_can(
    views, monkeypatch, process):
  def broken(self, step, average, alone=False):
    out = restore(self, step, average, alone)  # which all call
    if jax.process_index() == process and step == 2:
      raise OSError('Stale file handle')
    return out
  restore = Checkpoints.restore_weights
  monkeypatch.setattr(Checkpoints, 'restore_weights', broken)
  assert_refused(load(monkeypatch, views),
                 'step=2: its checkpoint is corrupted (Stale file handle); choose 1.')


def test_a_damaged_checkpoint_is_refused_by_all(views, monkeypatch):
  for view in views:
    (view / 'checkpoints' / '2' / 'params' / 'manifest.ocdbt').write_bytes(b'')
  assert_refused(load(monkeypatch, views), 'step=2: its checkpoint is corrupted (its files do not '
                 'match their checksums); choose 1.')
