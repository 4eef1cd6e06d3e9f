"""One run of a directory at a time."""
import json
import os
import socket
import subprocess
import sys

import pytest

from vdm_jax.errors import InputError
from vdm_jax.train import lock

HERE = socket.gethostname()


def gone():
  """The number of a process that is no more."""
  process = subprocess.Popen([sys.executable, '-c', ''])
  process.wait()
  return process.pid


def test_a_directory_is_one_runs_and_the_next_ones_when_it_is_over(tmp_path):
  with lock.exclusive(tmp_path):
    assert json.loads((tmp_path / 'lock').read_text()) == {'host': HERE, 'pid': os.getpid()}
    for _ in range(2):  # a refusal leaves the lock where it was
      with pytest.raises(InputError, match=f'^workdir=.*process {os.getpid()} trains') as refused:
        with lock.exclusive(tmp_path):
          pytest.fail('two runs in one directory')
    assert str(refused.value).count('\n') == 0
  assert (tmp_path / 'lock').read_text() == ''
  with lock.exclusive(tmp_path):
    pass


@pytest.mark.parametrize('left', [  # made of ids in the test: all workers collect the same
    lambda: '', lambda: 'half a li', lambda: json.dumps({'host': HERE, 'pid': gone()}),
    lambda: json.dumps({'host': HERE, 'pid': os.getpid()})],
    ids=['empty', 'half', 'of the dead', 'of this process'])
def test_what_a_dead_process_of_this_host_has_left_is_taken_over(tmp_path, left):
  """Its number may be another process's by now, this one's say: the kernel knows better."""
  (tmp_path / 'lock').write_text(left())
  with lock.exclusive(tmp_path):
    assert json.loads((tmp_path / 'lock').read_text())['pid'] == os.getpid()


def test_the_lock_of_another_host_is_kept_and_the_error_says_how_to_remove_it(tmp_path):
  text = json.dumps({'host': 'elsewhere', 'pid': 7})
  (tmp_path / 'lock').write_text(text)
  with pytest.raises(InputError, match=f'process 7 on elsewhere .* remove {tmp_path}/lock'):
    with lock.exclusive(tmp_path):
      pass
  assert (tmp_path / 'lock').read_text() == text


@pytest.mark.long
def test_a_process_that_is_killed_lets_go_of_its_directory(tmp_path):
  code = ('import sys, time; from vdm_jax.train import lock\n'
          'with lock.exclusive(sys.argv[1]): print("held", flush=True); time.sleep(600)')
  process = subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], stdout=subprocess.PIPE,
                             text=True)
  assert process.stdout.readline() == 'held\n'
  with pytest.raises(InputError, match=f'process {process.pid} trains'):
    with lock.exclusive(tmp_path):
      pass
  process.kill()
  process.wait()
  process.stdout.close()
  with lock.exclusive(tmp_path):
    assert json.loads((tmp_path / 'lock').read_text())['pid'] == os.getpid()
