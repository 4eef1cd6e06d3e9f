"""Runs a script on a disk that shows files late: lagging.py FOLDER SECONDS PATIENCE SCRIPT ...

In process 1, a file or folder below FOLDER appears only SECONDS after the process first looked for
it, unless that process made it itself.  A file or folder that replaces another is late too: for so
long, the process sees the old one with its old content.  What is changed in place, or removed, is
seen at once, and process 0 sees everything at once.  All of this concerns Python alone: what C++
opens is there.  Processes wait PATIENCE seconds for files.
"""
import builtins
import io
import os
import runpy
import sys
import time

from vdm_jax.machine import sharing

FOLDER, SECONDS, PATIENCE = os.path.abspath(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
_lstat, _stat, _open = os.lstat, os.stat, os.open
_begun, _own = {}, set()  # when each version was first looked for; which this process made itself
_kept = {}  # {path: the number of the version that has appeared, a descriptor that keeps it}


def _inside(path):
  """The path as text if it is below FOLDER, else None."""
  if isinstance(path, int):
    return None
  path = os.path.abspath(os.fsdecode(path))
  return path if path.startswith(FOLDER + os.sep) else None


def _seen(path):
  """Where the file or folder lies that has appeared as `path`; None: none has, or it is gone."""
  text = _inside(path)
  if text is None:
    return path
  part = there = FOLDER
  for name in text[len(FOLDER) + 1:].split(os.sep):
    part, there = os.path.join(part, name), os.path.join(there, name)
    try:
      number, now = _lstat(there).st_ino, time.monotonic()
      old, descriptor = _kept.get(part, (None, None))
      late = now - _begun.setdefault((part, number), now) < SECONDS and (part, number) not in _own
      if late and old is None:
        return None
      if late and old != number:
        there = f'/proc/self/fd/{descriptor}'
      elif old != number:
        _forget(part)
        descriptor = _open(there, os.O_PATH)
        _kept[part] = os.fstat(descriptor).st_ino, descriptor
    except OSError:
      _forget(part)
      return None
  return there


def _forget(part):
  """Of what is gone, or another folder by now, nothing is remembered."""
  for path in list(_kept):
    if path == part or path.startswith(part + os.sep):
      os.close(_kept.pop(path)[1])


def _made(path):
  text = _inside(path)
  if text is not None:
    try:
      _own.add((text, _lstat(text).st_ino))
    except OSError:
      pass


def _reading(function):
  def read(path='.', *arguments, **named):
    if (there := _seen(path)) is None:
      raise FileNotFoundError(2, 'No such file or directory', os.fspath(path))
    if function in (_stat, _lstat) and there is not path and there.startswith('/proc/self/fd/'):
      return _stat(there)  # of the file that was replaced, not of the link that leads to it
    return function(there, *arguments, **named)
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


class _Entry:
  """An entry of a folder, which may be of a version that has been replaced."""

  def __init__(self, path, entry):
    self.path, self.name, self._entry = path, entry.name, entry

  def __fspath__(self):
    return self.path

  def __getattr__(self, name):
    return getattr(self._entry, name)

  def stat(self, *, follow_symlinks=True):
    return os.stat(self.path, follow_symlinks=follow_symlinks)


class _Entries:
  """The entries of a folder that have appeared."""

  def __init__(self, folder, entries):
    self._folder, self._entries = folder, entries

  def __iter__(self):
    return self

  def __next__(self):
    while True:
      entry = next(self._entries)
      if isinstance(self._folder, int):
        return entry
      path = os.path.join(os.fsdecode(self._folder), entry.name)
      if _seen(path) is not None:
        return _Entry(path, entry)

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
    return names if isinstance(path, int) else [
        name for name in names if _seen(os.path.join(os.fspath(path), name)) is not None]
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
