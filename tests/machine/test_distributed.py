"""How processes find each other, and what a user sees of XLA's ways of ending them."""
import os
import signal
import subprocess
import sys

import jax
import pytest

from vdm_jax.errors import InputError
from vdm_jax.machine import distributed


@pytest.fixture
def initialize(monkeypatch):
  """jax.distributed.initialize, recorded and not run: what it raises, and its calls."""
  for name in [name for name in os.environ if name.startswith(('SLURM_', 'OMPI_', 'JAX_COOR'))]:
    monkeypatch.delenv(name)

  class Recorded:
    error, calls = None, []

    def __call__(self, *arguments, **options):
      self.calls.append((arguments, options))
      if self.error:
        raise self.error

  recorded = Recorded()
  monkeypatch.setattr(jax.distributed, 'initialize', recorded)
  monkeypatch.setattr(distributed, '_interpret', lambda *arguments, **options: None)
  return recorded


@pytest.mark.parametrize('given,named', [
    ((None, 2, 0), '^coordinator: it is missing'),
    (('a:1', None, 0), '^num_processes: it is missing'),
    (('a:1', None, None), '^num_processes: .* num_processes and process_id: give all three'),
    ((None, 2, None), '^coordinator: it is missing'),
    (('a', 2, 0), "^coordinator='a': "), (('a:b', 2, 0), "^coordinator='a:b': "),
    (('a:1', 2, 2), '^process_id=2: '), (('a:1', 2, -1), '^process_id=-1: '),
    (('a:1', 0, 0), 'num_processes=0')])
def test_flags_that_do_not_make_sense_are_named_and_nothing_is_started(initialize, given, named):
  with pytest.raises(InputError, match=named):
    distributed.start(*given)
  assert not initialize.calls


def test_where_nothing_is_found_there_is_one_process(initialize):
  initialize.error = ValueError('coordinator_address should be defined.')
  distributed.start()
  assert not jax.distributed.is_initialized()


def test_a_step_of_one_task_of_slurm_is_alone_and_keeps_all_devices_of_its_host(
    initialize, monkeypatch):
  shell = {'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'n1', 'SLURM_NTASKS': '16',
           'SLURM_PROCID': '0', 'SLURM_LOCALID': '0', 'SLURM_STEP_NUM_TASKS': '1'}
  for name, value in shell.items():
    monkeypatch.setenv(name, value)
  distributed.start()
  assert not initialize.calls
  monkeypatch.setenv('OMPI_COMM_WORLD_SIZE', '4')  # mpirun, whose daemon is that task
  distributed.start()
  assert len(initialize.calls) == 1
  monkeypatch.delenv('OMPI_COMM_WORLD_SIZE')
  monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '16')
  distributed.start()
  assert len(initialize.calls) == 2


def test_one_process_can_be_asked_for_wherever_it_is(initialize, monkeypatch):
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'a:1')
  distributed.start(num_processes=1)
  assert not initialize.calls


def test_half_a_cluster_in_the_environment_is_an_error_that_says_what_to_do(
    initialize, monkeypatch):
  initialize.error = RuntimeError('Kubernetes API Error: 403 - Forbidden\nmore')
  with pytest.raises(InputError, match='403.*num_processes=1'):
    distributed.start()
  initialize.error = ValueError('Number of processes must be defined.')
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'a:1')
  with pytest.raises(InputError, match='must be defined.*num_processes'):
    distributed.start()


@pytest.mark.parametrize('given,named', [
    ((None, 2, None), '^num_processes=2: .*one process only'),
    (('a:1', 1, 0), "^coordinator='a:1': .*one process only"),
    ((None, None, 0), '^process_id=0: .*one process only')])
def test_a_command_for_one_process_refuses_to_be_one_of_several(given, named):
  with pytest.raises(InputError, match=named):
    distributed.require_alone(*given)


@pytest.mark.parametrize('variable,launcher', [
    ('SLURM_STEP_NUM_TASKS', 'srun'), ('OMPI_COMM_WORLD_SIZE', 'mpirun')])
