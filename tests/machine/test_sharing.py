"""Processes wait until a shared disk shows all of them the same files.

Here this process is process 0, and process 1 sees another folder.
"""
import shutil

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from vdm_jax.errors import InputError
from vdm_jax.machine import sharing
from vdm_jax.runs import workdir
from vdm_jax.train.checkpoint import finished_files


def below(folder):
  return [path for path in folder.rglob('*') if path.is_file()]


@pytest.fixture
def folders(tmp_path, monkeypatch):
  """What process 0 sees, and what process 1 sees of it."""
  here, there = tmp_path / 'here', tmp_path / 'there'
  shutil.copytree(run(here), there)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(multihost_utils, 'process_allgather', lambda summary: np.stack(
      [summary, sharing._summary(there, below(there), False)]))
  return here, there


def run(folder):
  """A folder with the files of a run, with a checkpoint that is being written."""
  for name, content in (('config.json', b'{}'), ('config/net.py', b''), ('metrics.jsonl', b'1'),
                        ('checkpoints/10/params/d/f0', bytes(2**17)),
                        ('checkpoints/20.orbax-checkpoint-tmp/params/d/f1', b'2')):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
  return folder


def no_pause(monkeypatch, then=lambda: None):
  """Looks follow each other at once; `then` is called between them.  Returns their number."""
  pauses = []
  monkeypatch.setattr(sharing.time, 'sleep', lambda seconds: (pauses.append(seconds), then()))
  return pauses


def test_what_is_seen_alike_is_looked_at_once(folders, monkeypatch):
  pauses = no_pause(monkeypatch)
  sharing.see_alike('workdir', folders[0], lambda: below(folders[0]))
  assert not pauses


def test_a_file_that_appears_late_is_waited_for(folders, monkeypatch):
  here, there = folders
  (here / 'checkpoints' / '10' / 'metrics').write_text('{}')

  def appear():
    if len(pauses) == 3:
      shutil.copy(here / 'checkpoints' / '10' / 'metrics', there / 'checkpoints' / '10')
  pauses = no_pause(monkeypatch, appear)
  sharing.see_alike('workdir', here, lambda: below(here))
  assert len(pauses) == 3


@pytest.mark.parametrize('change', [
    lambda here: (here / 'config.json').write_text('[]'),  # as long as before
    lambda here: (here / 'checkpoints/10/params/d/f0').write_bytes(bytes(2**17 + 1)),
    lambda here: (here / 'checkpoints/10/params/d/f0').write_bytes(bytes(2**17 - 1) + b'1'),
    lambda here: (here / 'config.json').unlink(),
    lambda here: (here / 'merges.txt').touch()], ids=['content', 'size', 'byte', 'gone', 'new'])
def test_a_disk_that_is_not_shared_is_an_error_after_some_time(folders, monkeypatch, change):
  here, _ = folders
  change(here)
  monkeypatch.setattr(sharing, 'PATIENCE', 0.2)
  with pytest.raises(InputError, match='^workdir=.*process 1 sees other files') as error:
    sharing.see_alike('workdir', here, lambda: below(here))
  assert f'(5 and {len(below(here))} files); give all processes the same' in str(error.value)


@pytest.mark.parametrize('value', [0, 1])
def test_large_samples_that_are_drawn_anew_differ_also_where_only_one_value_does(
    folders, monkeypatch, value):
  """Though both files have the same size."""
  images = np.zeros(5_000_000, np.uint8)
  np.savez(folders[1] / 'samples.npz', images=images)
  images[290_000] = value  # between the first two blocks that are compared
  np.savez(folders[0] / 'samples.npz', images=images)
  monkeypatch.setattr(sharing, 'PATIENCE', 0.2)
  look = lambda: sharing.see_alike('out', folders[0], lambda: below(folders[0]))
  if value:
    with pytest.raises(InputError, match='sees other files'):
      look()
  else:
    look()


def test_large_files_are_compared_in_all_their_length(folders, monkeypatch):
  size = 2**23
  (folders[1] / 'f1').write_bytes(bytes(size))
  no_pause(monkeypatch)
  monkeypatch.setattr(sharing, 'PATIENCE', 0.01)
  for part in range(8):  # which alone is another
    new = bytearray(size)
    new[part * 2**20:(part + 1) * 2**20] = bytes([1]) * 2**20
    (folders[0] / 'f1').write_bytes(new)
    with pytest.raises(InputError, match='sees other files'):
      sharing.see_alike('out', folders[0], lambda: below(folders[0]))


def test_one_process_looks_at_nothing():
  sharing.see_alike('workdir', 'nowhere', lambda: pytest.fail('it has looked'))


def test_of_a_run_the_config_and_the_finished_checkpoints_count(tmp_path):
  """Not what a training may write at that moment."""
  folder = run(tmp_path)
  read = {str(path.relative_to(folder)) for path in workdir._read_by_all(folder, ())}
  assert read == {'config.json', 'config.py', 'merges.txt', 'config/net.py',
                  'checkpoints/10/params/d/f0'}
  assert [path.name for path in finished_files(folder / 'checkpoints')] == ['f0']
  assert not list(finished_files(folder / 'nothing'))
