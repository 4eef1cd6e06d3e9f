"""Several processes as one program: how they find each other, and how they end.

Each process of a run computes on its own devices, and XLA's collectives join the processes.  JAX's
coordination service, in process 0, connects the processes and counts their heartbeats.  All
processes must make the same calls in the same order, so none can continue without the others.  When
one process is lost, the others end too, with one line that says so.  Then the user starts all of
them again.

Only process 0 prints.  The other processes print only the error that ends them.
"""
import collections
import contextlib
import os
import re
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator

import jax
import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.machine import devices, output, signals
from vdm_jax.machine.signals import leave

__all__ = ['AHEAD', 'HEARTBEAT', 'QUIET', 'fail', 'require_alone', 'start', 'stopping']

HEARTBEAT = 30  # seconds without one after which a process is lost
QUIET = 5  # seconds of waiting for the others after which a process says so
AHEAD = 2  # calls of `stopping` that wait for no answer yet
_listener = None  # runs _INTERPRETER
_ADVICE = ('start all processes again with the same command; a training goes on from its last '
           'checkpoint.')
_LOST = f'error: a process of this run was lost, and the others cannot go on without it: {_ADVICE}'
_APART = ('error: the processes did not all meet at {address} within 5 minutes: start every one of '
          'them, with the same --coordinator and --num_processes and a --process_id of its own.')

# XLA ends a process that has lost another from C++, with pages: nothing in that process can say it
# in a line.  This does, in a process of its own that reads what C++ writes.
_INTERPRETER = r'''
import re, signal, sys
for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
  signal.signal(each, signal.SIG_IGN)  # it ends when there is no more to read
lost, apart = sys.argv[1:]
held, told = b'', False

def tell():
  if b'RegisterTask' in held:
    print(apart, file=sys.stderr)
  elif b'JAX distributed service' in held or b'heartbeats' in held:
    who = re.search(rb'heartbeats\):\s+(\d+)', held)
    who = who[1].decode() if who else '0' if b'leader' in held else ''
    print(lost.replace('a process', f'process {who}', 1) if who else lost, file=sys.stderr)
  else:
    sys.stderr.buffer.write(held)
  sys.stderr.flush()

for line in sys.stdin.buffer:
  if told:
    pass
  elif held or re.search(rb'coordination_service|preemption_sync|JAX distributed service', line):
    held += line  # the end of the process, or its beginning
    told = b'stack trace' in line
    if told:
      tell()
  elif not re.search(rb'\[Gloo\]|connected peer ranks', line):  # a greeting
    sys.stderr.buffer.write(line)
    sys.stderr.flush()
if not told:
  tell()
'''


def start(coordinator: str | None = None, num_processes: int | None = None,
          process_id: int | None = None) -> None:
  """Joins the other processes of this run, if there are any.  Call it before any use of a device.

  coordinator: HOST:PORT of process 0, with a free port.

  Give all three arguments, or none.  Without arguments, the environment tells JAX about the other
  processes (on a TPU slice, SLURM, Open MPI or Kubernetes).  With num_processes = 1 alone, there
  are no other processes, whatever the environment says.

  Raises InputError.
  """
  arguments = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
  missing = [name for name, value in arguments.items() if value is None]
  if missing == ['coordinator', 'process_id'] and num_processes == 1:
    return
  if 0 < len(missing) < 3:
    raise InputError(missing[0], None, 'it is missing',
                     'several processes need coordinator, num_processes and process_id: give all '
                     'three')
  if missing and _one_task_of_slurm():
    return
  if not missing:
    if not re.fullmatch(r'\S+:\d+', coordinator):
      raise InputError('coordinator', coordinator, 'it is not an address',
                       'give HOST:PORT of process 0')
    if not 0 <= process_id < num_processes:
      raise InputError('process_id', process_id,
                       f'with num_processes={num_processes} the numbers are 0 .. '
                       f'{num_processes - 1}',
                       'give one of these')
    _interpret(coordinator, first=process_id == 0)
  jax.config.update('jax_enable_preemption_service', False)  # it would take SIGTERM for itself
  waiting = threading.Timer(QUIET, signals.say, [
      f'Waiting for the other processes ({coordinator or "found in the environment"}), up to 5 '
      'minutes.'])
  waiting.daemon = True
  if not process_id:
    waiting.start()
  try:
    # What no flag says is asked of the environment, but not which devices are whose.
    jax.distributed.initialize(
        coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT,
        cluster_detection_method=None if missing else 'deactivate')
  except ValueError as error:
    if missing and 'coordinator_address' in str(error):
      return  # nothing was found: one process
    raise InputError(problem=f'{error}  This was found in the environment',
                     remedy='give coordinator, num_processes and process_id, or num_processes=1 '
                     'for one process') from None
  except RuntimeError as error:
    if missing:
      raise InputError(problem=f'{str(error).partition(chr(10))[0]}  This was found in the '
                       'environment', remedy='for one process give num_processes=1') from None
    raise InputError('coordinator', coordinator,
                     'process 0 cannot listen there: is the port taken?',
                     'choose another') from None
  finally:
    waiting.cancel()
  if missing and jax.process_count() > 1:
    _interpret('the coordinator', first=jax.process_index() == 0)
  if jax.process_index() > 0:
    sys.stdout = open(os.devnull, 'w')