def test_a_command_for_one_process_refuses_to_be_started_twice(initialize, monkeypatch, variable,
                                                               launcher):
  distributed.require_alone()
  monkeypatch.setenv('SLURM_NTASKS', '4')  # of a job, whose script starts the command once
  distributed.require_alone()
  monkeypatch.setenv(variable, '1')
  distributed.require_alone()
  monkeypatch.setenv(variable, '4')
  with pytest.raises(InputError, match=f'{launcher} has started 4 processes; .*num_processes=1'):
    distributed.require_alone()
  distributed.require_alone(num_processes=1)
  assert not initialize.calls


def test_a_port_that_is_taken_is_said(initialize):
  initialize.error = RuntimeError('UNKNOWN: Failed to start RPC server')
  with pytest.raises(InputError, match="^coordinator='a:1': .*taken"):
    distributed.start('a:1', 2, 0)


def test_a_signal_is_heard_by_one_process_and_then_again_as_before():
  before = signal.getsignal(signal.SIGTERM)
  with distributed.stopping() as asked:
    assert asked() == 0
    os.kill(os.getpid(), signal.SIGTERM)
    assert [asked(), asked()] == [signal.SIGTERM] * 2
  assert signal.getsignal(signal.SIGTERM) == before


# What jaxlib 0.10.2 and 0.12.0 write, shortened.
HEARTBEAT = '''\
E1121 16:09:37.36    9374 coordination_service.cc:1549] [165] Use error polling to propagate the \
following error to all tasks: UNAVAILABLE: The following tasks are unhealthy (stopped sending \
heartbeats):
3
The tasks have crashed. Check the task logs for an earlier error.
=== Source Location Trace: ===
external/xla+/xla/pjrt/distributed/coordination/coordination_service.cc:232

E1121 16:09:37.36    9385 coordination_service_agent.cc:289] Polled an error from coordination \
service (this can be an error from this or another task).
F1121 16:09:37.36    9385 client.h:80] Terminating process because the JAX distributed service \
detected fatal errors.
*** Check failure stack trace: ***
    @     0x7f295ea40634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
'''
LEADER = '''\
W1121 16:09:47.58    9596 preemption_sync_manager.cc:147] Failed to retrieve preemption notice
F1121 16:09:47.58    9596 client.h:80] Terminating process because the JAX distributed service \
detected fatal errors. absl::Status: UNAVAILABLE: Failed to send RPC to coordination service. \
Either the leader task was preempted/died/restarted unexpectedly.
*** Check failure stack trace: ***
    @     0x7f67daa40634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
'''
APART = '''\
F1121 16:18:53.00   12569 client.h:80] Terminating process because the JAX distributed service \
detected fatal errors. absl::Status: DEADLINE_EXCEEDED: Deadline Exceeded

RPC: /xla.coordination.CoordinationService/RegisterTask
*** Check failure stack trace: ***
    @     0x7ff983e40634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
'''
GLOO = 'JAX distributed service: Gloo all-reduce failed: Connection closed by peer\n'


@pytest.mark.parametrize('written,said', [
    (HEARTBEAT, 'process 3 was lost'), (LEADER, 'process 0 was lost'), (APART, 'are apart'),
    (GLOO, 'a process was lost'), (GLOO + LEADER, 'process 0 was lost')])
def test_the_pages_that_end_a_process_are_one_line(written, said):
  before = '[Gloo] Rank 0 is connected to 3 peer ranks.\nW1121 something else of XLA\n'
  done = subprocess.run(
      [sys.executable, '-I', '-S', '-c', distributed._INTERPRETER, 'a process was lost',
       'are apart'], input=before + written, capture_output=True, text=True)
  assert done.stdout == '' and done.returncode == 0
  assert done.stderr == f'W1121 something else of XLA\n{said}\n'


def test_what_does_not_end_a_process_is_passed_on():
  other = 'E1121 coordination_service.cc:1] a barrier was late\nand what that means\n'
  done = subprocess.run([sys.executable, '-I', '-S', '-c', distributed._INTERPRETER, 'lost',
                         'apart'], input=other, capture_output=True, text=True)
  assert done.stderr == other
