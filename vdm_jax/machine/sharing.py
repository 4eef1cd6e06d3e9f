"""Waits for a shared disk that shows new files late to some of the processes.

Hosts remember for a while what they have read of a network disk.  So a file that one host has
written appears on the others seconds later: by default up to a minute later on NFS.  Processes that
disagree about the files of a run do not make the same calls, and then wait for each other for ever.

All processes must make these calls equally often.
"""
import hashlib
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from vdm_jax.errors import InputError
from vdm_jax.machine import distributed, signals

__all__ = ['PATIENCE', 'see_alike']

PATIENCE = 120  # seconds in which a file must appear on all hosts
_PAUSE = 0.5    # seconds between two looks
# Of a large file, blocks are compared.  All of it would be gigabytes of checkpoints for each look.
# Blocks are enough: weights or samples that are written anew differ everywhere, the end of an .npz
# has the checksums of its arrays, and the checkpoint library gives large files new names.  Times of
# change would be no better: hosts round and delay them, and copies of a file have other times.
_BLOCKS, _BLOCK = 16, 2**18  # how many, and of how many bytes


def see_alike(field: str, where: str | Path, look: Callable[[], Iterable[Path]]) -> None:
  """Waits until all processes see the same files: the same paths, sizes and contents.

  Of a file over 4 MiB, 16 blocks are compared, the first and the last among them.

  With one process, nothing is looked at.

  Args:
    field: the field that named `where`, for the error.
    where: a directory or a file; other hosts may have it under another path.
    look: the files that this process sees there.

  Raises InputError, in all processes, if they still differ after `PATIENCE` seconds.
  """
  if jax.process_count() == 1:
    return
  waiting = threading.Timer(distributed.QUIET, signals.say, [
      f'Waiting until all processes see the same files in {where}, up to {PATIENCE} seconds.'])
  waiting.daemon = True
  if jax.process_index() == 0:
    waiting.start()
  try:
    deadline = time.monotonic() + PATIENCE
    while True:
      over = time.monotonic() > deadline
      seen = multihost_utils.process_allgather(_summary(Path(where), look(), over))
      differ = np.flatnonzero((seen[:, 1:] != seen[0, 1:]).any(axis=1))
      if not len(differ):
        return
      if seen[0, 0]:  # all go by the clock of process 0
        other = int(differ[0])
        raise InputError(
            field, f'{where}', f'process {other} sees other files there than process 0, even after '
            f'{PATIENCE} seconds ({seen[other, 1]} and {seen[0, 1]} files)',
            'give all processes the same directory, on a disk that their hosts share')
      time.sleep(_PAUSE)
  finally:
    waiting.cancel()


def _summary(where: Path, paths: Iterable[Path], over: bool) -> np.ndarray:
  """Whether the time is over, how many files there are, and a digest of all: uint32 [6]."""
  lines = []
  for path in paths:
    try:
      size = path.stat().st_size
      content = _checksum(path, size)
    except OSError:  # it has gone
      continue
    lines.append(f'{os.path.relpath(path, where)} {size} {content}\n')
  digest = hashlib.sha256(''.join(sorted(lines)).encode()).digest()
  return np.concatenate([np.array([over, len(lines)], np.uint32),
                         np.frombuffer(digest[:16], np.uint32)])


def _checksum(path: Path, size: int) -> int:
  """CRC-32 of a file of `size` bytes, or of its blocks if it is large."""
  with path.open('rb') as file:
    if size <= _BLOCKS * _BLOCK:
      return zlib.crc32(file.read())
    crc = 0
    for i in range(_BLOCKS):
      file.seek(i * (size - _BLOCK) // (_BLOCKS - 1))
      crc = zlib.crc32(file.read(_BLOCK), crc)
    return crc
