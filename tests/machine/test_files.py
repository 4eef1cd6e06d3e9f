"""Paths that users give: what works with them, and what is refused by the name of its flag."""
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdm_jax.errors import InputError
from vdm_jax.machine import files
from vdm_jax.train import step
from vdm_jax.train.checkpoint import Checkpoints


def checkpointed(directory) -> np.ndarray:
  """The weights that are read back from a new checkpoint in `directory`."""
  checkpoints = Checkpoints(directory)
  checkpoints.save(step.init({'a': jnp.arange(3.0)}, optax.sgd(1.0), {'ema': 0.9}))
  checkpoints.close()
  checkpoints = Checkpoints(directory, read_only=True)
  try:
    return checkpoints.restore_weights(0, 'ema')['a']
  finally:
    checkpoints.close()


def test_checkpoints_are_read_back_from_a_directory_of_any_name_that_is_not_refused(tmp_path):
  odd = 'a b%20#c {d} ü 日本 ] ! $x \'"& ~e'
  np.testing.assert_array_equal(checkpointed(tmp_path / odd / 'run'), [0.0, 1.0, 2.0])


@pytest.mark.parametrize('name', ['a[1]', 'a*', 'a?', 'a\\b', 'gs:'])
@pytest.mark.parametrize('below', ['', 'run'])
def test_a_directory_whose_checkpoints_could_not_be_read_is_refused(tmp_path, name, below):
  for make in (Checkpoints, lambda path: files.run_directory('workdir', path)):
    with pytest.raises(InputError, match='no checkpoint can be kept below .*choose or rename'):
      make(tmp_path / name / below)
  assert not list(tmp_path.iterdir())


def test_a_relative_directory_is_judged_by_where_it_is(tmp_path, monkeypatch):
  (tmp_path / 'a[1]').mkdir()
  (tmp_path / 'plain').mkdir()
  monkeypatch.chdir(tmp_path / 'plain')
  np.testing.assert_array_equal(checkpointed('run'), [0.0, 1.0, 2.0])
  assert (tmp_path / 'plain' / 'run' / 'checkpoints').is_dir()
  monkeypatch.chdir(tmp_path / 'a[1]')
  with pytest.raises(InputError, match='no checkpoint'):
    files.run_directory('workdir', 'run')


def test_a_tilde_is_the_home_directory_wherever_a_path_is_given(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  monkeypatch.chdir(tmp_path)
  for of in (files.user_path, files.run_directory):
    assert of('workdir', '~/runs/a') == tmp_path / 'home' / 'runs' / 'a'
    assert of('workdir', Path('a', '~')) == Path('a', '~')
  assert files.output('out', '~/a.png', '.png') == tmp_path / 'home' / 'a.png'
  checkpointed('~/run')
  assert (tmp_path / 'home' / 'run' / 'checkpoints').is_dir() and not (tmp_path / '~').exists()
  with pytest.raises(InputError, match=r"workdir='~nobody-here/a': there is no such home"):
    files.user_path('workdir', '~nobody-here/a')


@pytest.mark.parametrize('path,message', [
    ('', '--workdir=: it is empty; give a path (is a shell variable unset?).'),
    ('a\0b', '--workdir=a\0b: a path cannot have a zero byte; give another path.')])
def test_what_can_be_no_path_is_refused(path, message):
  for of in (files.user_path, files.run_directory):
    with pytest.raises(InputError) as error:
      of('workdir', path)
    assert error.value.as_flag() == message


def test_a_file_is_written_over_only_where_that_is_asked_for(tmp_path):
  file = tmp_path / 'a.png'
  assert files.output('out', file, '.png', '.npz') == file
  file.write_text('')
  with pytest.raises(InputError, match='it is there already; .* ask for `overwrite`'):
    files.output('out', file, '.png')
  assert files.output('out', file, '.png', overwrite=True) == file


def test_a_file_that_could_not_be_written_is_refused_before_anything_is_computed(tmp_path):
  (tmp_path / 'file').write_text('')
  (tmp_path / 'b.png').mkdir()
  for path, message in [(tmp_path / 'a.jpg', 'its name must end in .png or .npz'),
                        (tmp_path / 'b.png', 'it is a directory'),
                        (tmp_path / 'file' / 'c' / 'a.png', 'nothing can be written into')]:
    with pytest.raises(InputError, match=message):
      files.output('out', path, '.png', '.npz', overwrite=True)
  assert sorted(os.listdir(tmp_path)) == ['b.png', 'file']


def test_numbers_of_a_table_are_read_back_as_they_were(tmp_path):
  rng = np.random.default_rng(0)
  x = (rng.normal(size=(7, 2, 3)) * 10.0**rng.integers(-30, 30, (7, 2, 3))).astype(np.float32)
  y, n = rng.normal(size=7), np.array([0, -1, 2**31 - 1, 5, 6, 7, 8])
  files.save_csv(tmp_path / 'a.csv', x=x, y=y, n=n)
  header, *lines = (tmp_path / 'a.csv').read_text().splitlines()
  assert header == 'x_0_0,x_0_1,x_0_2,x_1_0,x_1_1,x_1_2,y,n' and len(lines) == 7
  rows = [line.split(',') for line in lines]
  np.testing.assert_array_equal(np.array([row[:6] for row in rows], np.float32), x.reshape(7, 6))
  assert [float(row[6]) for row in rows] == y.tolist()
  assert [int(row[7]) for row in rows] == n.tolist()
