"""Paths that a user gives, and files that are written whole or not at all."""
import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.errors import InputError

__all__ = ['atomic_write', 'digest', 'kept', 'output', 'probe', 'read_json', 'run_directory',
           'save_csv', 'save_npz', 'user_path', 'write_text']

# The checkpoint library takes these for a pattern, or for a bucket, wherever they are in a path.
_NO_RUN = re.compile(r'[*?\[\\]|/(?:gs|s3):(?:/|$)')


def user_path(field: str, path: str | Path) -> Path:
  """The path that a user gave as `field`; a leading ~ becomes the home directory.

  Raises InputError for an empty path, or for a path that no file can have.
  """
  text = os.fspath(path)
  if not text:
    raise InputError(field, text, 'it is empty', 'give a path (is a shell variable unset?)')
  if '\0' in text:
    raise InputError(field, text, 'a path cannot have a zero byte', 'give another path')
  try:
    return Path(text).expanduser()
  except RuntimeError:
    raise InputError(field, text, 'there is no such home directory',
                     'write it out, or ./~NAME for a file of that name') from None


def run_directory(field: str, path: str | Path) -> Path:
  """`user_path` for a directory that holds, or will hold, a run with its checkpoints.

  Raises InputError also for a path from which checkpoints could not be read again.
  """
  directory = user_path(field, path)
  if unreadable := _NO_RUN.search(f'{directory.absolute()}'):
    raise InputError(field, f'{directory}', f'no checkpoint can be kept below {unreadable[0]!r}, '
                     'which the checkpoint library reads as a pattern or an address',
                     'choose or rename a directory without it')
  return directory


def output(field: str, path: str | Path, *endings: str, overwrite: bool = False) -> Path:
  """`user_path` for a file to be written, whose name has one of these endings.

  Raises InputError also if the file exists (unless `overwrite`), or if it cannot be written.
  """
  path = user_path(field, path)
  if path.suffix not in endings:
    raise InputError(field, f'{path}', f"its name must end in {' or '.join(endings)}",
                     'choose such a name')
  if path.is_dir():
    raise InputError(field, f'{path}', 'it is a directory', 'choose the name of a file')
  if path.exists() and not overwrite:
    raise InputError(field, f'{path}', 'it is there already',
                     'choose another name, or ask for `overwrite`')
  folder = next(parent for parent in path.absolute().parents if parent.exists())
  if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
    raise InputError(field, f'{path}', f'nothing can be written into {folder}',
                     'choose another place')
  return path


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
  """A path to write to, with the same ending, that replaces `path` when everything is written.

  No reader ever sees half a file.  If the writing fails, an existing file stays.
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
  """Raises OSError unless a file of `size` bytes can be written into `directory`.

  The directory is made if needed.  The file is removed again.
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
  with atomic_write(path) as partial:
    partial.write_text(text, encoding='utf-8')


def save_npz(path: str | Path, **arrays) -> None:
  """Does np.savez_compressed, but writes the file whole or not at all."""
  with atomic_write(path) as partial:
    np.savez_compressed(partial, **arrays)


def save_csv(path: str | Path, **arrays: np.ndarray) -> None:
  """Writes numbers [N, ...] as a table: a line of names, then a row for each of the N examples.

  An array [N] is a column of its own name.  An array x [N, 2, 3] has the columns x_0_0, x_0_1,
  x_0_2, x_1_0, ...: so each row is one example, flattened.  Numbers have as many digits as it takes
  to read them back unchanged.
  """
  names, formats, columns = [], [], []
  for name, array in arrays.items():
    places = list(np.ndindex(array.shape[1:]))
    names += ['_'.join([name, *map(str, place)]) for place in places]
    digits = '%d' if array.dtype.kind != 'f' else '%.9g' if array.dtype.itemsize <= 4 else '%.17g'
    formats += [digits] * len(places)
    columns.append(array.reshape(len(array), -1))
  with atomic_write(path) as partial:
    np.savetxt(partial, np.concatenate(columns, axis=1, dtype=np.float64), formats, ',',
               header=','.join(names), comments='', encoding='utf-8')


def digest(about: Mapping[str, Any]) -> str:
  """A name for results that depend on `about`, which JSON can hold: 64 hexadecimal digits."""
  return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def kept(file: Path, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """The arrays of the .npz `file`; if it is not there, it is written from `make` first.

  So a command that was stopped goes on with the batches that are there.
  """
  if not file.exists():
    save_npz(file, **make())
  with np.load(file) as arrays:
    return {name: arrays[name] for name in arrays.files}


def read_json(path: str | Path, of: Sequence[str], remedy: str, newest: int = 0) -> dict:
  """The object in a JSON file, which must have the fields `of`.

  newest: the largest `format` of the file that the caller can read.

  Raises InputError, with `remedy`, if the file is damaged.  Raises InputError also if the file has
  a newer format.
  """
  try:
    value = json.loads(Path(path).read_text(encoding='utf-8'))
  except ValueError as error:  # of the text, or of its encoding
    raise InputError(None, None, f'{path} is damaged ({error})', f'{remedy}.') from None
  missing = [name for name in of if not isinstance(value, dict) or name not in value]
  if missing:
    raise InputError(None, None, f'{path} is damaged (it has no {missing[0]!r})', f'{remedy}.')
  if (version := value.get('format', 0)) > newest:
    raise InputError(problem=f'{path} has format {version}, and this version of vdm_jax reads up '
                     f'to {newest}', remedy='update vdm_jax')
  return value
