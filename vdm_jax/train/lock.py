"""A lock that allows one run at a time in a directory."""
import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from vdm_jax.errors import InputError
from vdm_jax.machine import devices


@contextlib.contextmanager
def exclusive(workdir: str | Path, field: str = 'workdir', does: str = 'trains') -> Iterator[None]:
  """A context in which only this run, of one process or of several, may use `workdir`.

  The file `lock` in the directory names the host and the id of process 0.  Afterwards the file is
  empty.  A process that was killed no longer holds the lock.

  Args:
    field: the field that named the directory, for errors.
    does: what the run does in the directory, for errors.

  Raises InputError if another run holds the lock.  A run on another host holds it until the file is
  removed, because nobody here can know whether that run still goes on.
  """
  workdir = Path(workdir).absolute()
  with contextlib.ExitStack() as stack:

    def take() -> None:
      try:
        workdir.mkdir(parents=True, exist_ok=True)
        number = os.open(workdir / 'lock', os.O_RDWR | os.O_CREAT, 0o666)
      except OSError:  # `workdir.prepare` says that nothing can be written there
        return
      file = stack.enter_context(open(number, 'r+'))
      if refused := _refusal(workdir, file, field, does):
        raise refused
      file.seek(0)
      file.truncate()
      file.write(json.dumps(_here()))
      file.flush()
      stack.callback(file.truncate, 0)

    devices.broadcast_from_first(take)
    yield


def _here() -> dict:
  return {'host': socket.gethostname(), 'pid': os.getpid()}


def _refusal(workdir: Path, file, field: str, does: str) -> InputError | None:
  """Takes the lock and returns None, or returns the error that says who holds it."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    free = True
  except OSError:  # another has it, or this file system knows no locks
    free = False
  try:
    holder = json.loads(file.read())
    host, pid = holder['host'], int(holder['pid'])
  except (ValueError, KeyError, TypeError):
    return None if free else InputError(
        field, str(workdir), 'another run has just begun in this directory',
        'choose another directory')
  if host != _here()['host']:
    return InputError(
        field, str(workdir), f'process {pid} on {host} {does} in this directory',
        f'choose another, or, if that process is gone, remove {workdir / "lock"}')
  if free or not _runs(pid):
    return None
  return InputError(field, str(workdir), f'process {pid} {does} in this directory',
                    f'wait for it, end it (kill {pid}), or choose another directory')


def _runs(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:  # somebody else's
    pass
  return True