def require_alone(coordinator: str | None = None, num_processes: int | None = None,
                  process_id: int | None = None) -> None:
  """Raises InputError if this process was started as one of several.

  The arguments are those of `start`.  With num_processes = 1 alone, nobody asks the environment.
  """
  arguments = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
  given = {name: value for name, value in arguments.items() if value is not None}
  if given == {'num_processes': 1}:
    return
  for name, value in given.items():
    raise InputError(name, value, 'this command runs in one process only',
                     'leave it out, and start the command once')
  for launcher, name in (('srun', 'SLURM_STEP_NUM_TASKS'), ('mpirun', 'OMPI_COMM_WORLD_SIZE')):
    if (count := os.environ.get(name, '1')) != '1':
      raise InputError(problem=f'this command runs in one process only, and {launcher} has started '
                       f'{count} processes', remedy='start it once, or give num_processes=1 if '
                       'each process has files of its own')


def _one_task_of_slurm() -> bool:
  """Whether this is a SLURM step of one task, such as an interactive shell, and so no cluster.

  JAX would give the step one device of its host.  In a shell, JAX would wait for the tasks of the
  whole job.
  """
  env = os.environ
  tasks = env.get('SLURM_STEP_NUM_TASKS', env.get('SLURM_NTASKS'))
  return 'SLURM_JOB_ID' in env and tasks == '1' and 'OMPI_COMM_WORLD_SIZE' not in env


def _interpret(address: str, first: bool) -> None:
  """Sends all further lines of C++ through _INTERPRETER; lines of Python stay as they are."""
  global _listener
  lost = '\n' * first + _LOST  # below the progress bar
  _listener = subprocess.Popen([sys.executable, '-I', '-S', '-c', _INTERPRETER, lost,
                                _APART.format(address=address)], stdin=subprocess.PIPE, stdout=2)
  for name in ('stdout', 'stderr'):
    stream = getattr(sys, name)
    stream.flush()
    number = stream.fileno()
    again = output.lasting(stream, os.dup(number))
    again.reconfigure(line_buffering=True)
    setattr(sys, name, again)
    os.dup2(_listener.stdin.fileno(), number)
  _listener.stdin.close()


def fail(error: BaseException) -> None:
  """Ends this process at an error if it is one of several; otherwise does nothing."""
  if not jax.distributed.is_initialized():
    return
  if _is_of_a_peer(error):
    os.write(2, f'JAX distributed service: {error}\n*** no stack trace\n'.encode())
  else:
    traceback.print_exception(error)
  leave(1)


def _is_of_a_peer(error: BaseException | None) -> bool:
  """Whether a collective or a barrier failed because another process was not there."""
  failed = isinstance(error, jax.errors.JaxRuntimeError) and re.search(
      'Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|CANCELLED|Connection (closed|reset)', str(error))
  return bool(failed) or error is not None and (
      _is_of_a_peer(error.__cause__) or _is_of_a_peer(error.__context__))


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[], int]]:
  """A function that returns the number of a stopping signal of any process, or 0 before a signal.

  All processes must call the function equally often.  Its value changes at the same call on all
  processes; with several processes, two calls late.  Ctrl-C, SIGTERM and SIGHUP count; see
  `signals.caught`.
  """
  reply = 'stops when what is under way is done, and saves; Ctrl-C (again) ends it at once.'
  with signals.caught(reply if jax.process_index() == 0 else '') as received:
    yield received if jax.process_count() == 1 else _of_any(received)


def _of_any(received: Callable[[], int]) -> Callable[[], int]:
  """The maximum of `received` over all processes, which is read only `AHEAD` calls later.

  The maximum is queued behind the step, so nobody waits for it.  JAX's own protocol
  (`reached_preemption_sync_point`) takes the largest step that any process has named.  But Orbax's
  writer names old steps, so a process can be past the step that the protocol chooses.
  """
  largest = devices.over_rows(lambda _, numbers: numbers.max())
  pending = collections.deque()

  def agreed():
    numbers = np.full(jax.local_device_count(), received(), np.int32)
    pending.append(largest(None, devices.place(numbers)))
    return int(pending.popleft()) if len(pending) > AHEAD else 0
  return agreed
