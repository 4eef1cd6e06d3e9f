"""How a command ends from outside: real processes, which cost no JAX."""
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


# As a terminal starts a program, however these tests were started.
HEEDING = """
import signal
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
  signal.signal(number, signal.SIG_DFL)
"""


def python(code, **options):
  return subprocess.Popen([sys.executable, '-c', HEEDING + code], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def ended(process, *numbers, pause=0.3):
  """(code, stderr, seconds) of a process that gets these signals once it has printed a line."""
  assert process.stdout.readline() == 'ready\n'
  begin = time.monotonic()
  for number in numbers:
    process.send_signal(number)
    time.sleep(pause)
  _, err = process.communicate(timeout=60)
  return process.returncode, err, time.monotonic() - begin


@pytest.mark.first(4)
@pytest.mark.parametrize('number', SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize('busy', ['time.sleep(60)', 'blocked()'], ids=['in Python', 'in C'])
def test_a_signal_ends_a_command_with_one_line_wherever_it_is(number, busy):
  """In C for a second at most, though Python itself would hear nothing for a minute."""
  code, err, seconds = ended(python(f"""
import ctypes, signal, time
from vdm_jax.machine import signals
def blocked():  # for ever, and no signal wakes it
  mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
  libc.pthread_mutex_lock(mutex)
  libc.pthread_mutex_lock(mutex)
with signals.ending('Half is kept.'):
  print('ready', flush=True)
  {busy}
"""), number)
  name = 'Ctrl-C' if number == signal.SIGINT else number.name
  assert (code, err.strip()) == (128 + number, f'{name}: stopped.  Half is kept.')
  assert seconds < 10


CAUGHT = """
import ctypes, time
from vdm_jax.machine import signals
with signals.caught('saving.') as asked:
  print('ready', flush=True)
  {busy}
print(asked())
"""


def test_a_second_ctrl_c_ends_a_training_at_once_and_the_first_is_answered():
  wait = 'while True: time.sleep(0.01)'
  code, err, _ = ended(python(CAUGHT.format(busy=wait)), signal.SIGINT, signal.SIGINT)
  assert code == 130
  assert err.split('\n') == ['', 'Ctrl-C: saving.', '', 'Ctrl-C again: ended at once.', '']


def test_a_terminal_that_closes_may_say_so_twice():
  """The kernel tells the group and the shell its jobs: only Ctrl-C is impatient."""
  wait = 'begin = time.monotonic()\n  while time.monotonic() < begin + 1.0: time.sleep(0.01)'
  code, err, _ = ended(python(CAUGHT.format(busy=wait)), signal.SIGHUP, signal.SIGHUP, pause=0.1)
  assert (code, err.strip()) == (0, 'SIGHUP: saving.')


def test_what_nohup_ignores_stays_ignored():
  process = subprocess.Popen([sys.executable, '-c', """
import os, signal
from vdm_jax.machine import signals
signal.signal(signal.SIGHUP, signal.SIG_IGN)
for context in (signals.caught(), signals.ending('')):
  with context:
    os.kill(os.getpid(), signal.SIGHUP)
"""], cwd=ROOT)
  assert process.wait(60) == 0
