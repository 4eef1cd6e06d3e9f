"""A command as several real processes on this machine, two simulated devices each."""
import concurrent.futures
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax

from vdm_jax.runs import workdir
from vdm_jax.train import step as step_lib
from vdm_jax.train.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]
_readers = concurrent.futures.ThreadPoolExecutor(16)


class Running(NamedTuple):
  process: subprocess.Popen
  output: concurrent.futures.Future  # (stdout, stderr), when nobody writes there any more


def free_port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def start(*command, count=2, devices=2, slurm=False, late=None, seconds=0.0):
  """`python *command` by `count` processes: a `Running` for each.

  slurm: they are not told of each other by flags, but find themselves in variables as of SLURM.
  late: the number of a process that starts `seconds` after the others.
  """
  port, running = free_port(), {}
  for i in sorted(range(count), key=lambda i: i == late):
    if i == late:
      time.sleep(seconds)
    environment = {**os.environ, 'PYTHONPATH': f'{ROOT}',
                   # Quick to compile: a process that waits half a minute for another gives it up.
                   'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} '
                                '--xla_backend_optimization_level=0'}
    flags = []
    if slurm:
      environment |= {
          'SLURM_JOB_ID': '1', 'SLURM_STEP_NODELIST': '127.0.0.1', 'SLURM_NTASKS': f'{count}',
          'SLURM_STEP_NUM_TASKS': f'{count}', 'SLURM_PROCID': f'{i}', 'SLURM_LOCALID': f'{i}',
          'JAX_COORDINATOR_PORT': f'{port}'}
    elif count > 1:
      flags = [f'--coordinator=127.0.0.1:{port}', f'--num_processes={count}', f'--process_id={i}']
    process = subprocess.Popen([sys.executable, *map(str, command), *flags], cwd=ROOT,
                               env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    running[i] = Running(process, _readers.submit(process.communicate))
  return [running[i] for i in range(count)]


def finish(running, seconds=240):
  """[(exit code, stdout, stderr)] of each process; none outlives this call."""
  try:
    texts = [each.output.result(seconds) for each in running]
    return [(each.process.returncode, *text) for each, text in zip(running, texts, strict=True)]
  finally:
    for each in running:
      if each.process.poll() is None:
        each.process.kill()


def succeed(*command, **options):
  """Runs to the end; the output of process 0."""
  done = finish(start(*command, **options))
  assert all(code == 0 for code, _, _ in done), done
  return done[0][1] + done[0][2]


def newest(directory):
  return max((int(p.name) for p in (directory / 'checkpoints').glob('*') if p.name.isdigit()),
             default=0)


def wait_for(found, running, seconds=240):
  """Until found() is true, while all processes run."""
  deadline = time.monotonic() + seconds
  while not found():
    dead = [each for each in running if each.process.poll() is not None]
    if dead or time.monotonic() > deadline:
      for each in running:
        each.process.kill()
      raise AssertionError(finish(running))
    time.sleep(0.005)


def interrupt(running, which, how=signal.SIGTERM):
  """Sends a signal to one of them."""
  assert running[which].process.poll() is None
  running[which].process.send_signal(how)


def final_state(directory):
  """The state of the newest checkpoint of a run, as numpy."""
  experiment = workdir.load_trained(directory).experiment
  like = jax.eval_shape(lambda key: step_lib.init(experiment.init(key), experiment.tx,
                                                  experiment.ema, experiment.aux),
                        jax.random.key(0))
  checkpoints = Checkpoints(directory, read_only=True)
  restored = checkpoints.restore(like)
  checkpoints.close()
  return restored.state
