"""Stages that run one after another within a limited time, and the record of what they find.

Each stage runs in a process of its own.  So a stage that hangs or breaks off ends alone, and the
next stage finds the accelerator free.  The record is one JSON file.  It is replaced as a whole
after every measured point, so a reader sees all points so far at any moment:

  {"minutes": 12, ..., "stages": {"train": {
      "status": "done", "limit_seconds": 200, "seconds": 180.2, "points": [{...}, ...], ...}}}

A status is 'running', 'done', 'failed', 'stopped' (at its limit, or by a signal) or 'left out'.
The field 'error' has the reason in one line.
"""
import importlib.util
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vdm_jax.errors import require
from vdm_jax.machine import files

LEAST_SECONDS = 5.0  # with less time, a stage is not begun


class Stage(NamedTuple):
  name: str
  share: float                         # of the whole time, at most; 0: all that is left
  environment: Mapping[str, str] = {}  # variables that its process has beside the others
  needs: tuple[str, ...] = ()          # modules without which the stage is left out


class Record:
  """The record in a file.  One process writes at a time: a stage's, or the one that waits for it.

  The file is read before every change, so the stages of earlier calls stay.
  """

  def __init__(self, path: str | Path):
    self.path = Path(path)

  def read(self) -> dict[str, Any]:
    """The record; {'stages': {}} if there is no file.  Raises InputError if the file is damaged."""
    if not self.path.exists():
      return {'stages': {}}
    return files.read_json(self.path, ('stages',), 'remove it, or name another file')

  def about(self, **values: Any) -> None:
    """Notes values of the whole check."""
    self._write({**self.read(), **values})

  def begin(self, stage: str, **values: Any) -> None:
    """Notes that a stage begins, in the place of what an earlier call measured of it."""
    record = self.read()
    record['stages'].pop(stage, None)
    record['stages'][stage] = {'status': 'running', **values, 'points': []}
    self._write(record)

  def note(self, stage: str, **values: Any) -> None:
    """Notes values of a stage."""
    record = self.read()
    record['stages'].setdefault(stage, {'points': []}).update(values)
    self._write(record)

  def add(self, stage: str, **point: Any) -> None:
    """Adds a measured point to a stage."""
    record = self.read()
    record['stages'][stage]['points'].append(point)
    self._write(record)

  def _write(self, record: Mapping[str, Any]) -> None:
    # `stages` comes last, behind what is short.
    ordered = {**{name: u for name, u in record.items() if name != 'stages'},
               'stages': record['stages']}
    files.write_text(self.path, json.dumps(ordered, indent=1) + '\n')


def one_line(error: Exception) -> str:
  """The type of an error and the first line of its message."""
  first, _, _ = str(error).strip().partition('\n')
  return f'{type(error).__name__}: {first[:300]}'


def missing(modules: Sequence[str]) -> list[str]:
  """Those of `modules` that are not installed here."""
  return [name for name in modules if importlib.util.find_spec(name) is None]


def run(stages: Sequence[Stage], record: Record, seconds: float,
        start: Callable[[Stage, float], str | None],
        say: Callable[[str], None] = print,
        clock: Callable[[], float] = time.monotonic) -> None:
  """Runs the stages in order and notes how each one ends.

  A stage may take its share of `seconds`, and no more than what is left.  If earlier stages end
  early, what they leave goes to the stages of share 0.

  Args:
    start: runs a stage for at most so many seconds, and returns when its process has ended.  It
      returns '' if all went well, None if the limit stopped the stage, or the error in one line.
  """
  begun = clock()
  for stage in stages:
    left = seconds - (clock() - begun)
    limit = min(left, stage.share * seconds) if stage.share else left
    record.begin(stage.name, limit_seconds=round(limit, 1))
    problem = ''
    if absent := missing(stage.needs):
      problem = f'{", ".join(absent)} is not installed'
    elif limit < LEAST_SECONDS:
      problem = f'{max(left, 0.0):.0f} s are left of {seconds:.0f} s'
    if problem:
      record.note(stage.name, status='left out', error=problem)
      say(f'{stage.name}: left out: {problem}')
      continue
    say(f'{stage.name}: at most {limit:.0f} s')
    then = clock()
    try:
      problem = start(stage, limit)
    except BaseException as error:  # a signal to this process too
      record.note(stage.name, status='stopped', seconds=round(clock() - then, 1),
                  error=f'{type(error).__name__}: the check was stopped')
      raise
    took = round(clock() - then, 1)
    if problem is None:
      status, problem = 'stopped', f'it was not done after {limit:.0f} s'
    else:
      status = 'failed' if problem else 'done'
    # The process of the stage knows its error better than its exit status does.
    known = record.read()['stages'][stage.name].get('error')
    record.note(stage.name, status=status, seconds=took,
                **({'error': known or problem} if problem else {}))
    say(f'{stage.name}: {status} after {took:.0f} s'
        + (f': {known or problem}' if problem else ''))


def in_process(command: Callable[[Stage, float], Sequence[str]]
               ) -> Callable[[Stage, float], str | None]:
  """A `start` for `run`: runs a command, and kills it with all its children at the limit."""
  def start(stage: Stage, seconds: float) -> str | None:
    process = subprocess.Popen(command(stage, seconds), start_new_session=True,
                               env={**os.environ, **stage.environment})
    try:
      code = process.wait(seconds)
    except subprocess.TimeoutExpired:
      return None
    finally:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return f'its process ended with exit status {code}' if code else ''
  return start


def chosen(stages: Sequence[Stage], names: Sequence[str]) -> list[Stage]:
  """The stages with these names, in their own order; all, if there are no names.

  Raises InputError if there is no such stage.
  """
  known = [stage.name for stage in stages]
  for name in names:
    require(name in known, 'stages', name, 'there is no such stage',
            f'choose among {", ".join(known)}')
  return [stage for stage in stages if not names or stage.name in names]
