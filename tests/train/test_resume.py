"""A run that is killed and started again by the same command ends as one that was not: real
processes, on one device."""
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.support import commands
from vdm_jax.train import metrics

ROOT = Path(__file__).parents[2]
STEPS, EVERY, LOG = 240, 20, 10
COMMAND = [sys.executable, 'scripts/train.py', '--config=tests/support/tiny_config.py',
           f'--config.train.steps={STEPS}', f'--config.train.checkpoint_every={EVERY}',
           f'--config.train.log_every={LOG}', '--config.train.validate_every=40']


def start(directory):
  """The process, and where its output goes."""
  environment = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=1'}
  directory.parent.mkdir(exist_ok=True)
  with (directory.parent / 'output.txt').open('a') as out:
    return subprocess.Popen([*COMMAND, f'--workdir={directory}'], cwd=ROOT, env=environment,
                            stdout=out, stderr=subprocess.STDOUT)


def finish(directory):
  """Runs to the end: what it has printed, with that of the processes before it."""
  code = start(directory).wait()
  text = (directory.parent / 'output.txt').read_text()
  assert code == 0, text
  return text


def newest(directory):
  return max((int(p.name) for p in (directory / 'checkpoints').glob('*') if p.name.isdigit()),
             default=0)


def interrupt(directory, how, rng):
  """Starts, lets it come to a random checkpoint and a random moment after it, and ends it."""
  process = start(directory)
  target = newest(directory) + EVERY * rng.randint(1, 3)
  seen = [(time.monotonic(), newest(directory))]
  while newest(directory) < target:
    assert process.poll() is None, (directory.parent / 'output.txt').read_text()
    assert time.monotonic() - seen[0][0] < 300
    time.sleep(0.005)
    if newest(directory) > seen[-1][1]:
      seen.append((time.monotonic(), newest(directory)))
  between = seen[-1][0] - seen[-2][0] if len(seen) > 2 else 0.1
  time.sleep(rng.uniform(0.0, 1.5 * min(between, 1.0)))
  assert process.poll() is None, 'the run was over before it could be interrupted'
  process.send_signal(how)
  code = process.wait()
  print(f'interrupted with checkpoints up to {newest(directory)}, code {code}')
  return code


def assert_same(directory, whole):
  """Parameters, averages, optimiser and step, bit for bit."""
  state = commands.final_state(directory)
  assert int(state.step) == STEPS
  jax.tree.map(np.testing.assert_array_equal, state, commands.final_state(whole))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The run that nobody interrupts."""
  directory = tmp_path_factory.mktemp('whole') / 'run'
  finish(directory)
  return directory


KILL, TERM = signal.SIGKILL, signal.SIGTERM


@pytest.mark.parametrize('signals', [
    (KILL, TERM), pytest.param((KILL, KILL, TERM, KILL, TERM, KILL), marks=pytest.mark.long)],
    ids=['once each', 'many times'])
def test_an_interrupted_run_ends_bit_for_bit_as_one_that_was_not(whole, tmp_path, signals):
  """SIGKILL loses what came after a checkpoint; SIGTERM saves the step it is at."""
  seed = int(os.environ.get('KILL_SEED', time.time_ns() % 10**6))
  print(f'KILL_SEED={seed}')  # the moments of the signals; set it to repeat them
  rng, directory, interruptions, saved = random.Random(seed), tmp_path / 'run', 0, set()
  for how in signals:
    if newest(directory) + 4 * EVERY < STEPS:
      interruptions += 1
      assert interrupt(directory, how, rng) == (128 + TERM if how == TERM else -KILL)
      if how == TERM:
        saved.add(newest(directory))
  text = finish(directory)
  assert text.count('Resuming at step') == interruptions >= 2
  for step in saved:
    assert f'SIGTERM: saved step {step} and stopped;' in text
    assert f'Resuming at step {step} of {STEPS}.' in text
  assert_same(directory, whole)

  # No record is missing or twice; a SIGTERM cuts its window in two, all others are the same.
  train = [r['step'] for r in metrics.read(directory) if r['kind'] == 'train']
  assert train == sorted({*range(LOG, STEPS + 1, LOG)} | saved)
  cut = saved | {-(-step // LOG) * LOG for step in saved}
  rows = lambda directory: [
      {k: v for k, v in r.items() if k != 'steps_per_second'} for r in metrics.read(directory)
      if r['kind'] == 'validation' or r['step'] not in cut]
  assert rows(directory) == rows(whole)
