"""Files that are written whole or not at all."""
import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vdm_jax.errors import InputError

__all__ = ['probe', 'read_json', 'save_npz', 'whole', 'write_text']


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
  """A path to write to, of the same ending, that takes the place of `path` when all is written.

  No reader ever sees half a file, and what was there stays where the writing fails.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'.{os.getpid()}.{path.name}')
  try:
    yield partial
    os.replace(partial, path)
  except OSError as error:
    if error.errno and not error.filename:  # a full disk does not say of what
      error.filename = os.fspath(path)
    raise
  finally:
    partial.unlink(missing_ok=True)


def probe(directory: str | Path, size: int = 1 << 20) -> None:
  """Raises OSError unless files of so many bytes can be written into `directory`, made if need be.

  Nothing stays there.
  """
  directory = Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  path = directory / f'.probe.{os.uname().nodename}.{os.getpid()}'
  try:
    path.write_bytes(bytes(size))
  finally:
    with contextlib.suppress(OSError):
      path.unlink()


def write_text(path: str | Path, text: str) -> None:
  with whole(path) as partial:
    partial.write_text(text)


def save_npz(path: str | Path, **arrays) -> None:
  """np.savez_compressed, whole or not at all."""
  with whole(path) as partial:
    np.savez_compressed(partial, **arrays)


def read_json(path: str | Path, of: Sequence[str], remedy: str) -> dict:
  """The object in a file of JSON, which has the fields `of`.  Raises InputError, with the remedy,
  where the file is damaged."""
  try:
    found = json.loads(Path(path).read_text())
  except ValueError as error:  # of the text, or of its encoding
    raise InputError(None, None, f'{path} is damaged ({error})', f'{remedy}.') from None
  missing = [name for name in of if not isinstance(found, dict) or name not in found]
  if missing:
    raise InputError(None, None, f'{path} is damaged (it has no {missing[0]!r})', f'{remedy}.')
  return found
