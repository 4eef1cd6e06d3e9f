"""Runs a script on a disk that shows files late: lagging.py FOLDER SECONDS PATIENCE SCRIPT ...

In process 1, a file or folder below FOLDER appears only SECONDS after the process first looked for
it, unless that process made it itself.  So does a file that replaces another of its name.  Process
0 sees everything at once.  All of this concerns Python alone: what C++ opens is there.  Processes
wait PATIENCE seconds for files.
"""
import builtins
import io
import os
import runpy
import sys
import time

from vdm_jax.machine import sharing

FOLDER, SECONDS, PATIENCE = os.path.abspath(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
_lstat, _begun, _own = os.lstat, {}, set()


def _inside(path):
  """The path as text if it is below FOLDER, else None."""
  if isinstance(path, int):
    return None
  path = os.path.abspath(os.fsdecode(path))
  return path if path.startswith(FOLDER + os.sep) else None


def _hidden(path):
  """Whether the file, or a folder that holds it, has not appeared yet."""
  text = _inside(path)
  if text is None:
    return False
  part = FOLDER
  for name in text[len(FOLDER) + 1:].split(os.sep):
    part = os.path.join(part, name)
    try:
      key = part, _lstat(part).st_ino
    except OSError:
      return False  # there is nothing to hide
    now = time.monotonic()
    if key not in _own and now - _begun.setdefault(key, now) < SECONDS:
      return True
  return False


def _made(path):
  text = _inside(path)
  if text is not None:
    try:
      _own.add((text, _lstat(text).st_ino))
    except OSError:
      pass


def _reading(function):
  def read(path='.', *arguments, **named):
    if _hidden(path):
      raise FileNotFoundError(2, 'No such file or directory', os.fspath(path))
    return function(path, *arguments, **named)
  return read


def _opening(function, writes):
  def open_(path, *arguments, **named):
    if not writes(*arguments, **named):
      return _reading(function)(path, *arguments, **named)
    there = not isinstance(path, int) and os.path.lexists(path)
    opened = function(path, *arguments, **named)
    if not there:
      _made(path)
    return opened
  return open_


class _Entries:
  """The entries of a folder that have appeared."""

  def __init__(self, folder, entries):
    self._folder, self._entries = folder, entries

  def __iter__(self):
    return self

  def __next__(self):
    while True:
      entry = next(self._entries)
      if not _hidden(os.path.join(os.fsdecode(self._folder), entry.name)):
        return entry

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def close(self):
    self._entries.close()


def _delay():
  listdir, scandir, mkdir = os.listdir, os.scandir, os.mkdir
  os.stat, os.lstat, os.access = _reading(os.stat), _reading(os.lstat), _reading(os.access)
  in_mode = lambda mode='r', *_, **__: bool(set(mode) & set('wax'))
  builtins.open = io.open = _opening(io.open, in_mode)
  os.open = _opening(os.open, lambda flags, *_, **__: bool(flags & os.O_CREAT))

  def listed(path='.'):
    names = _reading(listdir)(path)
    return [name for name in names if not _hidden(os.path.join(os.fspath(path), name))]
  os.listdir = listed
  os.scandir = lambda path='.': _Entries(path, _reading(scandir)(path))

  def made(path, *arguments, **named):
    try:
      mkdir(path, *arguments, **named)
    finally:
      _made(path)  # if it is another's, the disk has just said so
  os.mkdir = made

  def moving(function):
    def move(source, destination, **named):
      function(source, destination, **named)
      _made(destination)
    return move
  os.rename, os.replace = moving(os.rename), moving(os.replace)


if __name__ == '__main__':
  if '--process_id=1' in sys.argv:
    _delay()
  sharing.PATIENCE = PATIENCE
  sys.argv = sys.argv[4:]
  sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
  runpy.run_path(sys.argv[0], run_name='__main__')
